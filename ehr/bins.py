"""Time bins of a task set, and the event times they are fitted to."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl

PART = 1 << 18  # values at a time, which the processor's cache holds
STEP = 1024  # label rows at a time: all events of all rows would not fit into memory as a table


def bin_edges(event_days: np.ndarray, num_bins: int) -> tuple[float, ...]:
    """Percentiles of observed event times with first edge 0 and last infinity; tied edges are merged."""
    if num_bins == 1 or not len(event_days):
        return (0.0, np.inf)
    inner = percentiles(event_days, np.linspace(0, 100, num_bins + 1)[1:-1])
    return (0.0, *np.unique(inner).tolist(), np.inf)


def percentiles(values: np.ndarray, percent: np.ndarray) -> np.ndarray:
    """np.percentile of positive float64 values, to the bit; of millions in a fifth of the time.

    Only the values near a wanted rank are put in order: positive floats are in the order of their bits, of which the
    upper ones make buckets .4 % wide, and buckets are only counted.
    """
    low, high = _bucket(np.array([values.min(), values.max()]))
    size = sum(np.bincount(_bucket(part) - low, minlength=high - low + 1) for part in _parts(values))
    ends = np.cumsum(size)
    rank = np.asarray(percent) / 100 * (len(values) - 1)
    whole = np.floor(rank).astype(np.int64)
    ranks = np.stack([whole, np.minimum(whole + 1, len(values) - 1)])
    bucket = np.searchsorted(ends, ranks, side="right")
    kept = np.zeros(len(size), bool)
    kept[bucket] = True
    near = np.sort(np.concatenate([part[kept[_bucket(part) - low]] for part in _parts(values)]))
    below, above = near[ranks - np.cumsum(np.where(kept, 0, size))[bucket]]
    share, step = rank - whole, above - below
    return np.where(share < 0.5, below + step * share, above - step * (1 - share))  # numpy's own two forms


def _parts(values: np.ndarray) -> Iterator[np.ndarray]:
    return (values[begin : begin + PART] for begin in range(0, len(values), PART))


def _bucket(values: np.ndarray) -> np.ndarray:
    return values.view(np.int64) >> 44


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
