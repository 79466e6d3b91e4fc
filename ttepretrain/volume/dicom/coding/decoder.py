"""Decode compressed pixels in a child process, which may crash, hang or run out of memory without harm to this one.

The child starts with the first compressed file, lives as long as this process, and is replaced when it dies.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import IO

import numpy as np

from ttepretrain.errors import BadStudy
from ttepretrain.volume.checks import Reason
from ttepretrain.volume.dicom.coding.decoder_child import (
    CPU_SECONDS_PER_PICTURE,
    FAILED,
    FRAME,
    REPLY,
    REQUEST,
    SECONDS_PER_PICTURE,
    CodedFile,
)

START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from ttepretrain.volume.dicom.coding.decoder_child import serve; serve()"
)
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
MAX_DEATHS = 3  # of children per study: some die because of other processes on the machine
TOO_SLOW = {  # by exit status; not retried: another child would take as long
    -signal.SIGPROF: f"a picture took more than {CPU_SECONDS_PER_PICTURE:g} s of the processor to decode",
    -signal.SIGALRM: f"a picture took more than {SECONDS_PER_PICTURE:g} s to decode",
}
PIPE_BYTES = 2**20  # how far the child decodes ahead

# One list per process: children inherited by a fork belong to its parent.
_idle: dict[int, list[subprocess.Popen[bytes]]] = {}


class _Died(Exception):
    pass


def decoded(files: Sequence[CodedFile]) -> Iterator[np.ndarray]:
    """Stored bit patterns, uint16 [H, W], of every frame of the files, in order. BadStudy if one cannot be decoded."""
    delivered = 0
    for _ in range(MAX_DEATHS):
        child, usable = _take(), False
        try:
            for number, frame_HW in enumerate(_frames(child, files)):
                if number == delivered:  # else an earlier child already delivered it
                    yield frame_HW
                    delivered += 1
            usable = True
            return
        except (BadStudy, OSError):
            usable = True
            raise
        except _Died:
            status = child.wait()
            if status in TOO_SLOW:
                raise BadStudy(Reason.DECODER, TOO_SLOW[status]) from None
        finally:
            if usable:
                _idle[os.getpid()].append(child)
            else:
                _stop(child)
    cause = "was killed" if status == -signal.SIGKILL else f"died of it (status {status})"
    raise BadStudy(Reason.DECODER, f"the decoding process {cause}, {MAX_DEATHS} times")


def _frames(child: subprocess.Popen[bytes], files: Sequence[CodedFile]) -> Iterator[np.ndarray]:
    request = json.dumps([asdict(coded) for coded in files]).encode()
    requests, _ = _pipes(child)
    try:
        requests.write(REQUEST.pack(len(request)) + request)
        requests.flush()
    except BrokenPipeError:
        raise _Died from None
    for coded in files:
        for _ in range(coded.frames):
            status, length = REPLY.unpack(_read(child, REPLY.size))
            if status != FRAME:
                why = json.loads(_read(child, length))
                raise OSError(*why) if status == FAILED else BadStudy(*why)
            stored = np.frombuffer(_read(child, coded.rows * coded.columns * 2), np.uint16)
            yield stored.reshape(coded.rows, coded.columns)


def _read(child: subprocess.Popen[bytes], count: int) -> bytes:
    data = _pipes(child)[1].read(count)
    if len(data) < count:
        raise _Died
    return data


def _pipes(child: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    assert child.stdin is not None  # _take asks for both
    assert child.stdout is not None
    return child.stdin, child.stdout


def _take() -> subprocess.Popen[bytes]:
    idle = _idle.setdefault(os.getpid(), [])
    with suppress(IndexError):
        return idle.pop()
    return subprocess.Popen(
        [sys.executable, "-c", START, json.dumps(sys.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | ENVIRONMENT,
        pipesize=PIPE_BYTES,
    )


def _stop(child: subprocess.Popen[bytes]) -> None:
    requests, replies = _pipes(child)
    child.kill()
    with suppress(BrokenPipeError):
        requests.close()
    replies.close()
    child.wait()


@atexit.register
def _stop_idle() -> None:
    for child in _idle.pop(os.getpid(), []):
        _stop(child)
