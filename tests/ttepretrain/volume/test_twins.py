"""The same scan as DICOM and as NIfTI: equal voxels within rounding, and equal features of a small encoder."""

import subprocess

import dcm2niix
import nibabel
import numpy as np
import pytest
import SimpleITK
import torch

from ttepretrain.errors import BadStudy
from ttepretrain.models.config import ModelConfig, ViTConfig
from ttepretrain.models.encoder import build_encoder
from ttepretrain.volume.checks import Flag, Reason
from ttepretrain.volume.dicom.reader import read_dicom
from ttepretrain.volume.image import to_ras
from ttepretrain.volume.nifti import read_nifti
from ttepretrain.volume.preprocess import preprocess_ct, read_ct
from ttepretrain.volume.spec import PRESETS
from ttepretrain.volume.windows import apply_windows

SMALL = PRESETS["small"]
SHAPE = (40, 52, 60)


@pytest.fixture(scope="module")
def features_of():
    encoder = build_encoder(ModelConfig(encoder="vit_liere", vit=ViTConfig([8, 8, 8], 2, 32, 2, 8)), 3, 0).eval()

    def run(hu_DHW):
        with torch.inference_mode():
            return encoder.features(apply_windows(torch.from_numpy(hu_DHW)[None], SMALL.windows))[0]

    return run


@pytest.fixture
def assert_twins(features_of):
    """Function: of two scans, voxels of the source and of the grid are equal, and so are features."""

    def check(dicom, nifti, mm=1e-3):
        ours, theirs = to_ras(read_ct(dicom)), to_ras(read_ct(nifti))
        np.testing.assert_array_equal(ours.hu_DHW, theirs.hu_DHW)
        np.testing.assert_allclose(ours.affine, theirs.affine, atol=mm)
        one, two = preprocess_ct(dicom, SMALL), preprocess_ct(nifti, SMALL)
        np.testing.assert_allclose(one.affine, two.affine, atol=mm)
        # HU of an edge may change by the difference of the affines
        apart = np.abs(one.hu_DHW.astype(int) - two.hu_DHW)
        assert apart.max() <= 1 + 1000 * mm
        assert (apart > 0).mean() < 0.01 + 10 * mm
        first, second = features_of(one.hu_DHW), features_of(two.hu_DHW)
        assert first.std() > 0.01
        assert (first - second).norm() <= (1e-4 + mm / 10) * first.norm()
        return ours, theirs

    return check


def stored(hu_DHW, affine, order, flips):
    """The same voxels in another order of axes, W H D first, with the affine of that order."""
    image = nibabel.Nifti1Image(hu_DHW.transpose(2, 1, 0), affine[:, [2, 1, 0, 3]])
    return image.as_reoriented(np.array([[axis, flip] for axis, flip in zip(order, flips)]))


LINEARS = {
    "axial": lambda _: np.eye(3),
    "oblique": lambda g: g.rotation(9, -14, 20),
    "head first, prone": lambda g: g.rotation(0, 0, 180),
    "coronal": lambda g: g.rotation(90, 0, 0),
    "tilted": lambda _: np.array([[1.0, 0, 0], [0, 1, 0.33], [0, 0, 1]]),
    "tilted and oblique": lambda g: g.rotation(5, 8, -6) @ np.array([[1.0, 0, 0], [0, 1, -0.2], [0, 0, 1]]),
}


@pytest.mark.parametrize("name", LINEARS)
@pytest.mark.parametrize(
    ("order", "flips", "dtype"),
    [((0, 1, 2), (1, 1, 1), np.int16), ((0, 1, 2), (-1, -1, 1), np.float32), ((2, 0, 1), (1, -1, -1), np.int32)],
    ids=["as written", "flipped float32", "turned int32"],
)
@pytest.mark.parametrize("spacing", [(5.0, 3.4, 3.1), (2.0, 3.3, 4.0)], ids=["thick", "thin"])
def test_generated_twins(tmp_path, geometry, write_series, assert_twins, name, order, flips, dtype, spacing):
    affine = geometry.dicom_affine(SHAPE, spacing)
    affine[:3] = LINEARS[name](geometry) @ affine[:3]
    affine[:3, 3] += [11.0, -17.5, 208.25]
    mm = geometry.grid_mm(affine, SHAPE)
    noise = np.random.default_rng(1).normal(0, 12, SHAPE)
    hu_DHW = np.round(geometry.phantom_hu(mm - [11.0, -17.5, 208.25]) + noise).clip(-1024).astype(np.int16)
    write_series(tmp_path / "dicom", hu_DHW, affine)
    stored(hu_DHW.astype(dtype), affine, order, flips).to_filename(tmp_path / "scan.nii.gz")
    ours, theirs = assert_twins(tmp_path / "dicom", tmp_path / "scan.nii.gz")
    assert ours.flags == theirs.flags


@pytest.mark.parametrize("scaling", [(0.5, -700.0), (2.0, -1024.0), (0.78125, -1000.25)])
def test_twins_whose_slope_is_not_one(tmp_path, geometry, write_series, scaling):
    """The grid's outermost columns lie on the face of the scan, where 32 bits of a header must not decide."""
    slope, intercept = scaling
    affine = geometry.dicom_affine(SHAPE, (5.0, 3.4, 3.1))
    raw = np.round((geometry.phantom_hu(geometry.grid_mm(affine, SHAPE)) - intercept) / slope).astype(np.int16)

    def scaled(_, dataset):
        dataset.RescaleSlope, dataset.RescaleIntercept = slope, intercept - 1024 * slope

    write_series(tmp_path / "dicom", raw, affine, edit=scaled)
    image = nibabel.Nifti1Image(raw.transpose(2, 1, 0), affine[:, [2, 1, 0, 3]])
    image.header.set_slope_inter(slope, intercept)
    image.to_filename(tmp_path / "scan.nii")
    ours, theirs = (to_ras(read_ct(tmp_path / name)) for name in ("dicom", "scan.nii"))
    np.testing.assert_allclose(ours.hu_DHW, theirs.hu_DHW, atol=1e-3)
    one, two = (preprocess_ct(tmp_path / name, SMALL).hu_DHW.astype(int) for name in ("dicom", "scan.nii"))
    assert np.abs(one - two).max() <= 1


@pytest.mark.parametrize(
    "folder", ["ct_totalseg/example_ct_dicom", "ct_cip_lowres/ct-64Dicom", "dicom_pydicom_odd/dicomdir_98892001/CT5N"]
)
def test_real_scans_equal_what_dcm2niix_makes_of_them(fixtures, tmp_path, assert_twins, folder):
    """dcm2niix reads positions, orders slices and decodes by itself. CT5N is five slices of 16 x 16: no features."""
    command = [dcm2niix.bin, "-f", "scan", "-b", "n", "-z", "n", "-o", str(tmp_path), str(fixtures / folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    [converted] = tmp_path.glob("*.nii") or [None]
    if converted is None:
        pytest.skip(f"dcm2niix does not read it: {done.stdout[-200:]}")
    if "CT5N" in folder:
        ours, theirs = to_ras(read_dicom(fixtures / folder)), to_ras(read_nifti(converted))
        np.testing.assert_array_equal(ours.hu_DHW, theirs.hu_DHW)
        np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-3)
    else:
        # dcm2niix takes the step from two slices, whose positions are rounded; ours is the mean of all
        assert_twins(fixtures / folder, converted, mm=2e-2 if "lowres" in folder else 1e-3)


def test_the_real_chest_equals_its_nrrd_twin_as_nifti(fixtures, tmp_path, assert_twins):
    image = SimpleITK.ReadImage(str(fixtures / "ct_cip_lowres" / "ct-64.nrrd"))
    SimpleITK.WriteImage(image, str(tmp_path / "scan.nii.gz"))
    assert_twins(
        fixtures / "ct_cip_lowres" / "ct-64Dicom", tmp_path / "scan.nii.gz", mm=2e-3
    )  # its headers are rounded


@pytest.mark.parametrize("folder", ["ct_totalseg/example_ct_dicom", "ct_dcmqa_ge_tilt/GE"])
def test_real_scans_equal_what_nibabel_keeps_of_them(fixtures, tmp_path, assert_twins, folder):
    """Also the uneven, tilted head, on its even grid: the sform holds the shear."""
    image = read_dicom(fixtures / folder)
    stored(image.hu_DHW, image.affine, (0, 1, 2), (-1, 1, -1)).to_filename(tmp_path / "scan.nii.gz")
    ours, theirs = assert_twins(fixtures / folder, tmp_path / "scan.nii.gz")
    assert set(ours.flags) - {Flag.UNEVEN_SPACING} == set(theirs.flags)


def test_a_real_scan_lies_where_the_segmentation_of_it_lies(fixtures):
    """The mask of another program, made from the same DICOM files, has the same grid."""
    image = to_ras(read_dicom(fixtures / "ct_totalseg" / "example_ct_dicom"))
    mask = nibabel.as_closest_canonical(nibabel.load(fixtures / "ct_totalseg" / "example_seg_dicom.nii.gz"))
    labels_DHW = np.asarray(mask.dataobj).transpose(2, 1, 0)
    assert labels_DHW.shape == image.hu_DHW.shape
    np.testing.assert_allclose(mask.affine[:, [2, 1, 0, 3]], image.affine, atol=1e-3)


@pytest.mark.parametrize("codec", ["compressed_rle", "compressed_jpegls"])
def test_the_mr_twins_are_refused_in_both_forms(fixtures, codec):
    """The other fixtures with both forms are no CT; test_read_fixtures.py compares their voxels below that gate."""
    folder = fixtures / "ct_dicom2nifti" / "generic" / codec
    for path, code in ((folder / "001", Reason.NOT_CT), (folder / "001_ground_truth.nii.gz", Reason.NOT_HU)):
        with pytest.raises(BadStudy) as refusal:
            read_ct(path)
        assert refusal.value.code == code
