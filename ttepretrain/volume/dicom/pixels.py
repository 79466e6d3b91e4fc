"""From an ordered DICOM stack to HU: unused bits, rescaling, padding, duplicates, even spacing.

Uncompressed pixels are read here, from the place stated in the header. All others are decoded in a child process.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from ttepretrain.errors import BadStudy
from ttepretrain.volume.checks import PADDING_HU, Flag, Reason
from ttepretrain.volume.dicom.decoder import decoded
from ttepretrain.volume.dicom.decoder_child import CodedFile
from ttepretrain.volume.dicom.frames import Picture
from ttepretrain.volume.dicom.headers import Header
from ttepretrain.volume.dicom.stack import Stack
from ttepretrain.volume.dicom.syntaxes import DEFLATED, EXPLICIT_BIG, NATIVE
from ttepretrain.volume.dicom.tags import SliceHeader, numbers

INT16 = -(2**15), 2**15 - 1


@dataclass(frozen=True)
class Storage:
    """How a stored 16-bit value becomes HU."""

    bits: int
    signed: bool
    clear: bool  # bits above the stored ones may have any value
    padding: tuple[int, int] | None  # lowest and highest value that is not a measurement
    slope: float
    intercept: float


def read_stack(stack: Stack, pictures: Sequence[Picture]) -> tuple[np.ndarray, tuple[Flag, ...]]:
    """HU [D, H, W] on the even grid of the stack, and flags. int16 if every value is whole, else float32."""
    slices = {(s.file, s.frame): (d, s) for d, place in enumerate(stack.places) for s in place}
    whole = all(s.slope == int(s.slope) and s.intercept == int(s.intercept) for _, s in slices.values())
    first = stack.places[0][0]
    hu_DHW = np.empty((len(stack.places), *first.shape_HW), np.int16 if whole else np.float32)
    flags: tuple[Flag, ...] = ()
    filled = np.zeros(len(hu_DHW), bool)
    for picture, stored_HW in _stored(pictures):
        d, header = slices[picture.header.file, picture.frame]
        hu_HW = to_hu(stored_HW, _storage(picture, header))
        if not filled[d]:
            hu_DHW[d], filled[d] = hu_HW, True
            continue
        if not np.array_equal(hu_DHW[d], hu_HW.astype(hu_DHW.dtype)):
            raise BadStudy(Reason.DUPLICATE_SLICE, "two different slices at one position")
        flags = (Flag.DUPLICATE_DROPPED,)
    flags += _suspicious(hu_DHW)
    if Flag.UNEVEN_SPACING in stack.flags:
        hu_DHW = _interpolate(hu_DHW, stack.offsets_mm, stack.grid_mm)
    return hu_DHW, flags


def _suspicious(hu_DHW: np.ndarray) -> tuple[Flag, ...]:
    """Flags for slices of a single value, and for the same image at two positions."""
    seen: dict[bytes, np.ndarray] = {}
    constant, repeated = 0, False
    for hu_HW in hu_DHW:
        if hu_HW.min() == hu_HW.max():
            constant += 1
            continue
        row = hu_HW[len(hu_HW) // 2].tobytes()  # compared first: there are many pairs of slices
        repeated |= row in seen and np.array_equal(seen[row], hu_HW)
        seen[row] = hu_HW
    flags = (Flag.CONSTANT_SLICE,) if 0 < constant < len(hu_DHW) else ()
    return (*flags, Flag.REPEATED_SLICE) if repeated else flags


def to_hu(stored_HW: np.ndarray, storage: Storage) -> np.ndarray:
    """HU of stored bit patterns (uint16): int16 if slope and intercept are whole, else float32."""
    spare = 16 - storage.bits if storage.clear else 0
    values = whole = stored_HW.astype(np.int16 if storage.signed else np.uint16, copy=False)
    if spare:
        values = values << spare
        values >>= spare
    slope, intercept = storage.slope, storage.intercept
    if slope != int(slope) or intercept != int(intercept):
        hu_HW = (values * slope + intercept).astype(np.float32)
    elif slope == 1 and abs(intercept) < 2**15:
        hu_HW = _shifted(values, int(intercept))
    else:
        hu_HW = np.clip(values.astype(np.int32) * int(slope) + int(intercept), *INT16).astype(np.int16)
    if storage.padding is not None:
        low, high = storage.padding
        hu_HW[(values >= low) & (values <= high)] = PADDING_HU
        if spare and low == high:  # the padding value needs more bits than are stored
            hu_HW[whole == low] = PADDING_HU
    return hu_HW


def _shifted(values_HW: np.ndarray, intercept: int) -> np.ndarray:
    """values + intercept, clipped to int16. A copy in 32 bits would take five times as long."""
    dtype = values_HW.dtype.type
    low, high = (np.clip(end - intercept, np.iinfo(dtype).min, np.iinfo(dtype).max) for end in INT16)
    # the sum may wrap around, but that of clipped values ends within int16
    return values_HW.clip(dtype(low), dtype(high)).view(np.int16) + np.int16(intercept)


def _storage(picture: Picture, header: SliceHeader) -> Storage:
    values = picture.values
    bits, signed = _bits(picture.header)
    padding = None
    value, limit = values.get("PixelPaddingValue"), values.get("PixelPaddingRangeLimit")
    if isinstance(value, int):
        ends = (value, limit if isinstance(limit, int) else value)
        # padding often has a different sign than the pixels: the sign of the pixels is used
        padded = [end % 65536 - 65536 * (signed and end % 65536 > 32767) for end in ends]
        padding = (min(padded), max(padded))
    return Storage(bits, signed, picture.header.syntax in (*NATIVE, DEFLATED), padding, header.slope, header.intercept)


def _bits(header: Header) -> tuple[int, bool]:
    """Number of stored bits, and whether they are signed."""
    bits, highest, signed = (
        int(numbers(header.values, keyword, 1, Reason.UNREADABLE)[0])
        for keyword in ("BitsStored", "HighBit", "PixelRepresentation")
    )
    if not 1 <= bits <= 16 or highest != bits - 1 or signed not in (0, 1):
        raise BadStudy(Reason.UNREADABLE, f"{bits} bits stored, highest bit {highest}, sign {signed}")
    return bits, bool(signed)


def _stored(pictures: Sequence[Picture]) -> Iterator[tuple[Picture, np.ndarray]]:
    """Every picture with its stored bit patterns, uint16 [H, W]. Uncompressed ones come first."""
    coded, order = [], []
    for _, group in groupby(pictures, key=lambda picture: id(picture.header)):
        frames = {picture.frame: picture for picture in group}
        header = next(iter(frames.values())).header
        if header.syntax in NATIVE:
            yield from _native(header, frames)
        else:
            coded.append(_coded(header))
            order += [frames.get(frame) for frame in range(coded[-1].frames)]
    if not coded:
        return
    # zip asks for one more frame at the end, which ends the decoder's generator as it should
    for stored_HW, picture in zip(decoded(coded), order):
        if picture is not None:
            yield picture, stored_HW


def _native(header: Header, frames: dict[int, Picture]) -> Iterator[tuple[Picture, np.ndarray]]:
    """The pictures of the frames with their bit patterns, read from their place in the file."""
    _bits(header)
    shape_HW = _shape_HW(header)
    count = math.prod(shape_HW)
    pixels_at = _native_pixels_at(header)
    dtype = ">u2" if header.syntax == EXPLICIT_BIG else "<u2"
    with header.file.open("rb") as handle:
        for frame, picture in frames.items():
            handle.seek(pixels_at + 2 * count * frame)
            stored_HW = np.empty(shape_HW, dtype)
            if handle.readinto(stored_HW.data) < stored_HW.nbytes:
                raise BadStudy(Reason.TRUNCATED, "the file ends within its pixels")
            yield picture, stored_HW


def _native_pixels_at(header: Header) -> int:
    """First byte of the uncompressed pixels; BadStudy unless there are as many as stated.

    A row too many may be one that Rows does not count. Less than a row is padding.
    """
    expected = 2 * math.prod(_shape_HW(header)) * _frame_count(header)
    if header.pixels_at is None or header.pixels_length < expected:
        raise BadStudy(Reason.TRUNCATED, "fewer pixels than the header states")
    if header.pixels_length >= expected + 2 * _shape_HW(header)[1]:
        raise BadStudy(Reason.UNREADABLE, "the picture does not have the size its header states")
    return header.pixels_at


def _frame_count(header: Header) -> int:
    return int(header.values.get("NumberOfFrames") or 1)


def _shape_HW(header: Header) -> tuple[int, int]:
    return int(header.values["Rows"]), int(header.values["Columns"])


def _coded(header: Header) -> CodedFile:
    bits, signed = _bits(header)
    if header.syntax == DEFLATED:
        at, skip = header.body_at, _native_pixels_at(header)
    elif header.pixels_at is not None:
        at, skip = header.pixels_at, 0
    else:
        raise BadStudy(Reason.TRUNCATED, "a slice without pixels")
    rows, columns = _shape_HW(header)
    return CodedFile(
        file=str(header.file),
        syntax=header.syntax,
        at=at,
        skip=skip,
        frames=_frame_count(header),
        rows=rows,
        columns=columns,
        bits_stored=bits,
        signed=int(signed),
    )


def _interpolate(hu_DHW: np.ndarray, offsets_mm: np.ndarray, grid_mm: np.ndarray) -> np.ndarray:
    """float32 slices at `grid_mm` by linear interpolation between slices at `offsets_mm`."""
    right = np.clip(np.searchsorted(offsets_mm, grid_mm, side="right"), 1, len(offsets_mm) - 1)
    part = (grid_mm - offsets_mm[right - 1]) / (offsets_mm[right] - offsets_mm[right - 1])
    part = part.astype(np.float32)[:, None, None]
    return hu_DHW[right - 1] * (1 - part) + hu_DHW[right] * part
