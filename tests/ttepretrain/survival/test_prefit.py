"""The bias table against a loop over cells, the likelihood's gradient, and the model's first loss."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from ttepretrain.models.config import ModelConfig
from ttepretrain.models.model import build_model
from ttepretrain.survival.likelihood import nll_sum
from ttepretrain.survival.prefit import bias_table
from ttepretrain.testing import random_batch, random_labels, random_task_set
from ttepretrain.volume.spec import LUNG, VolumeSpec


def case(seed: int, recurrence: str):
    rng = np.random.default_rng(seed)
    tasks = random_task_set(rng, 6, (0.0, 10.0, 90.0, 500.0, math.inf), recurrence=recurrence)
    return tasks, random_labels(rng, 9, tasks)


def loop_table(labels, tasks) -> np.ndarray:
    edges, blackout = tasks.bin_edges_days, tasks.blackout_days
    events = {(i, k): t for i, k, t in zip(labels.events.row, labels.events.index, labels.event_days)}
    history = set(zip(labels.history.row, labels.history.index))
    table = np.empty((tasks.num_bins, tasks.num_tasks))
    for b in range(tasks.num_bins):
        for k, task in enumerate(tasks.tasks):
            count, at_risk = 0, 0.0
            for i in range(len(labels)):
                if tasks.recurrence == "incident" and (i, k) in history:
                    continue
                end = events.get((i, k), labels.censor_days[i])
                at_risk += max(0.0, min(end, edges[b + 1]) - max(edges[b], blackout))
                count += (i, k) in events and edges[b] < end <= edges[b + 1]
            table[b, k] = math.log((count + 1) / (at_risk + 1 / task.rate_per_day))
    return table


@pytest.mark.parametrize("recurrence", ["all", "incident"])
@pytest.mark.parametrize("seed", range(4))
def test_the_table_equals_the_loop_over_cells(seed, recurrence):
    tasks, labels = case(seed, recurrence)
    table_TK = bias_table(labels, tasks)
    assert table_TK.dtype == np.float32
    np.testing.assert_allclose(table_TK, loop_table(labels, tasks), rtol=1e-6)


@pytest.mark.parametrize("recurrence", ["all", "incident"])
def test_at_the_table_the_gradient_is_the_pull_of_one_pseudo_event(recurrence):
    """exp(b) (exposure + 1/rate) = events + 1 makes the rows' summed gradient 1 - exp(b) / rate in every cell."""
    tasks, labels = case(7, recurrence)
    bias_TK = torch.from_numpy(bias_table(labels, tasks)).double().requires_grad_()
    batch = random_batch(np.random.default_rng(0), labels)
    nll_sum(bias_TK.expand(len(labels), -1, -1), batch, tasks.bin_edges_days, 1.0, recurrence)[0].backward()
    rate_K = torch.tensor([task.rate_per_day for task in tasks.tasks], dtype=torch.float64)
    torch.testing.assert_close(bias_TK.grad, 1 - bias_TK.detach().exp() / rate_K, rtol=1e-4, atol=1e-4)


def test_a_bin_that_nobody_reaches_gets_the_tasks_overall_rate():
    tasks, labels = case(0, "all")
    tasks = dataclasses.replace(tasks, bin_edges_days=(0.0, 10.0, 5000.0, math.inf))
    rate_K = [task.rate_per_day for task in tasks.tasks]
    np.testing.assert_allclose(bias_table(labels, tasks)[2], np.log(rate_K), rtol=1e-6)


def test_a_task_without_a_rate_is_refused():
    """It would have no finite log hazard."""
    tasks, labels = case(0, "all")
    with pytest.raises(ValueError, match="rate_per_day must be positive"):
        dataclasses.replace(tasks.tasks[2], rate_per_day=0.0)
    assert np.isfinite(bias_table(labels, tasks)).all()


def test_the_first_loss_of_a_model_is_the_tables():
    tasks, labels = case(2, "all")
    batch = random_batch(np.random.default_rng(1), labels, (9, 10, 11))
    bias_TK = torch.from_numpy(bias_table(labels, tasks))
    spec = VolumeSpec((3.0, 2.0, 1.0), (9, 10, 11), (-1024, 3071), (LUNG,))
    model = build_model(ModelConfig(encoder="resnet18", head_dim=3), spec, bias_TK, seed=0)
    with torch.no_grad():
        log_hazard_BTK = model(batch.volume_BDHW)
    assert torch.equal(log_hazard_BTK, bias_TK.expand(len(labels), -1, -1))
    first, _ = nll_sum(log_hazard_BTK, batch, tasks.bin_edges_days, 1.0, "all")
    table, _ = nll_sum(bias_TK.expand(len(labels), -1, -1), batch, tasks.bin_edges_days, 1.0, "all")
    assert first.item() == table.item()
