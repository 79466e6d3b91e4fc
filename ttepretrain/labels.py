"""LabelTable: survival labels of many studies, sparse over tasks (numpy only).

N studies, K tasks. Only observed events are stored; every other task of a row is censored at the row's `censor_days`.

    study        event A           end of follow-up
      |------------X--------------------|         A: event at X,  B: censored at the end
      t=0 days     41                   730
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np


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

    @classmethod
    def read(cls, path: Path) -> tuple[LabelTable, dict[str, np.ndarray]]:
        """Table of `labels.parquet` and its id columns (study_id, subject_id, split), row for row."""
        import pyarrow.parquet as parquet

        ids, lists = ["study_id", "subject_id", "split"], ["task_index", "event_days", "history_index", "visit_index"]
        table = parquet.read_table(path, columns=[*ids, "censor_days", *lists]).combine_chunks()
        tasks, days, history, visit = (_lists(table[name]) for name in lists)
        labels = cls(
            table["censor_days"].to_numpy(),
            Ragged(tasks[0], tasks[1].astype(np.int32)),
            days[1].astype(np.float64),
            Ragged(history[0], history[1].astype(np.int32)),
            Ragged(visit[0], visit[1].astype(np.int32)),
        )
        return labels, {name: table[name].to_numpy(zero_copy_only=False) for name in ids}


def _lists(column) -> tuple[np.ndarray, np.ndarray]:
    array = column.combine_chunks()
    offsets = array.offsets.to_numpy().astype(np.int64)
    return offsets - offsets[0], array.flatten().to_numpy(zero_copy_only=False)
