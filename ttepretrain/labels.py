"""LabelTable: survival labels of many studies, sparse over tasks (numpy only).

N studies, K tasks. Only observed events are stored; every other task of a row is censored at the row's `censor_days`.

    study        event A           end of follow-up
      |------------X--------------------|         A: event at X,  B: censored at the end
      t=0 days     41                   730
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ttepretrain.errors import IntegrityError
from ttepretrain.tasks import TaskSet

if TYPE_CHECKING:
    import pyarrow


@dataclass(frozen=True)
class Ragged:
    """One ascending int list per row, in compressed sparse row form."""

    offset: np.ndarray  # int64 [N + 1]
    index: np.ndarray  # int32 [offset[-1]]

    @classmethod
    def of_mask(cls, mask_NK: np.ndarray) -> Ragged:
        """The columns that are true, row by row."""
        return cls(np.concatenate([[0], np.cumsum(mask_NK.sum(1))]), np.nonzero(mask_NK)[1].astype(np.int32))

    @property
    def row(self) -> np.ndarray:
        """Row number of every entry, int64 [offset[-1]]."""
        return np.repeat(np.arange(len(self.offset) - 1), np.diff(self.offset))

    @property
    def not_ascending(self) -> np.ndarray:
        """bool, of every entry: not greater than the one before it in its row."""
        late = np.zeros(len(self.index), bool)
        late[1:] = self.index[1:] <= self.index[:-1]
        late[self.offset[:-1][self.offset[:-1] < len(late)]] = False
        return late

    def entries(self, rows: np.ndarray) -> np.ndarray:
        """Positions in `index` of the given rows' entries, row after row."""
        start, count = self.offset[rows], np.diff(self.offset)[rows]
        ends = np.cumsum(count)
        return np.arange(ends[-1] if len(ends) else 0) + np.repeat(start - (ends - count), count)

    def take(self, rows: np.ndarray) -> Ragged:
        count = np.diff(self.offset)[rows]
        return Ragged(np.concatenate([[0], np.cumsum(count)]), self.index[self.entries(rows)])


@dataclass(frozen=True)
class LabelTable:
    """Labels of N studies. All times are days from the study (float64)."""

    censor_days: np.ndarray  # float64 [N]; > blackout
    events: Ragged  # task of every observed event (blackout < T <= censor)
    event_days: np.ndarray  # float64, aligned with events.index
    history: Ragged  # tasks with any event at or before t0 + blackout
    visit: Ragged  # tasks coded in the scan's own visit

    def __len__(self) -> int:
        return len(self.censor_days)

    def take(self, rows: np.ndarray) -> LabelTable:
        """The given rows, in the given order."""
        return LabelTable(
            self.censor_days[rows],
            self.events.take(rows),
            self.event_days[self.events.entries(rows)],
            self.history.take(rows),
            self.visit.take(rows),
        )

    def check(self, tasks: TaskSet | None) -> None:
        """Raise IntegrityError naming the column and the first value that breaks its rule."""
        blackout_days, num_tasks = (0.0, np.inf) if tasks is None else (tasks.blackout_days, tasks.num_tasks)
        for name, ragged in (("task_index", self.events), ("history_index", self.history), ("visit_index", self.visit)):
            if len(late := np.flatnonzero(ragged.not_ascending)):
                raise _refusal(f"{name} must ascend within a row; got {ragged.index[late[0]]} a second time or late")
            wrong = ragged.index[(ragged.index < 0) | (ragged.index >= num_tasks)]
            if len(wrong):
                raise _refusal(f"{name} must be one of {num_tasks:g} tasks; got {wrong[0]}")
        wrong = self.censor_days[~((self.censor_days > blackout_days) & np.isfinite(self.censor_days))]
        if len(wrong):
            raise _refusal(f"censor_days must lie after the blackout of {blackout_days:g} days; got {wrong[0]:g}")
        censor_days = np.repeat(self.censor_days, np.diff(self.events.offset))
        wrong = np.flatnonzero(~((self.event_days > blackout_days) & (self.event_days <= censor_days)))
        if len(wrong):
            raise _refusal(
                f"event_days must lie after the blackout of {blackout_days:g} days and not after the row's censor_days "
                f"of {censor_days[wrong[0]]:g}; got {self.event_days[wrong[0]]:g}"
            )

    def follow_up_days(self, subject_N: np.ndarray, least: int) -> float:
        """Whole days for which `least` subjects (or all) were followed, each for the longest of its studies."""
        subjects, subject_N = np.unique(subject_N, return_inverse=True)
        longest = np.zeros(len(subjects))
        np.maximum.at(longest, subject_N, self.censor_days)
        return float(np.floor(np.sort(longest)[-min(least, len(longest))]))

    @classmethod
    def read(cls, path: Path, tasks: TaskSet | None = None) -> tuple[LabelTable, dict[str, np.ndarray]]:
        """Table of `labels.parquet` and its id columns (study_id, subject_id, split), row for row.

        Raises IntegrityError for what the likelihood takes on trust: no pair twice, and blackout < event <= censor.
        tasks: those that the indices refer to; None: only what needs no tasks is checked.
        """
        import pyarrow.parquet as parquet

        ids, lists = ["study_id", "subject_id", "split"], ["task_index", "event_days", "history_index", "visit_index"]
        table = parquet.read_table(path, columns=[*ids, "censor_days", *lists]).combine_chunks()
        index, days, history, visit = (_lists(table[name], name) for name in lists)
        if not np.array_equal(index[0], days[0]):
            raise _refusal("task_index and event_days differ in length")
        labels = cls(
            table["censor_days"].to_numpy(),
            Ragged(index[0], index[1].astype(np.int32)),
            days[1].astype(np.float64),
            Ragged(history[0], history[1].astype(np.int32)),
            Ragged(visit[0], visit[1].astype(np.int32)),
        )
        labels.check(tasks)
        return labels, {name: table[name].to_numpy(zero_copy_only=False) for name in ids}


def _lists(column: pyarrow.ChunkedArray, name: str) -> tuple[np.ndarray, np.ndarray]:
    array = column.combine_chunks()
    values = array.flatten()
    if array.null_count or values.null_count:
        raise _refusal(f"{name} holds nulls")
    offsets = array.offsets.to_numpy().astype(np.int64)
    return offsets - offsets[0], values.to_numpy(zero_copy_only=False)


def _refusal(what: str) -> IntegrityError:
    return IntegrityError(f"labels.parquet: {what}; run jobs.prepare again")
