"""Bias table: the log hazards the head starts from (docs/explanation/likelihood.md)."""

from __future__ import annotations

import numpy as np

from ttepretrain.labels import LabelTable
from ttepretrain.tasks import TaskSet

PSEUDO_EVENTS = 1.0  # m: how strongly a sparse (bin, task) is drawn to its task's overall rate


def bias_table(labels: LabelTable, tasks: TaskSet) -> np.ndarray:
    """Float32 [T, K]: log((events_tk + m) / (exposure_days_tk + m / rate_k)), fitted on the given (train) rows.

    Finite, as every task's rate is positive (`Task` refuses another).
    """
    rate_K = np.array([task.rate_per_day for task in tasks.tasks])
    edges, num_tasks = np.array(tasks.bin_edges_days), tasks.num_tasks
    row_N, task_N, days_N = labels.events.row, labels.events.index, labels.event_days
    left_out_row, left_out_task = labels.history.row[:0], labels.history.index[:0]
    if tasks.recurrence == "incident":
        left_out_row, left_out_task = labels.history.row, labels.history.index
        counts_N = ~np.isin(row_N * num_tasks + task_N, left_out_row * num_tasks + left_out_task)
        row_N, task_N, days_N = row_N[counts_N], task_N[counts_N], days_N[counts_N]

    bin_N = np.searchsorted(edges, days_N) - 1  # (lo, hi]
    bias_TK = np.empty((tasks.num_bins, num_tasks), np.float32)
    for b in range(tasks.num_bins):
        # Everyone's exposure, less what follows an event and less the pairs left out.
        low, high = max(edges[b], tasks.blackout_days), edges[b + 1]
        exposure_row = np.clip(np.minimum(labels.censor_days, high) - low, 0, None)
        after_event_N = exposure_row[row_N] - np.clip(np.minimum(days_N, high) - low, 0, None)
        exposure_K = exposure_row.sum() - np.bincount(task_N, after_event_N, num_tasks)
        exposure_K -= np.bincount(left_out_task, exposure_row[left_out_row], num_tasks)
        events_K = np.bincount(task_N[bin_N == b], minlength=num_tasks)
        # Differences of sums may leave -1e-10 where nobody is at risk.
        exposure_K = np.clip(exposure_K, 0, None)
        bias_TK[b] = np.log((events_K + PSEUDO_EVENTS) / (exposure_K + PSEUDO_EVENTS / rate_K))
    return bias_TK
