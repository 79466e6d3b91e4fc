"""Read NIfTI-1 and NIfTI-2 (.nii, .nii.gz). The header is checked before memory is allocated, the stream to its end.

nibabel only parses the header: its loader silently accepts a NaN slope, a NaN affine and a truncated checksum.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from isal import igzip, isal_zlib
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header

from ttepretrain.errors import BadStudy
from ttepretrain.volume.checks import MAX_NAN_FRACTION, PADDING_HU, Flag, Reason, check_scaling, check_shape
from ttepretrain.volume.image import ACQUISITION_KEYS, CTImage
from ttepretrain.volume.nifti_affine import check_body, geometry
from ttepretrain.volume.other_formats import named_format

NUMBERS = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")
MAX_BYTES = 2**32  # of voxels
DEFLATE_RATIO = 1032  # deflate cannot compress further, so a header cannot claim more
MAX_DATA_OFFSET = 2**24  # bytes of header extensions
READ_BYTES = 2**20  # read at a time
PART_VOXELS = 2**18  # converted at a time
MAX_TRAILING = 2**20  # bytes after the last voxel


def read_nifti(path: Path) -> CTImage:
    """The volume in `path` in HU; BadStudy with its reason when the file is damaged or not a CT volume."""
    try:
        handle = path.open("rb")
    except IsADirectoryError:
        raise BadStudy(Reason.NOT_NIFTI, "a folder") from None
    # values are checked below; casting a signalling NaN would warn
    with handle, np.errstate(all="ignore"):
        size = os.fstat(handle.fileno()).st_size
        packed = handle.read(2) == b"\x1f\x8b"
        handle.seek(0)
        if not packed:
            return _read_stream(handle, size)
        with igzip.IGzipFile(fileobj=handle) as stream, _declared_gzip_errors():
            return _read_stream(stream, size * DEFLATE_RATIO)


@contextmanager
def _declared_gzip_errors() -> Iterator[None]:
    try:
        yield
    except EOFError:
        raise BadStudy(Reason.TRUNCATED, "the compressed stream ends early") from None
    except (igzip.BadGzipFile, isal_zlib.error):  # type: ignore[misc]  # isal's stub takes the class for an instance
        raise BadStudy(Reason.CRC, "the compressed stream is damaged") from None


def _read_stream(stream: BinaryIO | igzip.IGzipFile, most_bytes: int) -> CTImage:
    header = _read_header(stream)
    shape_WHD = _shape(header)
    dtype = _dtype(header)
    slope, intercept, flags = _scaling(header)
    found = geometry(header)

    offset = float(header["vox_offset"])
    if not header.sizeof_hdr + 4 <= offset <= MAX_DATA_OFFSET:
        raise BadStudy(Reason.BAD_SHAPE, "the data offset lies outside the file")
    wanted = math.prod(shape_WHD) * dtype.itemsize
    if wanted > MAX_BYTES:
        raise BadStudy(Reason.TOO_LARGE, f"{wanted} bytes of voxels, limit {MAX_BYTES}")
    if wanted > most_bytes:
        raise BadStudy(Reason.TRUNCATED, f"the file cannot hold {wanted} bytes of voxels")
    stream.read(int(offset) - header.sizeof_hdr)
    hu_DHW, nan_flags = _read_hu(stream, dtype, shape_WHD[::-1], slope, intercept)
    # gzip's checksum is compared only when the end of the stream is read
    if len(stream.read(MAX_TRAILING + 1)) > MAX_TRAILING:
        raise BadStudy(Reason.TOO_LARGE, "more data after the volume than a NIfTI file has")

    image = CTImage(hu_DHW, found.affine, found.flags + flags + nan_flags, dict.fromkeys(ACQUISITION_KEYS))
    check_body(image, found.other_mm_DHW)
    return image


def _read_hu(
    stream: BinaryIO | igzip.IGzipFile, dtype: np.dtype, shape_DHW: tuple[int, ...], slope: float, intercept: float
) -> tuple[np.ndarray, tuple[Flag, ...]]:
    """HU as int16 where every value is whole, else float32. Few NaN become PADDING_HU; many refuse the study.

    Part by part: the stored values are never in memory together, which for 64 bits would be four times the result.
    """
    count = math.prod(shape_DHW)
    hu: np.ndarray = np.empty(count, np.int16)
    part = np.empty(min(PART_VOXELS, count), dtype)
    bad = 0
    for at in range(0, count, PART_VOXELS):
        stored = part[: count - at]
        got = _read_into(stored.view(np.uint8).data, stream)
        if at == got == 0:
            raise BadStudy(Reason.BAD_SHAPE, "the data offset lies outside the file")
        if got < stored.nbytes:
            raise BadStudy(Reason.TRUNCATED, f"{at * dtype.itemsize + got} of {count * dtype.itemsize} bytes of voxels")
        values, bad_here = _to_hu(stored, slope, intercept)
        bad += bad_here
        if values.dtype != hu.dtype and hu.dtype == np.int16:  # the first that is not whole
            hu, whole = np.empty(count, np.float32), hu
            hu[:at] = whole[:at]
        hu[at : at + len(values)] = values
    if bad > MAX_NAN_FRACTION * count:
        raise BadStudy(Reason.NAN_VOXELS, f"{bad / count:.1%} of voxels are NaN or infinite")
    return hu.reshape(shape_DHW), (Flag.NAN_TO_AIR,) if bad else ()


def _to_hu(stored: np.ndarray, slope: float, intercept: float) -> tuple[np.ndarray, int]:
    """The values in HU, int16 if all are whole, else float32; and the number of those that were NaN or infinite."""
    native = stored.dtype.newbyteorder("=")
    if native.kind in "iu" and slope == 1 and intercept == int(intercept):
        low, high = int(stored.min()) + int(intercept), int(stored.max()) + int(intercept)
        if low >= -32768 and high <= 32767:
            # int64: an unsigned 32-bit value plus a negative intercept fits nowhere smaller
            whole = stored if intercept == 0 else stored.astype(np.int64) + int(intercept)
            return whole.astype(np.int16, copy=False), 0
    exact: np.ndarray = stored.astype(np.float64 if native.itemsize == 8 else np.float32)
    hu = (exact * slope + intercept).astype(np.float32)  # what overflows is counted as infinite
    bad = ~np.isfinite(hu)
    hu[bad] = PADDING_HU
    whole = hu.astype(np.int16)  # what is out of range comes back as another number
    return whole if np.array_equal(whole, hu) else hu, int(bad.sum())


def _read_into(memory: memoryview, stream: BinaryIO | igzip.IGzipFile) -> int:
    """Number of bytes read; fewer than asked where the stream ends. In parts: gzip's readinto makes a second copy."""
    at = 0
    while at < len(memory) and (part := stream.read(min(READ_BYTES, len(memory) - at))):
        memory[at : at + len(part)] = part
        at += len(part)
    return at


def _read_header(stream: BinaryIO | igzip.IGzipFile) -> Nifti1Header:
    """Nifti1Header or its subclass Nifti2Header, unchecked."""
    start = stream.read(Nifti1Header.template_dtype.itemsize)
    if len(start) < Nifti1Header.template_dtype.itemsize:
        raise BadStudy(Reason.NOT_NIFTI, named_format(start) or "shorter than a header")
    for kind, magic_at, magic in ((Nifti1Header, 344, b"n+1\0"), (Nifti2Header, 4, b"n+2\0\r\n\x1a\n")):
        if start[magic_at : magic_at + len(magic)] == magic:
            block = start + stream.read(kind.template_dtype.itemsize - len(start))
            if len(block) < kind.template_dtype.itemsize:
                raise BadStudy(Reason.NOT_NIFTI, "shorter than a header")
            return kind(block, check=False)
    raise BadStudy(Reason.NOT_NIFTI, named_format(start) or "no single-file NIfTI magic")


def _dtype(header: Nifti1Header) -> np.dtype:
    try:
        dtype = header.get_data_dtype()
    except KeyError:
        dtype = None
    if dtype is None or dtype.str[1:] not in NUMBERS:
        raise BadStudy(Reason.UNSUPPORTED_DTYPE, f"NIfTI data type code {int(header['datatype'])}")
    return dtype


def _shape(header: Nifti1Header) -> tuple[int, int, int]:
    """The three sizes in file order: W H D of the stored array."""
    dim = [int(value) for value in header["dim"]]
    # a size of 0 beyond the third means 1 to the standard's own library
    if not 3 <= dim[0] <= 7 or any(size not in (0, 1) for size in dim[4 : dim[0] + 1]):
        raise BadStudy(Reason.BAD_SHAPE, f"{dim[0]} dimensions; one volume has three")
    check_shape((dim[3], dim[2], dim[1]))
    return dim[1], dim[2], dim[3]


def _scaling(header: Nifti1Header) -> tuple[float, float, tuple[Flag, ...]]:
    """Slope, intercept, flags. A slope of 0 means unscaled; so does NaN, which nibabel leaves in headers it copies."""
    slope, intercept = float(header.structarr["scl_slope"]), float(header.structarr["scl_inter"])
    if slope == 0 or math.isnan(slope):
        return 1.0, 0.0, (Flag.UNSCALED,)
    check_scaling(slope, intercept)
    return slope, intercept, ()
