"""What INPUT means on the command line: the scans, and the key of each one's results. No torch here.

scan.nii.gz                  one scan, key `scan.nii.gz`
folder with DICOM in it      one scan, key: the folder's name
folder of many               every NIfTI file and every folder with DICOM directly in it, at any depth;
                             key: path relative to the argument
table.csv | table.parquet    columns key and image (a path relative to the table); the key as given

A key is text: bytes of a file name that are not UTF-8 stand in it as \\xNN.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ttepretrain.commands.folder_scans import LOST, FolderScans, described
from ttepretrain.commands.table_scans import SUFFIXES, read_scan_table
from ttepretrain.errors import ConfigError
from ttepretrain.log import log


@dataclass(frozen=True)
class Scan:
    key: str
    path: Path


def find_scans(inputs: Sequence[Path]) -> list[Scan]:
    """Scans of all arguments, in order; what folders hold besides is logged in one line.

    Raises ConfigError for none, a missing argument or a key used twice.
    """
    passed_over: Counter[str] = Counter()
    scans = [scan for path in inputs for scan in _scans_of(path, passed_over)]
    if passed_over:
        lost = any(kind in passed_over for kind in LOST)
        (log.warning if lost else log.info)("passed over in INPUT: %s", described(passed_over))
    if not scans:
        raise ConfigError("INPUT contains no NIfTI file and no DICOM folder")
    repeated = len(scans) - len({scan.key for scan in scans})
    if repeated:
        raise ConfigError(
            f"{repeated} of {len(scans)} scans have the same key as another; give a table with columns key and image"
        )
    return scans


def _scans_of(path: Path, passed_over: Counter[str]) -> list[Scan]:
    try:
        if path.is_dir():
            found = FolderScans(path)
            passed_over += found.passed_over
            return [Scan(_key_below(path, scan), scan) for scan in found.paths]
        there = path.exists() or path.is_symlink()
    except OSError as error:  # a folder on the way that may not be entered, a name that is too long
        raise ConfigError(f"INPUT {path} cannot be read: {error.strerror}") from None
    if not there:
        raise ConfigError(f"INPUT {path} does not exist")
    if path.name.lower().endswith(SUFFIXES):
        return [Scan(key, path.parent / image) for key, image in read_scan_table(path)]
    return [Scan(_text(path.name), path)]


def _key_below(root: Path, scan: Path) -> str:
    return _text(root.resolve().name if scan == root else scan.relative_to(root).as_posix())


def _text(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")
