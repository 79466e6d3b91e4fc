"""NIfTI: damaged and odd files are refused with their reason, before memory is spent on them."""

import gzip
import math
import struct

import nibabel
import numpy as np
import pytest

from ttepretrain.errors import BadStudy
from ttepretrain.volume.checks import Flag, Reason
from ttepretrain.volume.nifti import read_nifti
from ttepretrain.volume.preprocess import read_ct

# byte offsets in a NIfTI-1 header
DIM, DATATYPE, PIXDIM, VOX_OFFSET, SLOPE, INTERCEPT, UNITS = 40, 70, 76, 108, 112, 116, 123
QFORM_CODE, SFORM_CODE, QUATERN_B, QOFFSET_X, SFORM = 252, 254, 256, 268, 280


@pytest.fixture
def scan(tmp_path, chest, write_nifti):
    return write_nifti(tmp_path / "scan.nii", *chest)


def reason_of(path) -> Reason:
    with pytest.raises(BadStudy) as refusal:
        read_ct(path)
    assert path.name not in refusal.value.detail
    return refusal.value.code


def edited(path, *edits):
    data = bytearray(path.read_bytes())
    for form, offset, *values in edits:
        struct.pack_into(form, data, offset, *values)
    path.write_bytes(data)
    return path


def test_values_and_affine_are_those_of_the_file(scan, chest):
    hu_DHW, affine = chest
    image = read_ct(scan)
    np.testing.assert_array_equal(image.hu_DHW, hu_DHW)
    assert image.hu_DHW.dtype == np.int16
    np.testing.assert_allclose(image.affine, affine, atol=1e-4)
    assert image.flags == ()


@pytest.mark.parametrize("dtype", ["<i2", ">i2", "<i4", "<i8", "<f4", ">f8", "<u2"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_every_number_type_and_byte_order_reads_the_same(tmp_path, chest, dtype, kind):
    hu_DHW, affine = chest
    offset = 1024 if dtype == "<u2" else 0
    stored = (hu_DHW.astype(np.int64) + offset).astype(dtype)
    image = kind(stored.transpose(2, 1, 0), affine[:, [2, 1, 0, 3]], dtype=np.dtype(dtype))
    if dtype[0] == ">":
        image = kind(image.dataobj, image.affine, image.header.as_byteswapped(">"))
    image.to_filename(tmp_path / "typed.nii.gz")
    if offset:
        data = bytearray(gzip.decompress((tmp_path / "typed.nii.gz").read_bytes()))
        at = (INTERCEPT, "<f") if kind is nibabel.Nifti1Image else (184, "<d")
        struct.pack_into(at[1], data, at[0], -1024.0)
        (tmp_path / "typed.nii.gz").write_bytes(gzip.compress(data))
    np.testing.assert_array_equal(read_ct(tmp_path / "typed.nii.gz").hu_DHW, hu_DHW)


def test_a_slope_is_applied(scan, chest):
    edited(scan, ("<2f", SLOPE, 0.5, -10.0))
    np.testing.assert_allclose(read_nifti(scan).hu_DHW, chest[0] * 0.5 - 10)


# A5
@pytest.mark.parametrize("values", [(math.inf, 0), (3e38, 0), (0.5, math.nan), (1, math.nan), (-1, 0), (1, 1e30)])
def test_a_scaling_that_cannot_be_meant_is_never_taken_as_none(scan, values):
    assert reason_of(edited(scan, ("<2f", SLOPE, *values))) == Reason.BAD_SCALING


@pytest.mark.parametrize("values", [(0, 0), (0, -1024), (-0.0, 3), (math.nan, math.nan), (math.nan, 0)])
def test_a_slope_of_zero_or_nan_means_unscaled_and_is_flagged(scan, chest, values):
    """Zero says so in the standard; tools that copy nibabel's headers write NaN."""
    image = read_nifti(edited(scan, ("<2f", SLOPE, *values)))
    np.testing.assert_array_equal(image.hu_DHW, chest[0])
    assert image.flags == (Flag.UNSCALED,)


def test_a_lost_slope_that_scaled_something_is_no_hu(tmp_path, chest, write_nifti):
    stored = (chest[0].astype(int) + 1024).astype(np.uint16)
    path = write_nifti(tmp_path / "lost.nii", stored, chest[1])
    assert reason_of(edited(path, ("<2f", SLOPE, 0, -1024))) == Reason.NOT_HU


@pytest.mark.parametrize(
    "sizes", [(4, 40, 30, 12, 1), (4, 40, 30, 12, 0), (5, 40, 30, 12, 0, 1), (7, 40, 30, 12, 0, 0, 0, 0)]
)
def test_sizes_of_zero_or_one_beyond_the_third_are_one_volume(scan, chest, sizes):
    np.testing.assert_array_equal(read_nifti(edited(scan, (f"<{len(sizes)}h", DIM, *sizes))).hu_DHW, chest[0])


# A6, A8, A9
@pytest.mark.parametrize(
    ("edits", "reason"),
    [
        ([("<4h", DIM, 3, 32767, 32767, 32767)], Reason.BAD_SHAPE),
        ([("<4h", DIM, 3, 2000, 2000, 2000)], Reason.TOO_LARGE),
        ([("<4h", DIM, 3, 1000, 1000, 1000)], Reason.TRUNCATED),
        ([("<4h", DIM, 3, 40, 0, 12)], Reason.BAD_SHAPE),
        ([("<4h", DIM, 3, 40, -30, 12)], Reason.BAD_SHAPE),
        ([("<5h", DIM, 4, 40, 30, 4, 3)], Reason.BAD_SHAPE),
        ([("<h", DIM, 2)], Reason.BAD_SHAPE),
        ([("<4h", DIM, 3, 40, 30, 2)], Reason.TOO_FEW_SLICES),
        ([("<f", VOX_OFFSET, 1e6)], Reason.BAD_SHAPE),
        ([("<f", VOX_OFFSET, 1e12)], Reason.BAD_SHAPE),
        ([("<f", VOX_OFFSET, math.nan)], Reason.BAD_SHAPE),
        ([("<h", DATATYPE, 128)], Reason.UNSUPPORTED_DTYPE),
        ([("<h", DATATYPE, 12345)], Reason.UNSUPPORTED_DTYPE),
        ([("<f", SFORM, math.nan)], Reason.BAD_AFFINE),
        ([("<f", SFORM, math.inf)], Reason.BAD_AFFINE),
        ([("<2h", QFORM_CODE, 0, 0)], Reason.BAD_AFFINE),
        ([("<h", SFORM_CODE, 0), ("<3f", QUATERN_B, 9.0, 9.0, 9.0)], Reason.BAD_AFFINE),
        ([("<h", SFORM_CODE, 0), ("<f", PIXDIM + 4, 0.0)], Reason.BAD_AFFINE),
        ([("<h", SFORM_CODE, 0), ("<f", PIXDIM + 4, -5.0)], Reason.BAD_AFFINE),
        ([("<h", SFORM_CODE, 0), ("<f", PIXDIM + 8, math.nan)], Reason.BAD_AFFINE),
        ([("<h", SFORM_CODE, 0), ("<f", PIXDIM, 0.5)], Reason.BAD_AFFINE),
        ([("<h", SFORM_CODE, 0), ("<f", QOFFSET_X, math.nan)], Reason.BAD_AFFINE),
        ([("<f", SFORM + 4, -7.0)], Reason.BAD_AFFINE),  # sheared by 52 degrees
        ([("<f", SFORM, -0.01)], Reason.BAD_SPACING),
        ([("<f", SFORM, -50.0)], Reason.BAD_SPACING),
        ([("<f", SFORM, -0.3)], Reason.BAD_SPACING),  # 8 mm slices: anisotropy above 20
        ([("b", UNITS, 1)], Reason.BAD_SPACING),
        ([("b", UNITS, 3)], Reason.BAD_SPACING),
        ([("4s", 344, b"ni1\0")], Reason.NOT_NIFTI),
    ],
)  # fmt: skip
def test_a_broken_header_is_refused(scan, edits, reason):
    assert reason_of(edited(scan, *edits)) == reason


# A8
def test_disagreeing_affines_follow_the_sform_and_are_flagged(scan, chest):
    image = read_ct(edited(scan, ("<f", QOFFSET_X, 500.0)))
    np.testing.assert_allclose(image.affine, chest[1], atol=1e-4)
    assert image.flags == (Flag.AFFINES_DISAGREE,)


def test_without_an_sform_the_qform_counts(scan, chest):
    np.testing.assert_allclose(read_ct(edited(scan, ("<h", SFORM_CODE, 0))).affine, chest[1], atol=1e-3)


# A1
@pytest.mark.parametrize("keep", [0.5, -8, -1, -4000])
def test_a_cut_gzip_stream_is_truncated(tmp_path, chest, write_nifti, keep):
    path = write_nifti(tmp_path / "scan.nii.gz", *chest)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if keep > 0 else keep])
    assert reason_of(path) == Reason.TRUNCATED


# A2
def test_a_flipped_byte_in_a_gzip_stream_is_seen(tmp_path, chest, write_nifti):
    path = write_nifti(tmp_path / "scan.nii.gz", *chest)
    data = path.read_bytes()
    for at in (len(data) // 3, len(data) // 2, len(data) - 6):
        damaged = bytearray(data)
        damaged[at] ^= 0x10
        path.write_bytes(damaged)
        assert reason_of(path) == Reason.CRC


def test_a_short_plain_file_is_truncated(scan):
    scan.write_bytes(scan.read_bytes()[:-100])
    assert reason_of(scan) == Reason.TRUNCATED


# A7
def test_a_bomb_is_refused_by_its_header(tmp_path, scan):
    """8.6 GB of zeros in a few MB, header and all; and a small volume with a large tail."""
    header = bytearray(scan.read_bytes()[:352])
    tail = gzip.compress(bytes(2**22)) * 2
    bomb = tmp_path / "bomb.nii.gz"
    bomb.write_bytes(gzip.compress(scan.read_bytes()) + tail)
    assert reason_of(bomb) == Reason.TOO_LARGE
    struct.pack_into("<4h", header, DIM, 3, 1024, 1024, 1024)
    struct.pack_into("<2h", header, DATATYPE, 64, 64)
    bomb.write_bytes(gzip.compress(header) + tail * 64)
    assert reason_of(bomb) == Reason.TOO_LARGE


# A4
@pytest.mark.parametrize("name", ["empty.nii.gz", "empty.nii", "text.nii.gz", "text.nii"])
def test_what_is_no_nifti(tmp_path, name):
    (tmp_path / name).write_bytes(b"" if "empty" in name else b"these are no voxels\n" * 40)
    assert reason_of(tmp_path / name) == Reason.NOT_NIFTI


# A4
def test_a_folder_called_nifti(tmp_path):
    (tmp_path / "x.nii.gz").mkdir()
    assert reason_of(tmp_path / "x.nii.gz") == Reason.NOT_NIFTI


# A10, A11
def test_implausible_values_are_refused(tmp_path, chest, write_nifti):
    hu_DHW, affine = chest
    outliers = hu_DHW.astype(np.float32)
    outliers[3, 4, 5] = 1e6
    many_nan = hu_DHW.astype(np.float32)
    many_nan[:2] = np.nan
    for stored, reason in (
        (np.zeros_like(hu_DHW), Reason.CONSTANT),
        (np.full_like(hu_DHW, -1024), Reason.CONSTANT),
        ((hu_DHW + 1024).astype(np.uint16), Reason.NOT_HU),  # stored without its rescale
        (np.abs(hu_DHW), Reason.NOT_HU),  # like MR: nothing below zero
        (hu_DHW - 1024, Reason.NOT_HU),  # rescaled twice
        (outliers, Reason.NOT_HU),
        (many_nan, Reason.NAN_VOXELS),
    ):
        assert reason_of(write_nifti(tmp_path / "values.nii.gz", stored, affine)) == reason


def test_a_few_nan_become_air(tmp_path, chest, write_nifti):
    hu_DHW, affine = chest
    stored = hu_DHW.astype(np.float32)
    stored[5, 10:12, 20], stored[6, 10, 20] = np.nan, np.inf
    image = read_ct(write_nifti(tmp_path / "nan.nii.gz", stored, affine))
    assert image.flags == (Flag.NAN_TO_AIR,)
    assert (image.hu_DHW[~np.isfinite(stored)] == -1024).all()
    np.testing.assert_array_equal(image.hu_DHW[np.isfinite(stored)], stored[np.isfinite(stored)])
