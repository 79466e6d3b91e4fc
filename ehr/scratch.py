"""What one pass over the records leaves for the next, in files of a scratch folder.

survey  --spool: times and codes of the wanted subjects' events as integers, 12 bytes per event-->  count
count   --stash: what each study knows of each code and ancestor, 35 kB per study-->                label
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


class SpoolWriter:
    """Takes the events of some files batch by batch."""

    def __init__(self, folder: Path, number: int):
        self._folder, self._number, self._num_events, self._num_names = folder, number, 0, 0
        self._names = [pl.Series("code", [], pl.String)]
        self._open = ExitStack()
        self._time, self._code = (
            self._open.enter_context(_path(folder, number, part).open("wb")) for part in ("time", "code")
        )

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

    def append(self, time: np.ndarray, code: np.ndarray, names: pl.Series) -> int:
        """Place of the first of the events. code: place in names."""
        place, self._num_events = self._num_events, self._num_events + len(time)
        time.tofile(self._time)
        (code + np.int32(self._num_names)).tofile(self._code)
        self._names.append(names)
        self._num_names += len(names)
        return place


def read_spool(
    folder: Path, number: int, begin: np.ndarray, rows: np.ndarray, names: pl.Series
) -> tuple[np.ndarray, np.ndarray]:
    """time (int64 us) and code (place in names, int32) of one spool's events begin[0].., begin[1].., in this order."""
    time, code = (
        np.memmap(_path(folder, number, part), dtype, "r") for part, dtype in (("time", np.int64), ("code", np.int32))
    )
    numbers = pl.DataFrame({"code": names}).with_row_index("number")
    own = pl.read_ipc(_path(folder, number, "names")).join(numbers, on="code", how="left", maintain_order="left")
    # null: a string that no event of a wanted subject has
    place = own["number"].fill_null(0).cast(pl.Int32).to_numpy()
    place = place[np.fromfile(_path(folder, number, "place"), np.int32)]
    beside = (begin[1:] == (begin + rows)[:-1]).all()
    events = slice(int(begin[0]), int(begin[-1] + rows[-1])) if beside else slices(begin, rows)
    return np.asarray(time[events]), place[code[events]]


@dataclass(frozen=True)
class Stash:
    """Cells of a shard's followed studies that say something, ascending by row and code."""

    row: np.ndarray  # place among the shard's studies
    code: np.ndarray
    days: np.ndarray  # T of the first event in the risk set; NaN without one
    history: np.ndarray  # bool
    feature: np.ndarray  # bool
    visit: np.ndarray  # bool


def write_stash(folder: Path, number: int, cells: Cells, studies: pl.DataFrame) -> None:
    """studies: the rows of the cells, with index and followed."""
    says = (cells.first != NEVER) | (cells.level >= HISTORY) | cells.visit
    keep = np.flatnonzero(says & studies["followed"].to_numpy()[cells.row])
    row, first = cells.row[keep], cells.first[keep]
    days = (first - studies["index"].to_numpy()[row]) / DAY_US
    days[first == NEVER] = np.nan
    columns = {"row": row, "code": cells.code[keep], "days": days, "level": cells.level[keep]}
    pl.DataFrame(columns | {"visit": cells.visit[keep]}).write_ipc(_path(folder, number, "cells"))


def read_stash(folder: Path, number: int) -> Stash:
    table = pl.read_ipc(_path(folder, number, "cells"))
    row, code, days, level, visit = (table[name].to_numpy() for name in table.columns)
    return Stash(row, code, days, level >= HISTORY, level == FEATURE, visit)
