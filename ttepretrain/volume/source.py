"""The files behind the image path of a study, and the hash of their bytes. No torch here."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
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
    files = []
    for file in _below(path) if path.is_dir() else _beside(path):
        files.append(file)
        if len(files) > MAX_FILES:
            raise BadStudy(Reason.TOO_LARGE, f"more than {MAX_FILES} files in one folder")
    return sorted(files)


def refuse_special(path: Path) -> None:
    """BadStudy for a socket, a pipe or a device: opening one may block for ever."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise BadStudy(Reason.UNREADABLE, "neither a file nor a folder")


def _below(folder: Path) -> Iterator[Path]:
    """Files in the folder and its subfolders, each once. Raises OSError for a folder that cannot be listed."""
    seen, waiting = set(), [folder]
    while waiting:
        here = waiting.pop()
        status = here.stat()
        if (status.st_dev, status.st_ino) in seen:  # a link back up
            continue
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(here) as entries:  # it knows most kinds without a call for every file
            for entry in entries:
                if _is_folder(entry):
                    waiting.append(here / entry.name)
                elif _is_listed(entry):
                    yield here / entry.name


def _beside(path: Path) -> Iterator[Path]:
    """Files in the folder of `path`, which is among them even if it is not there."""
    if not path.exists():
        yield path
        return
    with os.scandir(path.parent) as entries:
        yield from (path.parent / entry.name for entry in entries if entry.name == path.name or _is_listed(entry))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # links in a circle
        return False


def _is_listed(entry: os.DirEntry[str]) -> bool:
    """A regular file, or a link that leads to nothing; no pipe, socket or device."""
    try:
        return entry.is_file() or (entry.is_symlink() and not Path(entry.path).exists())
    except OSError:
        return True


class _Both:
    """Two sums of bytes that are read once."""

    def __init__(self) -> None:
        self.content, self.sha256 = hashlib.blake2b(), hashlib.sha256()

    def update(self, data: bytes) -> None:
        self.content.update(data)
        self.sha256.update(data)


@reads_files
def source_hash(path: Path, files: Sequence[Path] | None = None) -> str:
    """Hash of the bytes of all source files. File names and their order do not change it."""
    digests = []
    for file in source_files(path) if files is None else files:
        with file.open("rb") as handle:
            digests.append(hashlib.file_digest(handle, hashlib.blake2b).digest())
    return _joined(digests)


@reads_files
def source_sums(files: Sequence[Path]) -> tuple[str, dict[Path, str]]:
    """source_hash, and the sha256 of each file. Every file is read once."""
    digests, sha256 = [], {}
    for file in files:
        both = _Both()
        with file.open("rb") as handle:
            hashlib.file_digest(handle, lambda both=both: both)  # type: ignore[misc]  # it only calls update
        digests.append(both.content.digest())
        sha256[file] = both.sha256.hexdigest()
    return _joined(digests), sha256


def _joined(digests: list[bytes]) -> str:
    return hashlib.blake2b(b"".join(sorted(digests)), digest_size=16).hexdigest()


State = list[tuple[Path, int, int, int, int]]


@reads_files
def source_state(path: Path, files: Sequence[Path] | None = None) -> State:
    """Inode, size and times of every source file. Writing to a file changes them, even where its date is set back.

    A hard link, a chmod or a backup changes them too, and some network file systems report no change at all: compare
    hashes then.
    """
    stats = [(file, file.stat()) for file in (source_files(path) if files is None else files)]
    return [(file, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for file, stat in stats]
