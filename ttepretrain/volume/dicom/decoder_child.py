"""The child process that decodes compressed pixels: codecs are C, and files are made to hurt them. No torch here.

In: a length, then a JSON list of CodedFile. Out, for every frame of every file in turn: a status byte and a length,
then rows x columns x 2 bytes of it; or, in its place and ending the answer, as JSON [reason, detail] of a refusal or
[errno, text] of the file system.
A picture that takes too much of the processor ends the process by SIGPROF, one that only waits by SIGALRM, too much
memory by the limit of its address space.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import struct
import sys
import warnings
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from pydicom.encaps import generate_frames
from pydicom.pixels import get_decoder

from ttepretrain.errors import BadStudy
from ttepretrain.volume.checks import Reason
from ttepretrain.volume.dicom.syntaxes import DECODERS, DEFLATED, ENCAPSULATED

CPU_SECONDS_PER_PICTURE = 30.0  # of the processor: on an overloaded machine a sound picture takes many times as long
SECONDS_PER_PICTURE = 300.0  # on the wall's clock, for what neither computes nor ends
MEMORY_BYTES = 2**30  # beyond what the process holds when it starts
FRAME, REFUSED, FAILED = 0, 1, 2
REQUEST, REPLY = struct.Struct("<Q"), struct.Struct("<BQ")
INFLATE_BYTES = 2**20  # at a time
END_OF_IMAGE = b"\xff\xd9"  # of every codestream of the JPEG family
NO_DECODER = "no decoder for this transfer syntax; most are read where ttepretrain[codecs] is installed"


@dataclass(frozen=True)
class CodedFile:
    """Where a file's compressed pixels lie, and all that decoding them needs to know; frames of 16 bits, grey."""

    file: str
    syntax: str
    at: int  # first byte of the pixels' value, or of the stream where all but the meta information is deflated
    skip: int  # bytes of the inflated stream before the pixels; else 0
    frames: int
    rows: int
    columns: int
    bits_stored: int
    signed: int  # 0 or 1


def serve() -> None:
    """Answer on standard output what comes on standard input, until the parent closes its end or is gone."""
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # some codecs print
    _fence()
    while len(head := requests.read(REQUEST.size)) == REQUEST.size:
        files = [CodedFile(**entry) for entry in json.loads(requests.read(*REQUEST.unpack(head)))]
        _answer(files, replies)
        replies.flush()


def _fence() -> None:
    """Limits of this process, and silence: libraries quote values of the file, which may name the patient."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # sent to whole groups; the parent ends it, by closing its end
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold pictures
    with suppress(OSError, ValueError):  # not Linux: time alone is limited
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY_BYTES, held + MEMORY_BYTES))
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")


def _answer(files: list[CodedFile], replies: BinaryIO) -> None:
    why: list[str | int]
    try:
        for coded in files:
            for frame_HW in _timed(decode(coded)):
                replies.write(REPLY.pack(FRAME, frame_HW.nbytes))
                replies.write(frame_HW.data)
        return
    except BadStudy as refusal:
        status, why = REFUSED, [str(refusal.code), refusal.detail]
    except MemoryError:
        status, why = REFUSED, [Reason.DECODER, f"decoding takes more than {MEMORY_BYTES >> 20} MB"]
    except BaseException as error:  # whatever a damaged byte leads to; a panic of Rust is no Exception
        status, why = REFUSED, [Reason.UNREADABLE, f"pixels cannot be decoded ({type(error).__name__})"]
        if isinstance(error, OSError) and error.errno is not None:
            status, why = FAILED, [error.errno, os.strerror(error.errno)]
    text = json.dumps(why).encode()
    replies.write(REPLY.pack(status, len(text)) + text)


def _timed(frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """The same, each within its time; waiting for the parent does not count."""
    limits = {signal.ITIMER_PROF: CPU_SECONDS_PER_PICTURE, signal.ITIMER_REAL: SECONDS_PER_PICTURE}
    while True:
        for clock, seconds in limits.items():
            signal.setitimer(clock, seconds)
        try:
            frame_HW = next(frames, None)
        finally:  # a refusal too: an armed clock would end the process while it waits for the next study
            for clock in limits:
                signal.setitimer(clock, 0)
        if frame_HW is None:
            return
        yield frame_HW


def decode(coded: CodedFile) -> Iterator[np.ndarray]:
    """Stored values [H, W], int16 or uint16, of each frame in the file's order."""
    wanted = np.dtype(np.int16 if coded.signed else np.uint16)
    with Path(coded.file).open("rb") as handle:
        for frame_HW in _inflated(handle, coded) if coded.syntax == DEFLATED else _decoded(handle, coded):
            if frame_HW.shape != (coded.rows, coded.columns):
                raise BadStudy(Reason.UNREADABLE, "the picture does not have the size its header states")
            yield np.ascontiguousarray(frame_HW, wanted)


def _decoded(handle: BinaryIO, coded: CodedFile) -> Iterator[np.ndarray]:
    decoder = get_decoder(coded.syntax)
    installed = [name for name in DECODERS[coded.syntax] if name in decoder.available_plugins]
    if not installed:
        raise BadStudy(Reason.UNSUPPORTED_SYNTAX, NO_DECODER)
    handle.seek(coded.at)
    if coded.syntax.startswith(ENCAPSULATED):
        _check_ends(handle, coded.frames)
        handle.seek(coded.at)
    frames = decoder.iter_array(
        handle,
        indices=range(coded.frames),
        raw=True,
        decoding_plugin=installed[0],
        number_of_frames=coded.frames,
        rows=coded.rows,
        columns=coded.columns,
        samples_per_pixel=1,
        photometric_interpretation="MONOCHROME2",
        bits_allocated=16,
        bits_stored=coded.bits_stored,
        pixel_representation=coded.signed,
    )
    for frame_HW, _ in frames:
        yield frame_HW


def _check_ends(handle: BinaryIO, frames: int) -> None:
    """BadStudy where a codestream stops before its end: decoders make up the rest, and say nothing."""
    for codestream in generate_frames(handle, number_of_frames=frames):
        if not codestream.rstrip(b"\0\xff").endswith(END_OF_IMAGE):  # what follows is padding
            raise BadStudy(Reason.UNREADABLE, "a compressed picture ends early")


def _inflated(handle: BinaryIO, coded: CodedFile) -> Iterator[np.ndarray]:
    """Frames out of a deflated file, of which never much more than one is in memory."""
    handle.seek(coded.at)
    size, skip, left = coded.rows * coded.columns * 2, coded.skip, coded.frames
    held = bytearray()
    for part in _inflate(handle):
        passed = min(skip, len(part))
        skip -= passed
        held += part[passed:]
        while left and len(held) >= size:
            yield np.frombuffer(held[:size], "<u2").reshape(coded.rows, coded.columns)
            del held[:size]
            left -= 1
        if not left:
            return
    raise BadStudy(Reason.TRUNCATED, "the deflated stream ends early")


def _inflate(handle: BinaryIO) -> Iterator[bytes]:
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    data = handle.read(INFLATE_BYTES)
    while data and not stream.eof:
        yield stream.decompress(data, INFLATE_BYTES)
        data = stream.unconsumed_tail or handle.read(INFLATE_BYTES)
    yield stream.flush()
