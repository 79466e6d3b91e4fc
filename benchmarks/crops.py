"""A crop out of one cached volume: milliseconds and bytes read, ours in part and as a whole, MONAI's as a whole."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.scans import seconds_of

CROP_DHW = (64, 96, 96)  # at most; elsewhere 2/5 of the grid


def crops(studies, monai, drop_caches: Callable[[], None], repeats: int) -> dict:
    """Medians over `repeats` crops of every volume at random places, from the disk and from the page cache."""
    from data.volumes.cache import read_crop

    grid_DHW = studies.spec.shape_DHW
    size_DHW = tuple(min(crop, size * 2 // 5) for crop, size in zip(CROP_DHW, grid_DHW))

    def path(row: int) -> Path:
        return studies.folder / studies.volume_path[row]

    readers = {
        "ours": lambda row, box: read_crop(path(row), [edge.start for edge in box], size_DHW),
        "ours_whole": lambda row, box: studies.read_hu(row)[box],
        "monai": lambda row, box: monai[row][(0, *box[::-1])].numpy(),  # [1, W, H, D]
    }
    rng = np.random.default_rng(7)
    taken: dict[str, dict[str, list[float]]] = {name: {"cold": [], "warm": [], "bytes": []} for name in readers}
    for _ in range(repeats):
        for row in range(len(studies)):
            starts = [int(rng.integers(grid - size + 1)) for grid, size in zip(grid_DHW, size_DHW)]
            box = tuple(slice(start, start + size) for start, size in zip(starts, size_DHW))
            drop_caches()
            for name, read in readers.items():
                cold = seconds_of(lambda read=read, row=row, box=box: read(row, box))
                before = _bytes_read()
                warm = seconds_of(lambda read=read, row=row, box=box: read(row, box))
                for key, value in (("cold", cold), ("warm", warm), ("bytes", _bytes_read() - before)):
                    taken[name][key].append(value)
    return {"shape_DHW": list(size_DHW)} | {name: _medians(values) for name, values in taken.items()}


def _medians(values: dict[str, Sequence[float]]) -> dict:
    times = {f"{kind}_ms": round(1000 * statistics.median(values[kind]), 2) for kind in ("cold", "warm")}
    return times | {"bytes": int(statistics.median(values["bytes"]))}


def _bytes_read() -> int:
    """Of this process so far, from the page cache or below it."""
    return int(re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())[1])
