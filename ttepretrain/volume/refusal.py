"""What happens to a scan that cannot be read: how often reading is retried, and the reason it is refused with.

`jobs.prepare` and `ttepretrain doctor | embed | risk` all read through `read_or_refuse`: one bad scan never stops them.
No torch here.
"""

from __future__ import annotations

import errno
import os
import time
import traceback
from collections.abc import Callable
from functools import wraps
from pathlib import PurePath
from typing import ParamSpec, TypeVar

from ttepretrain.errors import BadStudy, DeclaredError
from ttepretrain.volume.checks import Reason

PASSING = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN)  # a network file system may recover from these
WAIT_SECONDS = (0.2, 1.0, 5.0)  # before each new attempt
TORCH_MEMORY = "can't allocate memory"  # in the RuntimeError that torch raises on the CPU

P = ParamSpec("P")
T = TypeVar("T")


def read_or_refuse(read: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | BadStudy:
    """read(*args, **kwargs), or the reason why this scan is refused.

    Any exception refuses the scan: one that nobody foresaw as UNEXPECTED with its type and place, never its message,
    which may contain a name. Only a DeclaredError, such as a full disk, passes through.
    """
    try:
        return read(*args, **kwargs)
    except BadStudy as refusal:
        return refusal
    except DeclaredError:
        raise
    except Exception as error:
        if _is_out_of_memory(error):
            return BadStudy(Reason.OUT_OF_MEMORY, "reading it took more memory than was free")
        return _of_os_error(error) if isinstance(error, OSError) else _unexpected(error)


def patiently(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """function(*args, **kwargs); an OSError from which a file system may recover is retried, and raised if it stays."""
    for wait in WAIT_SECONDS:
        try:
            return function(*args, **kwargs)
        except OSError as error:
            if error.errno not in PASSING:
                raise
            time.sleep(wait)
    return function(*args, **kwargs)


def reads_files(function: Callable[P, T]) -> Callable[P, T]:
    """Decorator for a function that reads the files of a scan: retries what may pass, BadStudy for what stays wrong."""

    @wraps(function)
    def patient(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return patiently(function, *args, **kwargs)
        except OSError as error:
            if _is_out_of_memory(error):
                raise
            raise _of_os_error(error) from None

    return patient


def _of_os_error(error: OSError) -> BadStudy:
    if isinstance(error, PermissionError):
        return BadStudy(Reason.PERMISSION, "the file may not be read")
    if isinstance(error, FileNotFoundError):
        return BadStudy(Reason.NOT_FOUND, "no such file or folder")
    if isinstance(error, IsADirectoryError):
        return BadStudy(Reason.UNREADABLE, "a folder where a file should be")
    return BadStudy(Reason.UNREADABLE, os.strerror(error.errno) if error.errno else type(error).__name__)


def _unexpected(error: Exception) -> BadStudy:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return BadStudy(Reason.UNEXPECTED, f"{type(error).__name__} in {PurePath(frame.filename).name}:{frame.lineno}")


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and TORCH_MEMORY in str(error))
