"""What a stage was made from and what it made, so that it is done once per input."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from ttepretrain.files import sha256_of, write_json


def read_stamp(folder: Path, name: str, inputs: dict) -> dict | None:
    """The stamp `name` if it was written for these inputs and its files are as they were then; else None.

    Keys: inputs, files (name -> sha256), counts.
    """
    try:
        stamp = json.loads((folder / name).read_text())
        valid = stamp["inputs"] == inputs and all(sha256_of(folder / n) == h for n, h in stamp["files"].items())
        return stamp if valid and "counts" in stamp else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write_stamp(folder: Path, name: str, inputs: dict, files: Iterable[str], counts: dict) -> dict:
    """The stamp, now on disk. To be written last: a kill before it leaves a stage that is done again."""
    hashes = {file: sha256_of(folder / file) for file in sorted(files)}
    write_json(folder / name, {"inputs": inputs, "files": hashes, "counts": counts})
    return json.loads((folder / name).read_text())
