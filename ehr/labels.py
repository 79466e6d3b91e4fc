"""Label rows of all studies, from what `count_shard` left of each shard's: codes of a study --> its tasks.

A task is a code or an ancestor, so its events are those of its column: the records are not read again.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from ehr.passes.cells import Cells
from ehr.passes.scratch import read_stash
from ehr.passes.shard import Shard

ROWS_TOGETHER = 256  # their cells take 6 MB


def with_lists(
    people: pl.DataFrame, scratch: Path, shards: list[Shard], names: pl.Series, tasks: np.ndarray
) -> pl.DataFrame:
    """Adds the list columns of schema.LABELS, and past_codes, to rows of studies.

    people: study (row number), and what else there is. names: all codes in string order. tasks: code of every task.
    """
    task_of = np.full(len(names), -1, np.int32)
    task_of[tasks] = np.arange(len(tasks))
    number = np.concatenate([shard.studies["study"].to_numpy() for shard in shards])
    place_of = np.empty(number.max() + 1, np.int64)
    place_of[number] = np.arange(len(number))
    shelf = _Shelf([read_stash(scratch, shard.number, len(names)) for shard in shards])
    past = pl.Enum(names)

    def part(begin: int) -> pl.DataFrame:
        its = people[begin : begin + ROWS_TOGETHER]
        return its.hstack(_lists(shelf.take(place_of[its["study"].to_numpy()]), task_of, len(tasks), past))

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:  # the loops let each other run
        return pl.concat(threads.map(part, range(0, max(1, len(people)), ROWS_TOGETHER)), rechunk=False)


class _Shelf:
    """Cells of the studies of all shards, to be taken in any order."""

    def __init__(self, shards: list[Cells]):
        self._shards = shards
        self._shard = np.repeat(np.arange(len(shards)), [len(cells.count) for cells in shards])
        self._count, self._timed = (np.concatenate([getattr(c, part) for c in shards]) for part in ("count", "timed"))
        self._begin, self._first_day = (
            np.concatenate([np.cumsum(getattr(c, part)) - getattr(c, part) for c in shards])
            for part in ("count", "timed")
        )

    def take(self, place: np.ndarray) -> Cells:
        """place: where the studies lie, shard after shard."""
        cells, days = (
            list(zip(self._shard[place].tolist(), begin[place].tolist(), (begin + count)[place].tolist()))
            for begin, count in ((self._begin, self._count), (self._first_day, self._timed))
        )

        def joined(part: str, pieces: list[tuple[int, int, int]]) -> np.ndarray:
            columns = [getattr(shard, part) for shard in self._shards]
            return np.concatenate([columns[0][:0], *(columns[n][begin:end] for n, begin, end in pieces)])

        code, state = joined("code", cells), joined("state", cells)
        return Cells(self._count[place], self._timed[place], code, state, joined("days", days))


def _lists(cells: Cells, task_of: np.ndarray, num_tasks: int, past: pl.Enum) -> list[pl.Series]:
    from ehr.passes.loops import task_rows  # half a second of imports

    rows = task_rows(cells, task_of, num_tasks)
    events, history, visit, known = rows.length
    return [
        _cut("task_index", events, rows.event),
        _cut("event_days", events, rows.event_days),
        _cut("history_index", history, rows.history),
        _cut("visit_index", visit, rows.visit),
        _cut("past_codes", known, rows.past).list.eval(pl.element().cat.to(past)),
    ]


def _cut(name: str, length: np.ndarray, values: np.ndarray) -> pl.Series:
    """The values cut into lists of the given lengths."""
    offsets, flat = np.zeros(len(length) + 1, np.int64), pl.Series(values).to_arrow()
    np.cumsum(length, out=offsets[1:])
    # from_buffers: pa.array would import pandas, .7 s
    cut = pa.Array.from_buffers(pa.large_list(flat.type), len(length), [None, pa.py_buffer(offsets)], children=[flat])
    return pl.Series(name, pl.from_arrow(cut))
