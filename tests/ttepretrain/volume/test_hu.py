"""Values that are not HU, as they come out of files: refused with the cause, or flagged."""

import numpy as np
import pytest

from ttepretrain.errors import BadStudy
from ttepretrain.volume.checks import Flag, Reason
from ttepretrain.volume.hu import check_hu
from ttepretrain.volume.preprocess import read_ct


@pytest.fixture(scope="module")
def noisy(geometry) -> tuple[np.ndarray, np.ndarray]:
    """(hu_DHW int16, affine) of the analytic chest with noise: 24 slices of 60 x 64 voxels."""
    shape = (24, 60, 64)
    affine = geometry.dicom_affine(shape, (6.0, 4.0, 4.0))
    noise = np.random.default_rng(0).normal(0, 15, shape)
    return np.round(geometry.phantom_hu(geometry.grid_mm(affine, shape)) + noise).astype(np.int16), affine


def ring(hu_DHW: np.ndarray, value: int) -> np.ndarray:
    h, w = np.ogrid[-1 : 1 : hu_DHW.shape[1] * 1j, -1 : 1 : hu_DHW.shape[2] * 1j]
    return np.where(h**2 + w**2 > 1.0, value, hu_DHW)


def refused(path) -> str:
    with pytest.raises(BadStudy) as refusal:
        read_ct(path)
    assert refusal.value.code == Reason.NOT_HU
    return refusal.value.detail


def test_a_ring_of_padding_does_not_hide_that_1024_was_added(tmp_path, noisy, write_nifti, write_series):
    """Soft tissue near 1,064 HU, air near 24; the ring is the only thing below -300. Once as NIfTI, once as DICOM."""
    hu_DHW, affine = noisy
    for value in (-2000, -1024, -3024):
        path = write_nifti(tmp_path / "scan.nii", ring(hu_DHW.astype(np.int16) + 1024, value).astype(np.int16), affine)
        assert refused(path).endswith("1,000 or 1,024 was added; write HU")

    def no_intercept(_, dataset):
        stored = np.frombuffer(dataset.PixelData, np.uint16).reshape(hu_DHW.shape[1:]).astype(int)
        dataset.PixelData = ring(stored[None], -2000)[0].astype(np.int16).tobytes()
        dataset.RescaleIntercept, dataset.PixelRepresentation, dataset.PixelPaddingValue = 0, 1, -2000

    write_series(tmp_path / "series", hu_DHW, affine, no_intercept)
    assert refused(tmp_path / "series").endswith("1,000 or 1,024 was added; write HU")
    assert read_ct(write_nifti(tmp_path / "sound.nii", ring(hu_DHW, -2000), affine)).flags == ()


def test_a_slope_that_is_lost_in_some_slices_is_doubtful(tmp_path, noisy, write_nifti):
    hu_DHW, affine = noisy
    part = hu_DHW.copy()
    part[:6] += 1024
    assert read_ct(write_nifti(tmp_path / "part.nii", part, affine)).flags == (Flag.HU_DOUBTFUL,)


def test_a_window_is_flagged_where_it_cut_something_off(tmp_path, noisy, write_nifti):
    hu_DHW, affine = noisy
    for low, high, flags in (
        (-1024, 3071, ()),
        (-1000, 600, ()),  # nothing was above
        (-1000, 400, (Flag.HU_CLIPPED,)),
        (-1350, 100, (Flag.HU_CLIPPED,)),
        (-700, 1000, (Flag.HU_CLIPPED,)),
    ):
        image = read_ct(write_nifti(tmp_path / "window.nii", hu_DHW.clip(low, high), affine))
        assert image.flags == flags, (low, high)
    assert "air was cut off at -160, as a window does" in refused(
        write_nifti(tmp_path / "window.nii", hu_DHW.clip(-160, 240), affine)
    )


def test_a_perfusion_map_of_unspecified_unit_is_refused(tmp_path, noisy, write_series):
    """RescaleType US lets it through: zeros, no fat, no bone, nothing between background and tissue."""
    hu_DHW, affine = noisy
    flow = np.maximum(0, np.random.default_rng(1).normal(15, 25, hu_DHW.shape)).round().astype(np.int16)
    flow[hu_DHW < -300] = -1024

    def unspecified(_, dataset):
        dataset.RescaleType = "US"

    write_series(tmp_path / "map", flow, affine, unspecified)
    assert "of the body is exactly 0" in refused(tmp_path / "map")


def test_a_single_extreme_value_and_a_constant(noisy):
    hu_DHW, _ = noisy
    assert check_hu(hu_DHW) == ()
    outlier = hu_DHW.astype(np.float32)
    outlier[3, 4, 5] = 30_000  # metal
    assert check_hu(outlier) == ()
    outlier[3, 4, 5] = 1e6
    with pytest.raises(BadStudy, match=r"NOT_HU: values from -\d+ to 1e\+06"):
        check_hu(outlier)
    for value in (-1024, 0, 40):
        with pytest.raises(BadStudy, match=f"CONSTANT: every voxel is {value}"):
            check_hu(np.full((5, 6, 7), value, np.int16))


def test_little_tissue_is_never_flagged(noisy):
    """A thumbnail: too few voxels to judge the shape of a histogram."""
    hu_DHW, _ = noisy
    assert check_hu(hu_DHW[::5, ::4, ::4].clip(-1000, 300)) == ()


def test_every_view_of_a_scan_is_judged_alike(noisy):
    hu_DHW, _ = noisy
    for view in (hu_DHW[::-1], hu_DHW.transpose(2, 0, 1), np.asfortranarray(hu_DHW), hu_DHW.astype(np.float32)):
        assert check_hu(view) == ()
        with pytest.raises(BadStudy, match="was added"):
            check_hu(view + 1024)
