"""Files that are whole or absent: every write goes to a sibling first, reaches the disk, then takes its name."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ttepretrain.errors import declared_full_disk

TEMPORARY = ".*.tmp"  # glob of the siblings that a kill leaves behind
_calls: Counter[str] = Counter()


@contextmanager
def replacing(path: Path, mode: int = 0o644) -> Iterator[Path]:
    """Path to write to; when the block ends well, that file becomes `path`. A kill leaves the old file or the new one.

    The file has the permissions `mode` from the first byte on, less what the umask or the replaced file forbids.
    Raises ResourceError when the disk is full.
    """
    sibling = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    if path.exists():
        mode &= stat.S_IMODE(path.stat().st_mode)
    try:
        with declared_full_disk(path.parent, path.name):
            sibling.unlink(missing_ok=True)  # of a killed process with the same number
            handle = os.open(sibling, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode | stat.S_IWUSR)
            allowed = stat.S_IMODE(os.fstat(handle).st_mode)
            os.close(handle)
            yield sibling
            sibling.chmod(allowed)  # a library may have put a file of its own there
            sync(sibling)
            sibling.replace(path)
    finally:
        sibling.unlink(missing_ok=True)
    sync(path.parent)


def remove_leftovers(path: Path) -> None:
    """Remove what killed writers of `path` left beside it. Only for who holds the lock of `path`."""
    leftover = re.compile(re.escape(f".{path.name}.") + r"\d+\.tmp")
    for file in path.parent.iterdir():
        if leftover.fullmatch(file.name):
            file.unlink(missing_ok=True)


def write_atomic(path: Path, content: bytes | memoryview | str, mode: int = 0o644) -> None:
    """Write `content` to `path`, with the permissions `mode` from the first byte on."""
    with replacing(path, mode) as sibling:
        sibling.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, document: object) -> None:
    write_atomic(path, json.dumps(document, indent=1, allow_nan=False) + "\n")


def sync(path: Path) -> None:
    """Put a file's bytes, or a folder's names, on the disk for certain."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def files_below(folder: Path) -> list[str]:
    """Names of all files below a folder, relative to it, ascending. Follows links to folders, into each folder once."""
    names, seen = [], {os.path.realpath(folder)}
    for root, inner, files in os.walk(folder, followlinks=True):
        # a link to a folder above would go round forever, one to a folder beside would read everything twice
        places = {os.path.realpath(Path(root) / name): name for name in sorted(inner, reverse=True)}
        inner[:] = sorted(name for place, name in places.items() if place not in seen)
        seen |= places.keys()
        below = Path(os.path.relpath(root, folder))
        names += [(below / name).as_posix() for name in files]
    return sorted(names)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def crash_point(name: str) -> None:
    """Kill this process here when TTE_CRASH_AT=name:n says so, at the n-th call. For tests of recovery only."""
    wanted = os.environ.get("TTE_CRASH_AT")
    if wanted is None:
        return
    _calls[name] += 1
    if wanted == f"{name}:{_calls[name]}":
        os.kill(os.getpid(), signal.SIGKILL)
