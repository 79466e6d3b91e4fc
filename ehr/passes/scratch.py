"""What one pass over the records leaves for the next, in files of a scratch folder.

survey  --spool: moments and codes of the wanted subjects' events as integers, 4 bytes per event-->  count
count   --stash: state of each code and ancestor in each study, 25 kB per study-->                   label rows

Moment: successive events of one subject at one time; a death is a moment of its own, as its time may be read otherwise.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import polars as pl

from ehr.passes.cells import Cells, code_type
from ttepretrain.errors import IntegrityError, declared_full_disk

SCRATCH_FILES = "the label stage's scratch files"  # in messages


def _path(folder: Path, number: int, part: str) -> Path:
    return folder / f".{number}.{part}.tmp"  # ttepretrain.files.TEMPORARY: prepare removes what a kill left


# Files and their types, beside code_type; a spool and a stash may have the same number.
_SPOOLED = {"time": np.int64, "size": np.uint32}
_STASHED = {
    "cell_count": np.int64, "cell_timed": np.int64, "cell_code": None, "cell_state": np.uint8, "cell_days": np.float64
}  # fmt: skip


class SpoolWriter:
    """Takes the events of some files batch by batch."""

    def __init__(self, folder: Path, number: int):
        self._folder, self._number = folder, number
        self._num_events = self._num_moments = self._num_names = 0
        self._names = [pl.Series("code", [], pl.String)]
        self._open = ExitStack()
        self._files = {
            p: self._open.enter_context(_path(folder, number, p).open("wb")) for p in ("time", "size", "code")
        }

    def __enter__(self) -> SpoolWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def close_names(self) -> tuple[pl.Series, np.ndarray]:
        """Unique names, and the place in them of every name of every batch. Writes both."""
        every = pl.concat(self._names).to_arrow().dictionary_encode()
        names, place = (pl.Series("code", pl.from_arrow(part)) for part in (every.dictionary, every.indices))
        names.to_frame().write_ipc(_path(self._folder, self._number, "names"))
        _path(self._folder, self._number, "place").write_bytes(place.to_numpy().data)
        return names, place.to_numpy()

    def _write(self, part: str, column: np.ndarray) -> None:
        self._files[part].write(column.data)  # tofile reports a full disk without its errno

    def _widen(self) -> None:
        """Writes the codes so far again."""
        self._files["code"].close()
        path = _path(self._folder, self._number, "code")
        narrow = np.fromfile(path, np.uint16)
        self._files["code"] = self._open.enter_context(path.open("wb"))
        self._write("code", narrow.astype(np.int32))

    def append(self, time: np.ndarray, size: np.ndarray, code: np.ndarray, names: pl.Series) -> tuple[int, int]:
        """Place of the first of the moments, and of the first of the events.

        time, size: us and number of events of every moment. code: place in names of every event.
        """
        first = self._num_moments, self._num_events
        self._num_moments, self._num_events = self._num_moments + len(time), self._num_events + len(code)
        before, self._num_names = self._num_names, self._num_names + len(names)
        self._names.append(names)
        if code_type(self._num_names) != code_type(before):
            self._widen()
        self._write("time", time)
        self._write("size", size.astype(_SPOOLED["size"]))
        self._write("code", (code + np.int32(before)).astype(code_type(self._num_names)))
        return first


def read_spool(
    folder: Path, number: int, subjects: pl.DataFrame, names: pl.Series
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """time (us) and size of the moments, code (place in names, int32) of the events of one spool's subjects.

    subjects: rows of Survey.subjects; what comes back is in their order.
    """
    from ehr.passes.moments import looked_up  # a worker's

    place = np.fromfile(_path(folder, number, "place"), np.int32)
    types = _SPOOLED | {"code": code_type(len(place))}
    time, size, code = (np.memmap(_path(folder, number, part), dtype, "r") for part, dtype in types.items())
    numbers = pl.DataFrame({"code": names}).with_row_index("number")
    own = pl.read_ipc(_path(folder, number, "names")).join(numbers, on="code", how="left", maintain_order="left")
    # null: a string that no event of a wanted subject has
    place = own["number"].fill_null(0).cast(pl.Int32).to_numpy().take(place)
    moments = _places(subjects["first_moment"].to_numpy(), subjects["moments"].to_numpy())
    events = _places(subjects["begin"].to_numpy(), subjects["rows"].to_numpy())
    return np.asarray(time[moments]), size[moments].astype(np.int64), looked_up(place, np.asarray(code[events]))


def _places(begin: np.ndarray, count: np.ndarray) -> slice | np.ndarray:
    """begin[0].., begin[1]..; as a slice where they are contiguous."""
    beside = (begin[1:] == (begin + count)[:-1]).all()
    return slice(int(begin[0]), int(begin[-1] + count[-1])) if beside else slices(begin, count)


def slices(begin: np.ndarray, count: np.ndarray) -> np.ndarray:
    """begin[0], begin[0] + 1, ... for count[0] numbers, then the same of begin[1], ..."""
    numbers = np.repeat(begin - (np.cumsum(count) - count), count)
    numbers += np.arange(len(numbers))
    return numbers


def write_stash(folder: Path, number: int, cells: Cells) -> None:
    with declared_full_disk(folder, SCRATCH_FILES):
        for part, column in zip(_STASHED, cells):
            _path(folder, number, part).write_bytes(column.data)


def read_stash(folder: Path, number: int, num_codes: int) -> Cells:
    """Mapped, not read: at 23,000 studies the cells take 600 MB. IntegrityError where they are not as written."""
    code = code_type(num_codes)
    cells = Cells(*(_mapped(_path(folder, number, part), dtype or code) for part, dtype in _STASHED.items()))
    sizes = len(cells.code), len(cells.state), len(cells.days)
    if (cells.count.sum(), cells.count.sum(), cells.timed.sum()) != sizes or len(cells.count) != len(cells.timed):
        raise IntegrityError(f"{SCRATCH_FILES} changed while they were in use; run again, and leave them alone")
    return cells


def _mapped(path: Path, dtype: type) -> np.ndarray:
    if not path.stat().st_size:
        return np.empty(0, dtype)  # nothing cannot be mapped
    return np.asarray(np.memmap(path, dtype, "r"))  # slicing a memmap takes ten times as long


def scratch_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob(".*.tmp"))
