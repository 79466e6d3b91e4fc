"""Time bins of a task set, and the event times they are fitted to."""

from __future__ import annotations

import numpy as np
import polars as pl

STEP = 1024  # label rows at a time: all events of all rows would not fit into memory as a table


def bin_edges(event_days: np.ndarray, num_bins: int) -> tuple[float, ...]:
    """Percentiles of observed event times with first edge 0 and last infinity; tied edges are merged."""
    if num_bins == 1 or not len(event_days):
        return (0.0, np.inf)
    inner = np.percentile(event_days, np.linspace(0, 100, num_bins + 1)[1:-1])
    return (0.0, *np.unique(inner).tolist(), np.inf)


def train_event_days(labels: pl.DataFrame, recurrence: str) -> np.ndarray:
    """T of every event in the train rows' risk sets, all tasks together."""
    columns = ["event_days"] if recurrence == "all" else ["task_index", "event_days", "history_index"]
    train = labels.select("split", *columns).filter(pl.col("split") == "train")
    if recurrence == "all":
        return train["event_days"].explode(empty_as_null=False).to_numpy()
    return np.concatenate([np.empty(0), *map(_without_history, train.iter_slices(STEP))])


def _without_history(labels: pl.DataFrame) -> np.ndarray:
    rows = labels.with_row_index("row")
    events = rows.select("row", "event_days", task="task_index").explode("event_days", "task", keep_nulls=False)
    history = rows.select("row", task="history_index").explode("task", keep_nulls=False)
    return events.join(history, on=["row", "task"], how="anti")["event_days"].to_numpy()
