"""Times of the train events, and the time bins of a task set: their percentiles."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import polars as pl

STEP = 128  # label rows at a time: their events fit into the processor's cache


class EventTimes:
    """T (days, > 0) of every event in the train rows' risk sets, all tasks together; `counts` of them in each bucket.

    Positive floats are in the order of their bits, of which the upper ones make buckets .4 % wide.
    """

    def __init__(self, parts: Iterable[np.ndarray]):
        """parts: float64 days."""
        self._parts = [part for part in parts if len(part)]
        ends = [_bucket(np.array([part.min(), part.max()])) for part in self._parts] or [np.zeros(2, np.int64)]
        self._low, high = min(low for low, _ in ends), max(high for _, high in ends)
        self.counts = np.zeros(high - self._low + 1, np.int64)
        for part in self._parts:
            self.counts += np.bincount(_bucket(part) - self._low, minlength=len(self.counts))

    def __len__(self) -> int:
        return int(self.counts.sum())

    @property
    def edges(self) -> np.ndarray:
        """[len(counts) + 1], days."""
        return (np.arange(self._low, self._low + len(self.counts) + 1) << _LOWER_BITS).view(np.float64)

    def percentiles(self, percent: np.ndarray) -> np.ndarray:
        """np.percentile, to the bit; of millions in a fifth of the time: only values near a wanted rank are sorted."""
        rank = np.asarray(percent) / 100 * (len(self) - 1)
        whole = np.floor(rank).astype(np.int64)
        ranks = np.stack([whole, np.minimum(whole + 1, len(self) - 1)])
        bucket = np.searchsorted(np.cumsum(self.counts), ranks, side="right")
        kept = np.zeros(len(self.counts), bool)
        kept[bucket] = True
        near = np.sort(np.concatenate([part[kept[_bucket(part) - self._low]] for part in self._parts]))
        below, above = near[ranks - np.cumsum(np.where(kept, 0, self.counts))[bucket]]
        share, step = rank - whole, above - below
        return np.where(share < 0.5, below + step * share, above - step * (1 - share))  # numpy's own two forms


_LOWER_BITS = 44  # of a float64's 64


def _bucket(values: np.ndarray) -> np.ndarray:
    return values.view(np.int64) >> _LOWER_BITS


def bin_edges(times: EventTimes, num_bins: int) -> tuple[float, ...]:
    """Percentiles of observed event times with first edge 0 and last infinity; tied edges are merged."""
    if num_bins == 1 or not len(times):
        return (0.0, np.inf)
    inner = times.percentiles(np.linspace(0, 100, num_bins + 1)[1:-1])
    return (0.0, *np.unique(inner).tolist(), np.inf)


def train_event_times(labels: pl.DataFrame, recurrence: str) -> EventTimes:
    days = _all_days if recurrence == "all" else _days_without_history
    columns = labels.select("split", "task_index", "event_days", "history_index")
    return EventTimes(days(rows.filter(pl.col("split") == "train")) for rows in columns.iter_slices(STEP))


def _all_days(labels: pl.DataFrame) -> np.ndarray:
    return labels["event_days"].explode(keep_nulls=False, empty_as_null=False).to_numpy()


def _days_without_history(labels: pl.DataFrame) -> np.ndarray:
    rows = labels.with_row_index("row")
    events = rows.select("row", "event_days", task="task_index").explode("event_days", "task", keep_nulls=False)
    history = rows.select("row", task="history_index").explode("task", keep_nulls=False)
    return events.join(history, on=["row", "task"], how="anti")["event_days"].to_numpy()
