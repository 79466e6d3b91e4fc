"""Source hashes remembered by the sizes and dates of the files, for `prepare.trust_mtime`.

volumes/<hash of the path>.stamp    {"files": digest of every file's name, size, mtime; "source_hash": of their bytes}
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from ttepretrain.files import write_atomic
from ttepretrain.volume.source import State, source_hash


def trusted_hash(path: Path, folder: Path, state: State) -> str:
    """The remembered source_hash(path) if no file has changed its size or date; else a new one. Raises as it does.

    `state`: source_state(path) now.
    """
    try:
        known = json.loads(_stamp(path, folder).read_text())
        if known["files"] == _digest(state):
            return known["source_hash"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        pass
    return remembered_hash(path, folder, state)


def remembered_hash(path: Path, folder: Path, state: State) -> str:
    """source_hash(path), computed now and remembered."""
    found = source_hash(path, [file for file, *_ in state])
    write_atomic(_stamp(path, folder), json.dumps({"files": _digest(state), "source_hash": found}))
    return found


def _stamp(path: Path, folder: Path) -> Path:
    return folder / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:40]}.stamp"


def _digest(state: State) -> str:
    digest = hashlib.sha256()
    for file, _, size, mtime_ns, _ in state:
        digest.update(os.fsencode(file) + f"\0{size}\0{mtime_ns}\0".encode())
    return digest.hexdigest()
