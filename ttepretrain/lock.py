"""One job per output folder."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ttepretrain.errors import IntegrityError

LOCK_NAME = ".lock"


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """The folder is this process's for the block; raises IntegrityError naming the holder when it is another's.

    An flock: the kernel drops it with the process, so a killed job leaves nothing to clean up.
    """
    with (folder / LOCK_NAME).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise IntegrityError(f"{folder} is in use by {holder}; wait for it, or stop it") from None
        file.truncate(0)
        file.write(_self())
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _self() -> str:
    job = os.environ.get("SLURM_JOB_ID")
    return f"process {os.getpid()} on {socket.gethostname()}" + (f" (SLURM job {job})" if job else "")
