"""The one path from a scan to the network's grid."""

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ttepretrain.errors import BadStudy
from ttepretrain.volume import refusal
from ttepretrain.volume.checks import Reason
from ttepretrain.volume.preprocess import preprocess_ct, read_ct
from ttepretrain.volume.source import source_hash
from ttepretrain.volume.spec import LUNG, SOFT_TISSUE, VolumeSpec

SPEC = VolumeSpec((10.0, 8.0, 9.0), (13, 20, 24), (-1024, 3071), (LUNG, SOFT_TISSUE))


def test_all_48_orientations_of_a_file_give_the_same_volume(tmp_path, geometry, write_nifti):
    affine = geometry.centred_affine((11, 25, 30), (9.0, 6.5, 7.0))
    hu_DHW = np.round(geometry.phantom_hu(geometry.grid_mm(affine, (11, 25, 30)))).astype(np.int16)
    reference = preprocess_ct(write_nifti(tmp_path / "reference.nii", hu_DHW, affine), SPEC)
    for order in itertools.permutations(range(3)):
        for flips in itertools.product((False, True), repeat=3):
            turned, reorder = hu_DHW.transpose(order), np.zeros((4, 4))
            reorder[order, range(3)], reorder[3, 3] = 1.0, 1.0
            for axis in np.flatnonzero(flips):
                turned = np.flip(turned, axis)
                reorder[:3, 3] += reorder[:3, axis] * (turned.shape[axis] - 1)
                reorder[:3, axis] *= -1
            volume = preprocess_ct(write_nifti(tmp_path / "turned.nii", turned, affine @ reorder), SPEC)
            np.testing.assert_allclose(volume.affine, reference.affine, atol=1e-4)
            assert np.abs(volume.hu_DHW - reference.hu_DHW).max() <= 1
            np.testing.assert_allclose(volume.source_spacing_mm, (9.0, 6.5, 7.0), rtol=1e-5)


@pytest.mark.parametrize("angles", [(0, 0, 0), (7, -12, 15), (0, 0, 40)])
def test_voxels_show_what_lies_at_their_millimetres(tmp_path, geometry, write_nifti, angles):
    """An oblique scan of the analytic chest lands on the analytic chest, and on none of its mirror images."""
    shape = (40, 60, 64)
    affine = geometry.centred_affine(shape, (6.0, 4.0, 3.9), geometry.rotation(*angles))
    path = write_nifti(tmp_path / "oblique.nii.gz", geometry.phantom_hu(geometry.grid_mm(affine, shape)), affine)
    volume = preprocess_ct(path, SPEC)
    expected = geometry.phantom_hu(geometry.grid_mm(volume.affine, SPEC.shape_DHW))
    inner = (slice(2, -2),) * 3
    assert np.corrcoef(volume.hu_DHW[inner].ravel(), expected[inner].ravel())[0, 1] > 0.99
    for axis in range(3):
        assert np.corrcoef(np.flip(volume.hu_DHW, axis)[inner].ravel(), expected[inner].ravel())[0, 1] < 0.97
    np.testing.assert_array_equal(volume.affine[:3, :3], np.diag(SPEC.spacing_mm)[::-1])


def test_axes_grow_towards_head_front_and_right(tmp_path, chest, write_series):
    """The phantom's larger lung is on the right, its spine behind, its liver low on the right."""
    hu_DHW, affine = chest
    write_series(tmp_path / "scan", hu_DHW, affine)
    out = preprocess_ct(tmp_path / "scan", SPEC).hu_DHW
    middle_D, middle_H, middle_W = (n // 2 for n in SPEC.shape_DHW)
    lung = (out < -500) & (out > -900)
    assert lung[middle_D:, :, middle_W:].sum() > 1.15 * lung[middle_D:, :, :middle_W].sum()
    spine = out > 200
    assert spine[:, :middle_H].sum() > 10 * max(1, spine[:, middle_H:].sum())
    liver = (out > 80) & (out < 130)
    liver[:, :middle_H] = False  # the spine's rim has liver's HU
    assert liver[:middle_D, :, middle_W:].sum() > 10 * max(1, liver[middle_D:].sum(), liver[:, :, :middle_W].sum())


def test_dicom_and_nifti_of_one_scan_agree(tmp_path, chest, write_series, write_nifti):
    hu_DHW, affine = chest
    write_series(tmp_path / "scan", hu_DHW, affine)
    from_dicom = preprocess_ct(tmp_path / "scan", SPEC)
    from_nifti = preprocess_ct(write_nifti(tmp_path / "scan.nii.gz", hu_DHW, affine), SPEC)
    np.testing.assert_allclose(from_dicom.affine, from_nifti.affine, atol=1e-3)
    assert np.abs(from_dicom.hu_DHW - from_nifti.hu_DHW).max() <= 1
    assert from_dicom.acquisition == {
        "manufacturer": "siemens", "kernel": "B30F", "kvp": 120.0, "contrast": None, "slice_thickness_mm": 8.0,
    }  # fmt: skip
    assert set(from_nifti.acquisition.values()) == {None}


def test_a_couch_and_a_shifted_patient_do_not_move_the_centre(tmp_path, geometry, write_nifti):
    """The grid is centred on the body, not on the field of view; a thin plate below it is no body."""
    shape, spacing = (12, 70, 80), (9.0, 5.0, 5.0)
    affine = geometry.centred_affine(shape, spacing)
    affine[:3, 3] += [60.0, 25.0, 0.0]
    mm = geometry.grid_mm(affine, shape)
    hu_DHW = geometry.phantom_hu(mm)
    bare = preprocess_ct(write_nifti(tmp_path / "bare.nii", hu_DHW, affine), SPEC)
    hu_DHW[(np.abs(mm[..., 1] + 90) < 3) & (np.abs(mm[..., 0]) < 150)] = 100.0
    couch = preprocess_ct(write_nifti(tmp_path / "couch.nii", hu_DHW, affine), SPEC)
    centre = bare.affine @ [*(np.array(SPEC.shape_DHW) - 1) / 2, 1]
    np.testing.assert_allclose(centre[:2], 0, atol=4)
    np.testing.assert_allclose(couch.affine, bare.affine, atol=2)


def test_air_fills_what_the_scan_does_not_cover_and_values_stay_in_range(tmp_path, chest, write_nifti):
    hu_DHW, affine = chest
    hu_DHW = hu_DHW.astype(np.float32)
    hu_DHW[5, 15, 20] = 30000.0  # metal
    hu_DHW[:, :2] = -3024.0  # a scanner's padding
    spec = VolumeSpec((10.0, 8.0, 9.0), (40, 20, 24), (-1000, 2000), (LUNG,))
    out = preprocess_ct(write_nifti(tmp_path / "scan.nii", hu_DHW, affine), spec).hu_DHW
    assert out.dtype == np.int16
    assert out.shape == spec.shape_DHW
    assert out.min() == -1000
    assert out.max() <= 2000
    assert (out[:10] == -1000).all()
    assert (out[-10:] == -1000).all()


# A16
def test_twice_is_the_same_bytes_and_names_do_not_matter(tmp_path, chest, write_series):
    files = write_series(tmp_path / "scan", *chest)
    first, content = preprocess_ct(tmp_path / "scan", SPEC), source_hash(tmp_path / "scan")
    for number, file in enumerate(sorted(files, reverse=True)):
        file.rename(file.with_name(f"IM{number}"))
    (tmp_path / "scan").rename(tmp_path / "odd\nname -é")
    second = preprocess_ct(tmp_path / "odd\nname -é", SPEC)
    assert second.hu_DHW.tobytes() == first.hu_DHW.tobytes()
    assert source_hash(tmp_path / "odd\nname -é") == content


# A3, A13: the bytes decide, not name or date
def test_one_other_byte_is_another_hash(tmp_path, chest, write_series):
    files = write_series(tmp_path / "scan", *chest)
    before = source_hash(tmp_path / "scan")
    data = bytearray(files[3].read_bytes())
    data[-1] ^= 1
    files[3].write_bytes(data)
    assert source_hash(tmp_path / "scan") != before


# A4
def test_a_path_that_is_not_there_or_leads_in_circles(tmp_path):
    (tmp_path / "loop.nii.gz").symlink_to(tmp_path / "loop.nii.gz")
    for name, reason in (
        ("absent.nii.gz", Reason.NOT_FOUND),
        ("absent", Reason.NOT_FOUND),
        ("x" * 300 + ".nii", Reason.UNREADABLE),
        ("loop.nii.gz", Reason.UNREADABLE),
    ):
        with pytest.raises(BadStudy) as refusal:
            preprocess_ct(tmp_path / name, SPEC)
        assert refusal.value.code == reason
        with pytest.raises(BadStudy) as refusal:
            read_ct(tmp_path / name)
        assert refusal.value.code == reason


# A14
def test_a_file_without_permission_is_refused(tmp_path, chest, write_nifti, failing_open):
    """Tests run as root, so the refusal of the operating system is put in its place."""
    path = write_nifti(tmp_path / "scan.nii", *chest)
    waits = failing_open(PermissionError(13, "Permission denied", str(path)))
    with pytest.raises(BadStudy, match="PERMISSION") as refused:
        preprocess_ct(path, SPEC)
    assert "scan" not in str(refused.value)
    assert waits == []


# A15
def test_a_failing_disk_is_waited_for_and_then_refuses_the_scan(tmp_path, chest, write_nifti, failing_open):
    path = write_nifti(tmp_path / "scan.nii", *chest)
    waits = failing_open(OSError(5, "Input/output error"))
    with pytest.raises(BadStudy, match="UNREADABLE: Input/output error"):
        preprocess_ct(path, SPEC)
    assert waits == list(refusal.WAIT_SECONDS)


@pytest.fixture
def failing_open(monkeypatch):
    """Make every opening of a file fail; gives the list of the waits between attempts."""
    waits = []
    monkeypatch.setattr(refusal.time, "sleep", waits.append)

    def fail(error):
        def open_(*_arguments, **_keywords):
            raise error

        monkeypatch.setattr(Path, "open", open_)
        return waits

    return fail


def test_readers_do_not_import_torch(repository):
    code = (
        "import sys; import ttepretrain.volume.dicom, ttepretrain.volume.nifti, ttepretrain.volume.source;"
        "print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
