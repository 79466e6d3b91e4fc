"""The files behind one study's image path, and the hash of their bytes. No torch here."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ttepretrain.errors import BadStudy
from ttepretrain.volume.checks import Reason

MAX_FILES = 20_000  # more in one folder is an archive, not a study


def is_nifti(path: Path) -> bool:
    return path.name.lower().endswith((".nii", ".nii.gz"))


def source_files(path: Path) -> list[Path]:
    """The file itself for NIfTI; else every file of the DICOM folder, or of the folder a DICOM file lies in.

    Links are followed. One that leads nowhere is listed, so that reading fails: a slice is missing, not absent.
    """
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


def _below(folder: Path) -> Iterator[Path]:
    """Everything in the folder and its folders, each of them once. Raises OSError for one that cannot be listed."""
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


def source_hash(path: Path) -> str:
    """Hash of the bytes of all source files; the same for other file names and another order."""
    with declared_os_errors():
        digests = []
        for file in source_files(path):
            with file.open("rb") as handle:
                digests.append(hashlib.file_digest(handle, hashlib.blake2b).digest())
        return hashlib.blake2b(b"".join(sorted(digests)), digest_size=16).hexdigest()


def source_state(path: Path) -> list[tuple]:
    """What the file system says of all source files; a write to one of them changes it, whatever its date says.

    So do a hard link, a chmod or a backup, and on some network file systems nothing at all: compare hashes then.
    """
    with declared_os_errors():
        stats = [(file, file.stat()) for file in source_files(path)]
    return [(file, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for file, stat in stats]


@contextmanager
def declared_os_errors() -> Iterator[None]:
    """BadStudy for what stays wrong with a file; EIO, ESTALE and their like pass, since trying again may help."""
    try:
        yield
    except PermissionError:
        raise BadStudy(Reason.PERMISSION, "the file may not be read") from None
    except FileNotFoundError:
        raise BadStudy(Reason.NOT_FOUND, "no such file or folder") from None
    except IsADirectoryError:
        raise BadStudy(Reason.UNREADABLE, "a folder where a file should be") from None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EINVAL):
            raise BadStudy(Reason.UNREADABLE, os.strerror(error.errno)) from None
        raise
