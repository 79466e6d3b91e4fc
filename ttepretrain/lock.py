"""One job per output folder, and one writer per output file.

An flock: the kernel drops it with the process, so a killed job leaves nothing to clean up.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ttepretrain.errors import IntegrityError

LOCK_NAME = ".lock"


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """The folder is this process's for the block; raises IntegrityError naming the holder when it is another's."""
    with _open(folder / LOCK_NAME) as file:
        _take(file, folder)
        try:
            yield
        finally:
            file.truncate(0)


@contextmanager
def file_lock(path: Path, wait: bool = False) -> Iterator[None]:
    """Nobody else writes `path` in the block; raises IntegrityError naming the writer, unless it is to `wait`.

    `.NAME.lock` stands beside the file meanwhile, and is removed.
    """
    lock = path.with_name(f".{path.name}{LOCK_NAME}")
    file = _open(lock)
    try:
        _take(file, path, wait)
        while not _is(file, lock):  # its last holder removed it after it was opened here
            file.close()
            file = _open(lock)
            _take(file, path, wait)
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
    finally:
        file.close()


def _open(lock: Path) -> IO[str]:
    """Follows no link: the lock is emptied, and whoever may write its folder could choose which file."""
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        handle = os.open(lock, flags, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO):  # a link, a socket
            raise
    else:
        if stat.S_ISREG(os.fstat(handle).st_mode):
            return os.fdopen(handle, "a+")
        os.close(handle)
    raise IntegrityError(f"{lock} is not a regular file, as a lock must be; remove it")


def _take(file: IO[str], path: Path, wait: bool = False) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise IntegrityError(f"{path} cannot be locked ({error.strerror}); write to another disk") from None
        file.seek(0)
        holder = file.read().strip() or "another process"
        raise IntegrityError(f"{path} is in use by {holder}; wait for it, or stop it") from None
    file.truncate(0)
    file.write(_self())
    file.flush()


def _is(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _self() -> str:
    job = os.environ.get("SLURM_JOB_ID")
    return f"process {os.getpid()} on {socket.gethostname()}" + (f" (SLURM job {job})" if job else "")
