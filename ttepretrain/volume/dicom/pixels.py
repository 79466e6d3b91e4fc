"""From an ordered DICOM stack to HU: unused bits, rescaling, padding, duplicates, even spacing.

Uncompressed pixels are read here, from the place stated in the header. All others are decoded in a child process.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np

from ttepretrain.errors import BadStudy
from ttepretrain.volume.checks import PADDING_HU, Flag, Reason
from ttepretrain.volume.dicom.coding.decoder import decoded
from ttepretrain.volume.dicom.coding.decoder_child import CodedFile
from ttepretrain.volume.dicom.coding.syntaxes import DEFLATED, EXPLICIT_BIG, NATIVE
from ttepretrain.volume.dicom.frames import Picture
from ttepretrain.volume.dicom.headers import Header
from ttepretrain.volume.dicom.stack import Stack
from ttepretrain.volume.dicom.tags import SliceHeader, numbers

INT16 = -(2**15), 2**15 - 1
MOST_PADDING_HU = -500.0  # of a stated padding value: above it lie fat, muscle and bone
BEYOND_CT_HU = 30_000.0  # or from here on: the largest values of 16 bits, which no measurement has
MARKS_APART = 400  # three of four differences to neighbours are less where bits above are marks, not values
JUMPS = 0.125  # share of neighbours that are far apart as cut and near as a whole: values that wrap around
NO_MEASUREMENT_HU = -1100.0  # below air by more than noise


@dataclass(frozen=True)
class Storage:
    """How a stored 16-bit value becomes HU."""

    bits: int
    signed: bool
    clear: bool  # bits above the stored ones may have any value
    padding: tuple[int, int] | None  # lowest and highest value that is not a measurement
    slope: float
    intercept: float
    margin: int | None = (
        None  # a value of tissue that was stated as padding: not a measurement outside the field of view
    )


def read_stack(stack: Stack, pictures: Sequence[Picture]) -> tuple[np.ndarray, tuple[Flag, ...]]:
    """HU [D, H, W] on the even grid of the stack, and flags. int16 if every value is whole, else float32."""
    slices = {(s.file, s.frame): (d, s) for d, place in enumerate(stack.places) for s in place}
    whole = all(s.slope == int(s.slope) and s.intercept == int(s.intercept) for _, s in slices.values())
    first = stack.places[0][0]
    hu_DHW = np.empty((len(stack.places), *first.shape_HW), np.int16 if whole else np.float32)
    flags: tuple[Flag, ...] = ()
    doubts: set[Flag] = set()
    filled = np.zeros(len(hu_DHW), bool)
    for picture, stored_HW in _stored(pictures):
        d, header = slices[picture.header.file, picture.frame]
        stated, odd_padding = _storage(picture, header)
        storage, odd_bits = _fitting(stored_HW, stated)
        doubts.update(odd_padding, odd_bits)
        hu_HW = to_hu(stored_HW, storage)
        if not filled[d]:
            hu_DHW[d], filled[d] = hu_HW, True
            continue
        if not np.array_equal(hu_DHW[d], hu_HW.astype(hu_DHW.dtype)):
            raise BadStudy(Reason.DUPLICATE_SLICE, "two different slices at one position")
        flags = (Flag.DUPLICATE_DROPPED,)
    flags += (*sorted(doubts), *_suspicious(hu_DHW))
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
    if storage.margin is not None:
        hu_HW[_margin(values == storage.margin)] = PADDING_HU
    return hu_HW


def _margin(is_padding_HW: np.ndarray) -> np.ndarray:
    """Where rows begin or end with padding; nowhere if fewer than two corners have it.

    p p p . . p p       p: of the padding's value
    p . . p . . p  ->   p . . . . . p
    """
    corners = is_padding_HW[[0, 0, -1, -1], [0, -1, 0, -1]]
    if corners.sum() < 2:
        return np.zeros_like(is_padding_HW)
    ahead = np.logical_and.accumulate(is_padding_HW, axis=1)
    return ahead | np.logical_and.accumulate(is_padding_HW[:, ::-1], axis=1)[:, ::-1]


def _shifted(values_HW: np.ndarray, intercept: int) -> np.ndarray:
    """values + intercept, clipped to int16. A copy in 32 bits would take five times as long."""
    dtype = values_HW.dtype.type
    low, high = (np.clip(end - intercept, np.iinfo(dtype).min, np.iinfo(dtype).max) for end in INT16)
    # the sum may wrap around, but that of clipped values ends within int16
    return values_HW.clip(dtype(low), dtype(high)).view(np.int16) + np.int16(intercept)


def _storage(picture: Picture, header: SliceHeader) -> tuple[Storage, tuple[Flag, ...]]:
    """How the header says that the picture is stored."""
    bits, signed = _bits(picture.header)
    padding, margin, flags = _padding(picture, header)
    return Storage(bits, signed, True, padding, header.slope, header.intercept, margin), flags


def _padding(picture: Picture, header: SliceHeader) -> tuple[tuple[int, int] | None, int | None, tuple[Flag, ...]]:
    """`padding` and `margin` of a Storage; flagged if what the header states reaches into tissue."""
    value, limit = (picture.values.get(keyword) for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit"))
    if not isinstance(value, int):
        return None, None, ()
    signed = _bits(picture.header)[1]
    stated = [value, limit] if isinstance(limit, int) else [value]
    # padding often has a different sign than the pixels: the sign of the pixels is used
    ends = [end % 65536 - 65536 * (signed and end % 65536 > 32767) for end in stated]
    flags: tuple[Flag, ...] = ()
    for padded in (ends, ends[:1]):  # a range that reaches into tissue leaves its first value
        low, high = (end * header.slope + header.intercept for end in (min(padded), max(padded)))
        if high <= MOST_PADDING_HU or low >= BEYOND_CT_HU:
            return (min(padded), max(padded)), None, flags
        flags = (Flag.PADDING_DOUBTFUL,)
    return None, ends[0], flags


def _fitting(stored_HW: np.ndarray, storage: Storage) -> tuple[Storage, tuple[Flag, ...]]:
    """The storage with the width that the values have, and flags of what the header says otherwise."""
    if storage.bits == 16:
        return storage, ()
    whole_HW = stored_HW.astype(np.int16 if storage.signed else np.uint16, copy=False)
    lowest = -(1 << (storage.bits - 1)) if storage.signed else 0
    if lowest <= whole_HW.min() and whole_HW.max() < lowest + (1 << storage.bits):
        return storage, ()
    above = whole_HW.view(np.uint16) >> storage.bits
    constant = above.min() == above.max()
    if constant and above[0, 0]:
        return storage, ()  # the same marks on every pixel
    if _is_wider(whole_HW, storage, signs=bool(constant)):
        return replace(storage, bits=16), (Flag.STRAY_BITS,)
    return storage, () if constant else (Flag.STRAY_BITS,)


def _is_wider(whole_HW: np.ndarray, storage: Storage, signs: bool) -> bool:
    """Whether values need more bits than the header says, judged by adjacent pixels that differ above those bits.

    Values that are cut wrap around, from 4,095 to 0. Under marks (of an old overlay) they are like their neighbours.
    `signs`: there is nothing above, and the highest bit is the sign of values of that width or part of larger ones.
    """
    spare = 16 - storage.bits
    whole_HW = whole_HW[:: max(1, len(whole_HW) // 128)]
    cut_HW = (whole_HW << spare) >> spare
    odd_HW = cut_HW != whole_HW
    if signs:
        negative, corners = cut_HW[odd_HW], cut_HW[[0, 0, -1, -1], [0, -1, 0, -1]]
        measured = negative[~np.isin(negative, corners)]  # corners are often padded
        odd_HW &= ~np.isin(cut_HW, corners)
        if len(measured) and np.median(measured) * storage.slope + storage.intercept < NO_MEASUREMENT_HU:
            return True
    wide_HW, narrow_HW = whole_HW.astype(np.int32), cut_HW.astype(np.int32)
    above_HW = wide_HW - narrow_HW
    wide, narrow = [], []
    for axis in (0, 1):
        beside = np.diff(above_HW, axis=axis) != 0
        if signs:
            beside &= odd_HW.take(range(1, odd_HW.shape[axis]), axis) | odd_HW.take(range(odd_HW.shape[axis] - 1), axis)
        wide.append(np.abs(np.diff(wide_HW, axis=axis))[beside])
        narrow.append(np.abs(np.diff(narrow_HW, axis=axis))[beside])
    wide_apart, narrow_apart = np.concatenate(wide), np.concatenate(narrow)
    if not len(wide_apart):
        return False
    wraps = bool((wide_apart < narrow_apart).mean() > JUMPS)
    return wraps or (not signs and bool(np.quantile(narrow_apart, 0.75) > MARKS_APART))


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
    if header.pixels_at is None:
        raise _without_pixels(header)
    if header.pixels_length < expected:
        raise BadStudy(Reason.TRUNCATED, "fewer pixels than the header states")
    if header.pixels_length >= expected + 2 * _shape_HW(header)[1]:
        raise BadStudy(Reason.UNREADABLE, "the picture does not have the size its header states")
    return header.pixels_at


def _without_pixels(header: Header) -> BadStudy:
    """Compressed, they take a twentieth at least."""
    if 20 * header.elsewhere > 2 * math.prod(_shape_HW(header)) * _frame_count(header):
        return BadStudy(Reason.UNSUPPORTED_SYNTAX, "pixels in a private element only, or in floating point")
    return BadStudy(Reason.TRUNCATED, "a slice without pixels")


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
        raise _without_pixels(header)
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
    """Slices at `grid_mm` by linear interpolation between those at `offsets_mm`; whole HU stay whole.

    One slice at a time: for all of them, copies in 32 bits would take eight times the result.
    """
    right = np.clip(np.searchsorted(offsets_mm, grid_mm, side="right"), 1, len(offsets_mm) - 1)
    part = (grid_mm - offsets_mm[right - 1]) / (offsets_mm[right] - offsets_mm[right - 1])
    out_DHW = np.empty((len(grid_mm), *hu_DHW.shape[1:]), hu_DHW.dtype)
    for d, (after, share) in enumerate(zip(right, part.astype(np.float32))):
        hu_HW = hu_DHW[after - 1] * (1 - share) + hu_DHW[after] * share
        out_DHW[d] = hu_HW if hu_DHW.dtype == np.float32 else np.rint(hu_HW, out=hu_HW)
    return out_DHW
