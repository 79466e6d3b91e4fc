"""sform, qform and voxel sizes of a NIfTI header that disagree: which one counts, what is flagged, what is refused."""

import math
import re
import struct

import nibabel
import numpy as np
import pytest

from ttepretrain.errors import BadStudy
from ttepretrain.volume.checks import Flag, Reason
from ttepretrain.volume.nifti import read_nifti

PIXDIM, UNITS, QFORM_CODE, SFORM_CODE, QUATERN_B, SFORM = 76, 123, 252, 254, 256, 280
TO_WHD = [2, 1, 0, 3]
SHAPE, SPACING = (24, 64, 72), (8.0, 3.6, 3.2)  # D H W
MM_WHD = SPACING[::-1]
SFORM_OFF, QFORM_OFF = ("<h", SFORM_CODE, 0), ("<h", QFORM_CODE, 0)
DISAGREE = (Flag.AFFINES_DISAGREE,)


def sizes(*mm_WHD):
    return ("<3f", PIXDIM + 4, *mm_WHD)


def sform(matrix_WHD):
    return ("<12f", SFORM, *np.asarray(matrix_WHD, float)[:3].ravel())


@pytest.fixture
def scan(tmp_path, geometry, write_nifti):
    """Function: edits of the header -> (path of a chest with sform and qform, its affine)."""

    def write(*edits, linear=None):
        affine = geometry.centred_affine(SHAPE, SPACING, linear)
        hu_DHW = np.round(geometry.phantom_hu(geometry.grid_mm(affine, SHAPE))).astype(np.int16)
        path = write_nifti(tmp_path / "scan.nii", hu_DHW, affine)
        data = bytearray(path.read_bytes())
        for form, offset, *values in edits:
            struct.pack_into(form, data, offset, *values)
        path.write_bytes(data)
        return path, affine

    return write


def read(path_affine):
    """Flags of the scan, which lies where its affine says."""
    path, affine = path_affine
    image = read_nifti(path)
    np.testing.assert_allclose(image.affine, affine, atol=1e-3)
    return image.flags


def refusal_of(path_affine) -> tuple[Reason, str]:
    with pytest.raises(BadStudy) as refusal:
        read_nifti(path_affine[0])
    return refusal.value.code, refusal.value.detail


@pytest.mark.parametrize(
    ("edits", "flags"),
    [
        ([], ()),
        ([QFORM_OFF], ()),
        ([QFORM_OFF, sizes(1, 1, 1)], DISAGREE),  # as converters leave them
        ([sizes(1, 1, 1)], DISAGREE),
        ([QFORM_OFF, sizes(3.2, 3.6, 8.02)], ()),  # 0.5 mm over the whole scan: rounding
        ([QFORM_OFF, sizes(3.2, 3.6, 8.2)], DISAGREE),
        ([QFORM_OFF, sizes(3.2, 3.6, 5)], DISAGREE),  # thickness in place of distance: a body may have any length
        ([QFORM_OFF, sizes(3.2, 8.0, 3.6)], DISAGREE),  # two axes swapped
        ([QFORM_OFF, sizes(8.0, 3.6, 3.2)], DISAGREE),
        ([QFORM_OFF, sizes(*(mm / 1000 for mm in MM_WHD))], DISAGREE),  # metres
        ([QFORM_OFF, sizes(*(mm * 1000 for mm in MM_WHD))], DISAGREE),  # micrometres
        ([QFORM_OFF, sizes(0, 0, 0)], DISAGREE),
        ([sizes(0, 3.6, 8.0)], DISAGREE),
        ([QFORM_OFF, sizes(-3.2, -3.6, 8.0)], ()),  # a sign says nothing beside a sform
        ([sizes(math.nan, 3.6, 8.0)], DISAGREE),
        ([("<f", PIXDIM, 0.5)], DISAGREE),
        ([("<3f", QUATERN_B, 9, 9, 9)], DISAGREE),
        ([("<3f", QUATERN_B, math.nan, 0, 0)], DISAGREE),
    ],
)  # fmt: skip
def test_a_sound_sform_counts_and_what_differs_from_it_is_flagged(scan, edits, flags):
    assert read(scan(*edits)) == flags


@pytest.mark.parametrize(
    "matrix",
    [
        np.zeros((3, 4)),
        [[0, 0, 0, 0], [0, 3.6, 0, 0], [0, 0, 8, 0]],
        [[3.2, 0, 0, 0], [0, 3.6, 0, 0], [0, 0, 0, 5]],
        np.eye(4),
        np.diag([-1, -1, 1, 1]),
    ],
    ids=["zero", "a zero row", "a zero column", "identity", "identity of a scanner"],
)
def test_beside_a_dummy_sform_the_qform_counts(scan, matrix):
    assert read(scan(sform(matrix))) == DISAGREE
    assert refusal_of(scan(sform(matrix), QFORM_OFF)) == (
        Reason.BAD_AFFINE, "the sform is a dummy and the qform is not set",
    )  # fmt: skip
    assert refusal_of(scan(sform(matrix), sizes(0, 1, 2)))[0] == Reason.BAD_AFFINE


def test_the_identity_is_no_dummy_where_voxels_have_1_mm_or_the_scan_has_a_place(tmp_path, write_nifti, geometry):
    """The second was brought to 1 mm by a tool that left the old sizes beside it."""
    for place, mm in ((0, 1.0), (-60, 0.8)):
        affine = np.eye(4)[:, [2, 1, 0, 3]]
        affine[:3, 3] = place
        shape = (60, 120, 120)
        points = geometry.grid_mm(affine, shape)
        hu_DHW = np.round(geometry.phantom_hu(points - points.mean(axis=(0, 1, 2)))).astype(np.int16)
        path = write_nifti(tmp_path / "identity.nii", hu_DHW, affine)
        data = bytearray(path.read_bytes())
        for form, offset, *values in (QFORM_OFF, sizes(mm, mm, mm)):
            struct.pack_into(form, data, offset, *values)
        path.write_bytes(data)
        assert read((path, affine)) == (() if mm == 1 else DISAGREE)


@pytest.mark.parametrize("factor", [(0.12, 0.12, 0.12), (0.25, 1, 1), (1, 0.2, 1), (1, 0.3, 1.2)])
@pytest.mark.parametrize("qform", [(), (QFORM_OFF,)], ids=["qform", "no qform"])
def test_a_sform_that_makes_the_body_no_humans_is_refused_where_pixdim_would_not(scan, factor, qform):
    _, affine = scan(*qform)
    matrix = affine[:, TO_WHD] @ np.diag([*factor, 1])
    code, detail = refusal_of(scan(*qform, sform(matrix)))
    assert code == Reason.BAD_SPACING
    assert re.fullmatch(r"a body of \d+ x \d+ x \d+ mm by the sform, 1\d\d x 1\d\d x 1\d\d mm by pixdim", detail)


def test_a_sform_whose_body_is_too_large_is_refused_where_pixdim_would_not(tmp_path, geometry, write_nifti):
    """Stale after downsampling: 1.6 mm for what has 0.8."""
    hu_DHW = np.full((20, 500, 500), -1000, np.int16)
    hu_DHW[:, 100:400, 20:480] = 40
    path = write_nifti(tmp_path / "scan.nii", hu_DHW, geometry.centred_affine(hu_DHW.shape, (5.0, 1.6, 1.6)))
    data = bytearray(path.read_bytes())
    for form, offset, *values in (sizes(0.8, 0.8, 5.0), QFORM_OFF):
        struct.pack_into(form, data, offset, *values)
    path.write_bytes(data)
    with pytest.raises(BadStudy, match=r"BAD_SPACING.*a body of 98 x 4\d\d x 7\d\d mm by the sform"):
        read_nifti(path)


def test_a_body_no_scanner_could_hold_is_refused_whatever_agrees(geometry, tmp_path, write_nifti):
    """Centimetres twice: 9 mm voxels of a body that had 0.9 mm."""
    hu_DHW = np.full((20, 160, 160), -1000, np.int16)
    hu_DHW[:, 20:140, 20:140] = 40
    path = write_nifti(tmp_path / "large.nii", hu_DHW, geometry.centred_affine(hu_DHW.shape, (9.0, 9.0, 9.0)))
    with pytest.raises(BadStudy, match=r"BAD_SPACING.*a body of \d+ x 10\d\d x 10\d\d mm"):
        read_nifti(path)


def test_a_sheared_sform_beside_the_nearest_qform_is_a_tilt_and_no_disagreement(scan):
    """As dcm2niix writes a tilted scan: a qform cannot hold a shear."""
    tilt = np.array([[1.0, 0, 0], [0, 1, 0.3], [0, 0, 1]])
    path, affine = scan(linear=tilt)
    image = nibabel.load(path, mmap=False)
    image.set_qform(image.affine, code=1)
    image.to_filename(path)
    assert read((path, affine)) == (Flag.GANTRY_TILT,)
    with path.open("r+b") as file:
        file.seek(QUATERN_B + 12)  # and elsewhere
        file.write(struct.pack("<f", 300.0))
    assert read((path, affine)) == (Flag.AFFINES_DISAGREE, Flag.GANTRY_TILT)


@pytest.mark.parametrize("hand", [1.0, -1.0])
@pytest.mark.parametrize("angles", [(0, 0, 0), (9, -14, 20), (180, 0, 0), (0, 0, 180), (90, 0, 90)])
def test_the_qform_equals_nibabels(scan, geometry, hand, angles):
    linear = geometry.rotation(*angles) @ np.diag([hand, 1, 1])
    path, affine = scan(SFORM_OFF, linear=linear)
    theirs = nibabel.load(path).header.get_qform()
    np.testing.assert_allclose(read_nifti(path).affine, theirs[:, [2, 1, 0, 3]], atol=1e-4)
    np.testing.assert_allclose(read_nifti(path).affine, affine, atol=1e-3)


def test_a_quaternion_a_little_too_long_is_rounding(scan, geometry):
    """nibabel refuses those of old writers: w2 should be positive."""
    path, affine = scan(SFORM_OFF, ("<3f", QUATERN_B, 0, 0, 1.0002), linear=geometry.rotation(0, 0, 180))
    with pytest.raises(ValueError, match="w2 should be positive"):
        nibabel.load(path).header.get_qform()
    np.testing.assert_allclose(read_nifti(path).affine, affine, atol=1e-3)


@pytest.mark.parametrize(("code", "reason"), [(0, None), (2, None), (10, None), (1, "BAD_SPACING"), (3, "BAD_SPACING")])
def test_lengths_are_in_millimetres_or_unknown(scan, code, reason):
    scanned = scan(("b", UNITS, code))
    assert (read(scanned) == ()) if reason is None else (refusal_of(scanned)[0] == reason)
