"""Loops over events as machine code (numba)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import numba

Loop = TypeVar("Loop", bound=Callable)

_HERE = Path(__file__).parent


def _sources() -> str:
    sources = b"".join(path.read_bytes() for path in sorted(_HERE.rglob("*.py")))
    return hashlib.sha256(sources).hexdigest()[:16]


# numba notices only changes of the file that a loop stands in, and not of the rules that it calls. All of `ehr` is
# hashed, not what a loop imports as data/labels/code.py does for the label files: to compile once too often costs
# seconds, and every process asks before its first loop.
_KEPT = _HERE / "__pycache__" / f"numba-{_sources()}"


def compiled(loop: Loop) -> Loop:
    """The function as machine code: compiled at its first call, and kept for other processes where a folder allows."""
    before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, str(_KEPT)
    try:
        with suppress(RuntimeError):  # no folder to write to
            return numba.njit(cache=True, nogil=True)(loop)
        return numba.njit(nogil=True)(loop)
    finally:
        numba.config.CACHE_DIR = before
