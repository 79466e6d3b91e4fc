"""Source hashes remembered by the sizes and dates of the files, for `prepare.trust_mtime`.

volumes/<hash of the path>.stamp    {"files": digest of every file's name, size, mtime; "source_hash": of their bytes}
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from ttepretrain.files import write_atomic
from ttepretrain.volume.refusal import reads_files
from ttepretrain.volume.source import source_files, source_hash


def trusted_hash(path: Path, folder: Path) -> str:
    """The remembered source_hash(path) if no file has changed its size or date; else a new one. Raises as it does."""
    try:
        known = json.loads(_stamp(path, folder).read_text())
        if known["files"] == _digest(path):
            return known["source_hash"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        pass
    return remembered_hash(path, folder)


def remembered_hash(path: Path, folder: Path) -> str:
    """source_hash(path), computed now and remembered."""
    files, found = _digest(path), source_hash(path)
    write_atomic(_stamp(path, folder), json.dumps({"files": files, "source_hash": found}))
    return found


def _stamp(path: Path, folder: Path) -> Path:
    return folder / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:40]}.stamp"


@reads_files
def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    for file in source_files(path):
        stat = file.stat()
        digest.update(os.fsencode(file) + f"\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    return digest.hexdigest()
