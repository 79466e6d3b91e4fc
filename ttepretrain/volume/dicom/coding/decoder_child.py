"""The child process that decodes compressed pixels: codecs are written in C, and malicious files exist. No torch here.

Input: a length, then a JSON list of CodedFile.
Output: for every frame of every file in turn, a status byte, a length and rows x columns x 2 bytes. If a frame cannot
be decoded, the answer ends with JSON instead: [reason, detail] of a refusal, or [errno, text] of the file system.

A picture that needs too much processor time ends the process by SIGPROF, one that waits too long by SIGALRM, and one
that needs too much memory by the limit of the address space.
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
from pydicom.encaps import encapsulate, generate_fragments, generate_frames, parse_fragments
from pydicom.pixels import get_decoder
from pydicom.pixels.utils import get_j2k_parameters

from ttepretrain.errors import BadStudy
from ttepretrain.volume.checks import Reason
from ttepretrain.volume.dicom.coding.syntaxes import DECODERS, DEFLATED, ENCAPSULATED

CPU_SECONDS_PER_PICTURE = 30.0  # processor time; on an overloaded machine, wall time can be many times as long
SECONDS_PER_PICTURE = 300.0  # wall time, for a decoder that waits for ever
MEMORY_BYTES = 2**30  # beyond what the process uses when it starts
FRAME, REFUSED, FAILED = 0, 1, 2
REQUEST, REPLY = struct.Struct("<Q"), struct.Struct("<BQ")
INFLATE_BYTES = 2**20  # at a time
FRAME_HEADERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # second byte of the marker, of JPEG and JPEG-LS
END_OF_IMAGE = b"\xff\xd9"  # ends every codestream of the JPEG family
NO_DECODER = "no decoder for this transfer syntax; most are read where ttepretrain[codecs] is installed"


@dataclass(frozen=True)
class CodedFile:
    """Where the compressed pixels of a file are, and what decoding them needs. Frames are grey, 16 bits."""

    file: str
    syntax: str
    at: int  # first byte of the pixels, or of the stream if all but the meta information is deflated
    skip: int  # bytes before the pixels in the inflated stream; else 0
    frames: int
    rows: int
    columns: int
    bits_stored: int
    signed: int  # 0 or 1


def serve() -> None:
    """Answer requests from standard input on standard output, until the parent closes its end or exits."""
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # some codecs print
    _fence()
    while len(head := requests.read(REQUEST.size)) == REQUEST.size:
        files = [CodedFile(**entry) for entry in json.loads(requests.read(*REQUEST.unpack(head)))]
        _answer(files, replies)
        replies.flush()


def _fence() -> None:
    """Limit this process and silence its libraries, which quote values of the file that may name the patient."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(
            number, signal.SIG_IGN
        )  # sent to whole process groups; the parent ends this process by closing its end
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would contain images
    with suppress(OSError, ValueError):  # outside Linux, only time is limited
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
    except BaseException as error:  # anything a damaged byte may cause; a Rust panic is not an Exception
        status, why = REFUSED, [Reason.UNREADABLE, f"pixels cannot be decoded ({type(error).__name__})"]
        if isinstance(error, OSError) and error.errno is not None:
            status, why = FAILED, [error.errno, os.strerror(error.errno)]
    text = json.dumps(why).encode()
    replies.write(REPLY.pack(status, len(text)) + text)


def _timed(frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """The same frames, each within its time limit. Waiting for the parent does not count."""
    limits = {signal.ITIMER_PROF: CPU_SECONDS_PER_PICTURE, signal.ITIMER_REAL: SECONDS_PER_PICTURE}
    while True:
        for clock, seconds in limits.items():
            signal.setitimer(clock, seconds)
        try:
            frame_HW = next(frames, None)
        finally:  # also after a refusal: a running timer would end the process while it waits for the next study
            for clock in limits:
                signal.setitimer(clock, 0)
        if frame_HW is None:
            return
        yield frame_HW


def decode(coded: CodedFile) -> Iterator[np.ndarray]:
    """Stored bit patterns [H, W], uint16, of each frame in the order of the file."""
    with Path(coded.file).open("rb") as handle:
        for frame_HW in _inflated(handle, coded) if coded.syntax == DEFLATED else _decoded(handle, coded):
            if frame_HW.shape != (coded.rows, coded.columns):
                raise BadStudy(Reason.UNREADABLE, "the picture does not have the size its header states")
            yield np.ascontiguousarray(frame_HW, np.uint16)


def _decoded(handle: BinaryIO, coded: CodedFile) -> Iterator[np.ndarray]:
    decoder = get_decoder(coded.syntax)
    installed = [name for name in DECODERS[coded.syntax] if name in decoder.available_plugins]
    if not installed:
        raise BadStudy(Reason.UNSUPPORTED_SYNTAX, NO_DECODER)
    if coded.syntax.startswith(ENCAPSULATED):
        for codestream in _codestreams(handle, coded):
            # decoders silently invent what is missing; zeros behind the end are padding
            if not codestream.rstrip(b"\0\xff").endswith(END_OF_IMAGE):
                raise BadStudy(Reason.UNREADABLE, "a compressed picture ends early")
    for codestream in _codestreams(handle, coded):
        # unsigned, whatever the header says: decoders and codestreams do not agree on where a sign is
        frames = decoder.iter_array(
            encapsulate([codestream]),
            raw=True,
            decoding_plugin=installed[0],
            number_of_frames=1,
            rows=coded.rows,
            columns=coded.columns,
            samples_per_pixel=1,
            photometric_interpretation="MONOCHROME2",
            bits_allocated=16,
            bits_stored=coded.bits_stored,
            pixel_representation=0,
        )
        frame_HW = next(frames)[0].astype(np.uint16, copy=False)
        yield _sign_extended(frame_HW, codestream, coded) if coded.signed else frame_HW


def _codestreams(handle: BinaryIO, coded: CodedFile) -> Iterator[bytes]:
    """The compressed bytes of each frame. The offset table counts only where frames lie in several fragments."""
    handle.seek(coded.at)
    _, length = struct.unpack("<4sL", handle.read(8))
    first = coded.at + 8 + length
    handle.seek(first)
    fragments, _ = parse_fragments(handle)
    if coded.frames not in (1, fragments):
        handle.seek(coded.at)
        yield from generate_frames(handle, number_of_frames=coded.frames)
        return
    handle.seek(first)
    parts = generate_fragments(handle)
    if coded.frames == 1:
        yield b"".join(parts)
    else:
        yield from parts


def _sign_extended(frame_HW: np.ndarray, codestream: bytes, coded: CodedFile) -> np.ndarray:
    """Patterns of 16 bits, where the codestream holds signed values of fewer bits.

    It may say so itself (JPEG 2000), or its values have more bits than BitsStored: copies of the sign. If it has as
    many, the header alone has the sign.
    """
    said = get_j2k_parameters(codestream) or {"precision": _jpeg_precision(codestream)}
    bits = int(said["precision"])
    if not (bits < 16 and (said.get("is_signed") or bits > coded.bits_stored)):
        return frame_HW
    return ((frame_HW << (16 - bits)).view(np.int16) >> (16 - bits)).view(np.uint16)


def _jpeg_precision(codestream: bytes) -> int:
    """Bits of the values in a codestream of JPEG or JPEG-LS; 16 for anything else."""
    at = 2
    while codestream[at : at + 1] == b"\xff" and len(codestream) > at + 4:
        if codestream[at + 1] in FRAME_HEADERS:
            return codestream[at + 4]
        at += 2 + int.from_bytes(codestream[at + 2 : at + 4], "big")
    return 16


def _inflated(handle: BinaryIO, coded: CodedFile) -> Iterator[np.ndarray]:
    """Frames of a deflated file, with little more than one in memory at a time."""
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
