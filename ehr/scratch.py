"""What one pass over the records leaves for the next, in files of a scratch folder.

survey  --spool: moments and codes of the wanted subjects' events as integers, 6 bytes per event-->  count
count   --stash: what each study knows of each code and ancestor, 34 kB per study-->                 label

Moment: successive events of one subject at one time; a death is a moment of its own, as its time may be read otherwise.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from ehr.grid import FEATURE, HISTORY, Cells, slices
from ehr.schema import DAY_US
from ehr.timeline import NEVER


def _path(folder: Path, number: int, part: str) -> Path:
    return folder / f".{number}.{part}.tmp"  # ttepretrain.files.TEMPORARY: prepare removes what a kill left


# Files and their types; a spool and a stash may have the same number.
_SPOOLED = {"time": np.int64, "size": np.uint32, "code": np.int32}
_STASHED = {"cells": np.int64, "cell_code": np.int32, "cell_state": np.uint8, "cell_days": np.float64}
_TIMED, _VISIT = 4, 8  # bits of a cell's state beside those of its level


class SpoolWriter:
    """Takes the events of some files batch by batch."""

    def __init__(self, folder: Path, number: int):
        self._folder, self._number = folder, number
        self._num_events = self._num_moments = self._num_names = 0
        self._names = [pl.Series("code", [], pl.String)]
        self._open = ExitStack()
        self._files = [self._open.enter_context(_path(folder, number, part).open("wb")) for part in _SPOOLED]

    def __enter__(self) -> SpoolWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def close_names(self) -> tuple[pl.Series, np.ndarray]:
        """Unique names, and the place in them of every name of every batch. Writes both."""
        every = pl.concat(self._names).to_arrow().dictionary_encode()
        names, place = (pl.Series("code", pl.from_arrow(part)) for part in (every.dictionary, every.indices))
        names.to_frame().write_ipc(_path(self._folder, self._number, "names"))
        place.to_numpy().tofile(_path(self._folder, self._number, "place"))
        return names, place.to_numpy()

    def append(self, time: np.ndarray, size: np.ndarray, code: np.ndarray, names: pl.Series) -> tuple[int, int]:
        """Place of the first of the moments, and of the first of the events.

        time, size: us and number of events of every moment. code: place in names of every event.
        """
        first = self._num_moments, self._num_events
        self._num_moments, self._num_events = self._num_moments + len(time), self._num_events + len(code)
        columns = time, size, code + np.int32(self._num_names)
        for file, column, dtype in zip(self._files, columns, _SPOOLED.values()):
            column.astype(dtype, copy=False).tofile(file)
        self._names.append(names)
        self._num_names += len(names)
        return first


def read_spool(
    folder: Path, number: int, subjects: pl.DataFrame, names: pl.Series
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """time (us) and size of the moments, code (place in names, int32) of the events of one spool's subjects.

    subjects: rows of Survey.subjects; what comes back is in their order.
    """
    time, size, code = (np.memmap(_path(folder, number, part), dtype, "r") for part, dtype in _SPOOLED.items())
    numbers = pl.DataFrame({"code": names}).with_row_index("number")
    own = pl.read_ipc(_path(folder, number, "names")).join(numbers, on="code", how="left", maintain_order="left")
    # null: a string that no event of a wanted subject has
    place = own["number"].fill_null(0).cast(pl.Int32).to_numpy()
    place = place.take(np.fromfile(_path(folder, number, "place"), np.int32))
    moments = _places(subjects["first_moment"].to_numpy(), subjects["moments"].to_numpy())
    events = _places(subjects["begin"].to_numpy(), subjects["rows"].to_numpy())
    return np.asarray(time[moments]), size[moments].astype(np.int64), place.take(code[events])


def _places(begin: np.ndarray, count: np.ndarray) -> slice | np.ndarray:
    """begin[0].., begin[1]..; as a slice where they lie beside each other."""
    beside = (begin[1:] == (begin + count)[:-1]).all()
    return slice(int(begin[0]), int(begin[-1] + count[-1])) if beside else slices(begin, count)


@dataclass(frozen=True)
class Stash:
    """Cells of a shard's followed studies that say something, ascending by row and code."""

    count: np.ndarray  # int64, cells of each of the shard's studies
    code: np.ndarray
    days: np.ndarray  # T of the first event in the risk set; NaN without one
    history: np.ndarray  # bool
    feature: np.ndarray  # bool
    visit: np.ndarray  # bool

    @property
    def row(self) -> np.ndarray:
        """Place of each cell's study among the shard's studies."""
        return np.repeat(np.arange(len(self.count)), self.count)


def write_stash(folder: Path, number: int, cells: Cells, studies: pl.DataFrame) -> None:
    """studies: the rows of the cells, with index and followed."""
    timed = cells.first != NEVER
    says = timed | (cells.level >= HISTORY) | cells.visit
    says &= studies["followed"].to_numpy().take(cells.row)
    state = cells.level | (_TIMED * timed.view(np.uint8)) | (_VISIT * cells.visit.view(np.uint8))
    kept, events = np.flatnonzero(says), np.flatnonzero(says & timed)
    count = np.bincount(cells.row.take(kept), minlength=len(studies))
    days = (cells.first.take(events) - studies["index"].to_numpy().take(cells.row.take(events))) / DAY_US
    columns = count, cells.code.take(kept), state.take(kept), days
    for part, column in zip(_STASHED, columns):
        column.tofile(_path(folder, number, part))


def read_stash(folder: Path, number: int) -> Stash:
    count, code, state, timed_days = (
        np.fromfile(_path(folder, number, part), dtype) for part, dtype in _STASHED.items()
    )
    days, level = np.full(len(code), np.nan), state & (_TIMED - 1)
    days[(state & _TIMED) > 0] = timed_days
    return Stash(count, code, days, level >= HISTORY, level == FEATURE, (state & _VISIT) > 0)
