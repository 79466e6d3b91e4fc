"""Declared failures and the exit code each one ends a command with.

Anything else that escapes a command is a bug and exits 1 with its traceback.
"""

from __future__ import annotations

import errno
import io
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from types import FrameType
from typing import ClassVar

from ttepretrain.log import log, show_log
from ttepretrain.plain_text import plain


class ExitCode(IntEnum):
    """Exit status of every command; part of the interface (schedulers branch on it)."""

    OK = 0
    BUG = 1
    USAGE = 2  # command line or configuration
    BAD_DATA = 3  # more bad studies than allowed, or none left
    INTEGRITY = 4  # checkpoint, cache or input file does not match its checksum; folder held by another job
    RESOURCES = 5  # disk, memory
    NUMERICS = 6  # NaN or infinity in training
    LEAKAGE = 7  # a subject in two splits, held-out data in training, identifiers in an output
    INTERRUPTED = 75  # stopped by a signal, what was done is saved: run the same command again


MAX_BAD_FRACTION = 0.01  # share of refused scans that a command accepts
ALWAYS_ALLOWED = 10  # refused scans it accepts whatever their share, up to half of all

# What stops a command: a scheduler, a closed terminal, Ctrl-C. jobs.pretrain has its own handlers while it trains.
STOPPING = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT)
# A launcher's forward and the terminal's own delivery of one Ctrl-C arrive within milliseconds: one request, not two.
SAME_REQUEST_SECONDS = 0.5

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_IN_WORDS = tuple(f"(os error {number})" for number in _DISK_FULL)


class DeclaredError(Exception):
    """A failure with a stated cause and remedy; its message goes to the user without a traceback."""

    exit_code: ClassVar[ExitCode] = ExitCode.BUG


class ConfigError(DeclaredError, ValueError):
    exit_code = ExitCode.USAGE


class BadDataError(DeclaredError):
    exit_code = ExitCode.BAD_DATA


class IntegrityError(DeclaredError):
    exit_code = ExitCode.INTEGRITY


class ExportError(IntegrityError, ValueError):
    """An export that is damaged, or whose content no model can have."""


class ResourceError(DeclaredError):
    exit_code = ExitCode.RESOURCES


class NumericsError(DeclaredError):
    exit_code = ExitCode.NUMERICS


class LeakageError(DeclaredError):
    exit_code = ExitCode.LEAKAGE


class Interrupted(DeclaredError):
    """Stopped on request after a good save."""

    exit_code = ExitCode.INTERRUPTED


class BadStudy(Exception):
    """One study is refused. `code`: docs/reference/reason-codes.md; `detail` never holds an identifier or a path."""

    def __init__(self, code: str, detail: str):
        super().__init__(code, detail)  # both in args: the exception survives pickling between processes
        self.code = code
        self.detail = plain(detail)  # it may quote a header

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}"


def most_bad(num_scans: int, max_bad_fraction: float = MAX_BAD_FRACTION) -> float:
    """How many of `num_scans` may be refused before a command stops with BadDataError."""
    return min(max(ALWAYS_ALLOWED, max_bad_fraction * num_scans), num_scans / 2)


@contextmanager
def declared_full_disk(folder: Path, what: str) -> Iterator[None]:
    """ResourceError in place of any error that means a full disk. what: is written to the folder in the block."""
    try:
        yield
    except Exception as error:
        # polars gives the error number only in its text
        if getattr(error, "errno", None) not in _DISK_FULL and not str(error).endswith(_FULL_IN_WORDS):
            raise
        free = shutil.disk_usage(folder).free
        raise ResourceError(f"disk full ({free >> 20} MiB free) while writing {what}; free some space") from None


def exit_with(main: Callable[[list[str]], None], command: str, arguments: list[str] | None = None) -> None:
    """Run a command, show its log under the command's name, and exit with the code of what happened."""
    show_log(command)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name that is not UTF-8 must not end a command
    try:
        with _interrupted_by_signals():
            main(sys.argv[1:] if arguments is None else arguments)
    except DeclaredError as error:
        log.error("%s", error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        log.error("interrupted; run the same command again to resume")
        sys.exit(ExitCode.INTERRUPTED)


class _Stopped(KeyboardInterrupt):
    """Python ends a process by SIGINT, whatever its exit code, once `exec` of a text was left by KeyboardInterrupt
    itself; importing a dataclass is such a moment.
    """


@contextmanager
def _interrupted_by_signals() -> Iterator[None]:
    """Every signal of STOPPING raises KeyboardInterrupt, so that a command saves what is done, however it is stopped.

    One that is ignored stays so: `nohup` ignores SIGHUP. Programs that are started in the block begin with the
    system's own handlers; Ray's workers are such. Once one has come the process is to end: after the block it ignores
    them all.
    """
    if threading.current_thread() is not threading.main_thread():  # Python lets no other thread set handlers
        yield
        return
    first: list[float] = []

    def stop(_number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if first and now - first[0] < SAME_REQUEST_SECONDS:
            return
        first.append(now)
        raise _Stopped

    usual = (signal.SIG_DFL, signal.default_int_handler)
    previous = {number: signal.getsignal(number) for number in STOPPING if signal.getsignal(number) in usual}
    for number in previous:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in previous.items():  # a request that is repeated now must not decide the exit code
            signal.signal(number, signal.SIG_IGN if first else handler)
