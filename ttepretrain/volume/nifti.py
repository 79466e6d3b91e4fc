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
from nibabel.spatialimages import HeaderDataError

from ttepretrain.errors import BadStudy
from ttepretrain.volume.checks import (
    MAX_NAN_FRACTION,
    PADDING_HU,
    Flag,
    Reason,
    check_affine,
    check_scaling,
    check_shape,
)
from ttepretrain.volume.image import ACQUISITION_KEYS, CTImage

NUMBERS = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")
MAX_BYTES = 2**32  # of voxels
DEFLATE_RATIO = 1032  # deflate cannot compress further, so a header cannot claim more
MAX_DATA_OFFSET = 2**24  # bytes of header extensions
PART_BYTES = 2**20  # of voxels read at a time
MAX_TRAILING = 2**20  # bytes after the last voxel
DISAGREE_MM = 1.0  # flagged where sform and qform differ by more at a corner
MILLIMETRES, UNIT_UNKNOWN = 2, 0


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
    slope, intercept = float(header.structarr["scl_slope"]), float(header.structarr["scl_inter"])
    check_scaling(slope, intercept)
    affine, flags = _affine(header)
    flags += check_affine(affine)

    offset = float(header["vox_offset"])
    if not header.sizeof_hdr + 4 <= offset <= MAX_DATA_OFFSET:
        raise BadStudy(Reason.BAD_SHAPE, "the data offset lies outside the file")
    wanted = math.prod(shape_WHD) * dtype.itemsize
    if wanted > MAX_BYTES:
        raise BadStudy(Reason.TOO_LARGE, f"{wanted} bytes of voxels, limit {MAX_BYTES}")
    if wanted > most_bytes:
        raise BadStudy(Reason.TRUNCATED, f"the file cannot hold {wanted} bytes of voxels")
    stream.read(int(offset) - header.sizeof_hdr)
    data = np.empty(wanted, np.uint8)
    got = _read_into(data.data, stream)
    if got == 0:
        raise BadStudy(Reason.BAD_SHAPE, "the data offset lies outside the file")
    if got < wanted:
        raise BadStudy(Reason.TRUNCATED, f"{got} of {wanted} bytes of voxels")
    # gzip's checksum is compared only when the end of the stream is read
    if len(stream.read(MAX_TRAILING + 1)) > MAX_TRAILING:
        raise BadStudy(Reason.TOO_LARGE, "more data after the volume than a NIfTI file has")

    hu_DHW, nan_flags = _to_hu(data.view(dtype).reshape(shape_WHD[::-1]), slope, intercept)
    return CTImage(hu_DHW, affine, flags + nan_flags, dict.fromkeys(ACQUISITION_KEYS))


def _read_into(memory: memoryview, stream: BinaryIO | igzip.IGzipFile) -> int:
    """Number of bytes read; fewer than asked where the stream ends. In parts: gzip's readinto makes a second copy."""
    at = 0
    while at < len(memory) and (part := stream.read(min(PART_BYTES, len(memory) - at))):
        memory[at : at + len(part)] = part
        at += len(part)
    return at


def _read_header(stream: BinaryIO | igzip.IGzipFile) -> Nifti1Header:
    """Nifti1Header or its subclass Nifti2Header, unchecked."""
    start = stream.read(Nifti1Header.template_dtype.itemsize)
    if len(start) < Nifti1Header.template_dtype.itemsize:
        raise BadStudy(Reason.NOT_NIFTI, "shorter than a header")
    for kind, magic_at, magic in ((Nifti1Header, 344, b"n+1\0"), (Nifti2Header, 4, b"n+2\0\r\n\x1a\n")):
        if start[magic_at : magic_at + len(magic)] == magic:
            block = start + stream.read(kind.template_dtype.itemsize - len(start))
            if len(block) == kind.template_dtype.itemsize:
                return kind(block, check=False)
    raise BadStudy(Reason.NOT_NIFTI, "no single-file NIfTI magic")


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
    if not 3 <= dim[0] <= 7 or any(size != 1 for size in dim[4 : dim[0] + 1]):
        raise BadStudy(Reason.BAD_SHAPE, f"{dim[0]} dimensions; one volume has three")
    check_shape((dim[3], dim[2], dim[1]))
    return dim[1], dim[2], dim[3]


def _affine(header: Nifti1Header) -> tuple[np.ndarray, tuple[Flag, ...]]:
    """Index D H W -> RAS+ mm: the sform where its code is set, else the qform. BadStudy without either."""
    if int(header["xyzt_units"]) & 7 not in (MILLIMETRES, UNIT_UNKNOWN):
        raise BadStudy(Reason.BAD_SPACING, "lengths are not in millimetres")
    pixdim = np.asarray(header["pixdim"][1:4], dtype=float)
    if not (np.isfinite(pixdim).all() and (pixdim > 0).all()):
        raise BadStudy(Reason.BAD_AFFINE, "a voxel size is zero, negative or NaN")
    sform, qform = (int(header[code]) > 0 for code in ("sform_code", "qform_code"))
    if not sform and not qform:
        raise BadStudy(Reason.BAD_AFFINE, "neither sform nor qform is set: left and right are unknown")
    if header["pixdim"][0] == 0:
        header["pixdim"][0] = 1  # as the standard says
    try:
        affine_WHD = header.get_sform() if sform else header.get_qform()
        other = header.get_qform() if sform and qform else affine_WHD
    except (ValueError, ArithmeticError, HeaderDataError):
        raise BadStudy(Reason.BAD_AFFINE, "the quaternion is not a rotation") from None
    if not (np.isfinite(affine_WHD).all() and np.isfinite(other).all()):
        raise BadStudy(Reason.BAD_AFFINE, "NaN or infinity")
    last = np.array([*(int(size) - 1 for size in header["dim"][1:4]), 0])
    corners = np.array([[*(last[:3] * corner), 1] for corner in np.ndindex(2, 2, 2)])
    apart = np.abs(corners @ (affine_WHD - other)[:3].T).max()
    # index order D H W: the first three columns reversed
    affine = np.asarray(affine_WHD, dtype=float)[:, [2, 1, 0, 3]]
    return affine, (() if apart <= DISAGREE_MM else (Flag.AFFINES_DISAGREE,))


def _to_hu(stored: np.ndarray, slope: float, intercept: float) -> tuple[np.ndarray, tuple[Flag, ...]]:
    """HU as int16 where every value is whole, else float32. Few NaN become PADDING_HU; many refuse the study."""
    native = stored.dtype.newbyteorder("=")
    if native.kind in "iu" and slope == 1 and intercept == int(intercept):
        low, high = int(stored.min()) + int(intercept), int(stored.max()) + int(intercept)
        if low >= -32768 and high <= 32767:
            # int64: an unsigned 32-bit value plus a negative intercept fits nowhere smaller
            whole = stored if intercept == 0 else stored.astype(np.int64) + int(intercept)
            return whole.astype(np.int16, copy=False), ()
    exact: np.ndarray = stored.astype(np.float64 if native.itemsize == 8 else np.float32)
    hu = (exact * slope + intercept).astype(np.float32)  # what overflows is counted as infinite
    bad = ~np.isfinite(hu)
    count = int(bad.sum())
    if count > MAX_NAN_FRACTION * hu.size:
        raise BadStudy(Reason.NAN_VOXELS, f"{count / hu.size:.1%} of voxels are NaN or infinite")
    if count == 0:
        return hu, ()
    hu[bad] = PADDING_HU
    return hu, (Flag.NAN_TO_AIR,)
