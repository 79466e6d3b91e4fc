"""From an ordered DICOM stack to HU: decoding, unused bits, rescaling, padding, duplicates, even spacing."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.pixels import get_decoder

from ttepretrain.errors import BadStudy
from ttepretrain.volume.checks import AIR_HU, Flag, Reason
from ttepretrain.volume.series import SliceHeader, Stack
from ttepretrain.volume.tags import numbers

NATIVE_SYNTAXES = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
LOSSLESS_SYNTAXES = (
    "1.2.840.10008.1.2.5",  # RLE
    "1.2.840.10008.1.2.4.57",  # JPEG lossless
    "1.2.840.10008.1.2.4.70",
    "1.2.840.10008.1.2.4.80",  # JPEG-LS
    "1.2.840.10008.1.2.4.90",  # JPEG 2000
    "1.2.840.10008.1.2.4.201",  # HTJ2K
    "1.2.840.10008.1.2.4.202",
)
# 12-bit lossy JPEG is left out: its only decoder for pydicom is GPL.
LOSSY_SYNTAXES = (
    "1.2.840.10008.1.2.4.81",
    "1.2.840.10008.1.2.4.91",
    "1.2.840.10008.1.2.4.203",
)


def check_syntax(syntax: str) -> bool:
    """Whether images of this transfer syntax can be read here. Deflated ones never: their header cannot be bounded."""
    if syntax in NATIVE_SYNTAXES:
        return True
    known = syntax in LOSSLESS_SYNTAXES + LOSSY_SYNTAXES and get_decoder(syntax).is_available
    gdcm = sys.modules.get("gdcm")  # one of pydicom's decoders, where installed; it writes to stderr past every logger
    if gdcm:
        gdcm.Trace.WarningOff()
        gdcm.Trace.ErrorOff()
    return known


def read_stack(stack: Stack, images: dict[Path, Dataset]) -> tuple[np.ndarray, tuple[Flag, ...]]:
    """hu_DHW on the stack's even grid: int16 where every value is whole, else float32."""
    slices = [header for place in stack.places for header in place]
    whole = all(s.slope == int(s.slope) and s.intercept == int(s.intercept) for s in slices)
    hu_DHW = np.empty((len(stack.places), *slices[0].shape_HW), np.int16 if whole else np.float32)
    flags: tuple[Flag, ...] = ()
    for d, (first, *copies) in enumerate(stack.places):
        hu_DHW[d] = _slice_hu(first, images[first.file])
        for copy in copies:
            if not np.array_equal(hu_DHW[d], _slice_hu(copy, images[copy.file]).astype(hu_DHW.dtype)):
                raise BadStudy(Reason.DUPLICATE_SLICE, "two different slices at one position")
            flags = (Flag.DUPLICATE_DROPPED,)
    if Flag.UNEVEN_SPACING in stack.flags:
        hu_DHW = _interpolate(hu_DHW, stack.offsets_mm, stack.grid_mm)
    return hu_DHW, flags


def _slice_hu(header: SliceHeader, dataset: Dataset) -> np.ndarray:
    stored_HW, padding_HW = _stored(dataset)
    if stored_HW.shape != header.shape_HW:
        raise BadStudy(Reason.UNREADABLE, "the picture does not have the size its header states")
    if header.slope == int(header.slope) and header.intercept == int(header.intercept):
        hu_HW = stored_HW.astype(np.int32) * int(header.slope) + int(header.intercept)
        hu_HW = np.clip(hu_HW, -32768, 32767).astype(np.int16)
    else:
        hu_HW = (stored_HW * header.slope + header.intercept).astype(np.float32)
    hu_HW[padding_HW] = AIR_HU
    return hu_HW


def _stored(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Stored values [H, W] with unused bits cleared, and where they are padding rather than measurements."""
    bits, highest, signed = (
        int(numbers(dataset, keyword, 1, Reason.UNREADABLE)[0])
        for keyword in ("BitsStored", "HighBit", "PixelRepresentation")
    )
    if not 1 <= bits <= 16 or highest != bits - 1:
        raise BadStudy(Reason.UNREADABLE, f"{bits} bits stored, highest bit {highest}")
    if "PixelData" not in dataset:
        raise BadStudy(Reason.TRUNCATED, "a slice without pixels")
    native = dataset.file_meta.TransferSyntaxUID in NATIVE_SYNTAXES
    try:
        stored_HW = dataset.pixel_array
    except (OSError, MemoryError):
        raise
    except Exception as error:  # decoders raise whatever a damaged byte leads to
        # the one thing that can be wrong with uncompressed pixels is their number
        reason = Reason.TRUNCATED if native else Reason.UNREADABLE
        raise BadStudy(reason, f"pixels cannot be decoded ({type(error).__name__})") from None
    if native and bits < 16:
        stored_HW = (stored_HW << (16 - bits)) >> (16 - bits)

    padding_HW = np.zeros(stored_HW.shape, bool)
    value = dataset.get("PixelPaddingValue")
    if isinstance(value, int):
        limit = dataset.get("PixelPaddingRangeLimit")
        ends = [value, limit if isinstance(limit, int) else value]
        # written as unsigned by some although the pixels are signed
        low, high = sorted(end - 65536 if signed and end > 32767 else end for end in ends)
        padding_HW = (stored_HW >= low) & (stored_HW <= high)
    return stored_HW, padding_HW


def _interpolate(hu_DHW: np.ndarray, offsets_mm: np.ndarray, grid_mm: np.ndarray) -> np.ndarray:
    """Linear in between: float32 slices at `grid_mm` from slices at `offsets_mm`."""
    right = np.clip(np.searchsorted(offsets_mm, grid_mm, side="right"), 1, len(offsets_mm) - 1)
    part = (grid_mm - offsets_mm[right - 1]) / (offsets_mm[right] - offsets_mm[right - 1])
    part = part.astype(np.float32)[:, None, None]
    return hu_DHW[right - 1] * (1 - part) + hu_DHW[right] * part
