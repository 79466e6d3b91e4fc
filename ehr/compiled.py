"""Loops over events as machine code (numba)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar, cast

import numba

Loop = TypeVar("Loop", bound=Callable)

_HERE = Path(__file__).parent


def _sources() -> str:
    sources = b"".join(path.read_bytes() for path in sorted(_HERE.rglob("*.py")))
    return hashlib.sha256(sources).hexdigest()[:16]


# numba notices only changes of a loop's own file, not of the rules that it calls. The hash covers all of `ehr`, not
# only what a loop imports, unlike the key of the label files (data/labels/source_hash.py): one more compilation
# costs seconds, and every worker computes the hash before its first loop.
_KEPT = _HERE / "__pycache__" / f"numba-{_sources()}"


def compiled(loop: Loop) -> Loop:
    """The function as machine code: compiled at its first call, and kept for other processes where a folder allows."""
    before = numba.config.CACHE_DIR  # type: ignore[attr-defined]  # numba makes these names at run time
    numba.config.CACHE_DIR = str(_KEPT)  # type: ignore[attr-defined]
    try:
        with suppress(RuntimeError):  # no folder to write to
            return cast(Loop, numba.njit(cache=True, nogil=True)(loop))  # called as the loop is
        return cast(Loop, numba.njit(nogil=True)(loop))
    finally:
        numba.config.CACHE_DIR = before  # type: ignore[attr-defined]
