"""Time bins and rates of the tasks, from the train rows' labels."""

from __future__ import annotations

import numpy as np
import polars as pl

from ttepretrain.tasks import Task


def bin_edges(event_days: np.ndarray, num_bins: int) -> tuple[float, ...]:
    """Percentiles of observed event times with first edge 0 and last infinity; tied edges are merged."""
    if num_bins == 1 or not len(event_days):
        return (0.0, np.inf)
    inner = np.percentile(event_days, np.linspace(0, 100, num_bins + 1)[1:-1])
    return (0.0, *np.unique(inner).tolist(), np.inf)


def risk_set(labels: pl.DataFrame, recurrence: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Events (row, subject_id, censor_days, task, days) in the risk set, and the pairs left out of it."""
    rows = labels.with_row_index("row").select(
        "row", "subject_id", "censor_days", "task_index", "event_days", "history_index"
    )
    events = rows.drop("history_index").explode("task_index", "event_days", keep_nulls=False)
    events = events.rename({"task_index": "task", "event_days": "days"})
    left_out = rows.select("row", "censor_days", task="history_index")
    left_out = left_out.explode("task", keep_nulls=False)
    if recurrence == "all":
        return events, left_out.clear()
    return events.join(left_out, on=["row", "task"], how="anti", maintain_order="left"), left_out


def task_table(
    chosen: pl.DataFrame, labels: pl.DataFrame, events: pl.DataFrame, left_out: pl.DataFrame, blackout_days: float
) -> tuple[Task, ...]:
    """Tasks with patients, events and rate = events / days at risk. chosen: name, description, prevalence, score."""
    num_tasks = len(chosen)

    def total(frame: pl.DataFrame, values: pl.Series) -> np.ndarray:
        return np.bincount(frame["task"].to_numpy(), weights=values.to_numpy(), minlength=num_tasks)

    at_risk = (labels["censor_days"] - blackout_days).sum() - total(left_out, left_out["censor_days"] - blackout_days)
    at_risk -= total(events, events["censor_days"] - events["days"])
    num_events = np.bincount(events["task"].to_numpy(), minlength=num_tasks)
    patients = events.select("task", "subject_id").unique()["task"].to_numpy()
    table = chosen.select(code="name", description="description", prevalence="prevalence", score="score").with_columns(
        patients=pl.Series(np.bincount(patients, minlength=num_tasks)),
        events=pl.Series(num_events),
        rate_per_day=pl.Series(num_events / at_risk),
    )
    return tuple(Task(**row) for row in table.iter_rows(named=True))
