"""The files behind the image path of a study, and the hash of their bytes. No torch here."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from ttepretrain.errors import BadStudy
from ttepretrain.volume.checks import Reason
from ttepretrain.volume.refusal import reads_files

MAX_FILES = 20_000  # more in one folder is an archive, not a study


def is_nifti(path: Path) -> bool:
    return path.name.lower().endswith((".nii", ".nii.gz"))


def source_files(path: Path) -> list[Path]:
    """The file itself for NIfTI; else every file of the DICOM folder, or of the folder that holds the DICOM file.

    Links are followed. A broken link is listed, so that reading it fails: a slice is missing there.
    """
    refuse_special(path)
    if is_nifti(path) and not path.is_dir():
        return [path]
    candidates = _below(path) if path.is_dir() else path.parent.iterdir() if path.exists() else [path]
    files = []
    for candidate in candidates:
        if candidate.is_file() or candidate == path or (candidate.is_symlink() and not candidate.exists()):
            files.append(candidate)
        if len(files) > MAX_FILES:
            raise BadStudy(Reason.TOO_LARGE, f"more than {MAX_FILES} files in one folder")
    return sorted(files)


def refuse_special(path: Path) -> None:
    """BadStudy for a socket, a pipe or a device: opening one may block for ever."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise BadStudy(Reason.UNREADABLE, "neither a file nor a folder")


def _below(folder: Path) -> Iterator[Path]:
    """Everything in the folder and its subfolders, each once. Raises OSError for one that cannot be listed."""
    seen = set()
    for here, folders, names in os.walk(folder, onerror=_raise, followlinks=True):
        status = Path(here).stat()
        if (status.st_dev, status.st_ino) in seen:  # a link back up
            folders.clear()
        else:
            seen.add((status.st_dev, status.st_ino))
            yield from (Path(here, name) for name in names)


def _raise(error: OSError) -> None:
    raise error


@reads_files
def source_hash(path: Path) -> str:
    """Hash of the bytes of all source files. File names and their order do not change it."""
    digests = []
    for file in source_files(path):
        with file.open("rb") as handle:
            digests.append(hashlib.file_digest(handle, hashlib.blake2b).digest())
    return hashlib.blake2b(b"".join(sorted(digests)), digest_size=16).hexdigest()


@reads_files
def source_state(path: Path) -> list[tuple[Path, int, int, int, int]]:
    """Inode, size and times of every source file. Writing to a file changes them, even where its date is set back.

    A hard link, a chmod or a backup changes them too, and some network file systems report no change at all: compare
    hashes then.
    """
    stats = [(file, file.stat()) for file in source_files(path)]
    return [(file, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for file, stat in stats]
