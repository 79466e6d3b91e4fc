"""Properties of the one resampler, with scipy and SimpleITK as outsiders."""

import itertools

import numpy as np
import pytest
import SimpleITK
import torch
from scipy import ndimage

from ttepretrain.volume import resample as resampling
from ttepretrain.volume.resample import resample

SOURCE_SHAPE, SOURCE_SPACING = (21, 34, 45), (4.0, 2.5, 2.0)
GRID_SHAPE, GRID_SPACING = (14, 18, 16), (5.0, 4.5, 5.5)
TILT = np.array([[1.0, 0, 0], [0, 1, 0.3], [0, 0, 1]])


def linears(rotation):
    return {
        "aligned": np.eye(3),
        "oblique": rotation(9, -14, 20),
        "tilted": TILT,
        "tilted and oblique": rotation(5, 8, -6) @ TILT,
    }


@pytest.fixture(params=["aligned", "oblique", "tilted", "tilted and oblique"])
def source_affine(request, geometry) -> np.ndarray:
    affine = geometry.centred_affine(SOURCE_SHAPE, SOURCE_SPACING, linears(geometry.rotation)[request.param])
    affine[:3, 3] += [0.7, -1.1, 1.3]
    return affine


def gaussian(x_DHW: np.ndarray, sigmas: np.ndarray) -> np.ndarray:
    """scipy's Gaussian along each axis, its weights renormalised at the border."""
    for axis, sigma in enumerate(sigmas):
        if sigma > 0:
            options = {"axis": axis, "mode": "constant", "radius": int(np.ceil(4 * sigma))}
            ones = ndimage.gaussian_filter1d(np.ones_like(x_DHW), sigma, **options)
            x_DHW = ndimage.gaussian_filter1d(x_DHW, sigma, **options) / ones
    return x_DHW


def simpleitk_linear(x_DHW, affine, grid_affine, grid_shape) -> np.ndarray:
    """SimpleITK's trilinear resampling through an affine transform from grid to source indices; outside is 0.

    Both images get unit spacing, so that sheared affines (which its images cannot hold) are the transform's business.
    """
    to_source = np.linalg.inv(affine) @ grid_affine
    turned = to_source[:3][::-1][:, [2, 1, 0, 3]]  # SimpleITK counts W H D
    transform = SimpleITK.AffineTransform(3)
    transform.SetMatrix(turned[:, :3].ravel().tolist())
    transform.SetTranslation(turned[:, 3].tolist())
    reference = SimpleITK.Image([int(n) for n in grid_shape[::-1]], SimpleITK.sitkFloat64)
    image = SimpleITK.GetImageFromArray(x_DHW.astype(np.float64))
    out = SimpleITK.Resample(image, reference, transform, SimpleITK.sitkLinear, 0.0, SimpleITK.sitkFloat64)
    return SimpleITK.GetArrayFromImage(out)


@pytest.mark.parametrize("grid_spacing", [GRID_SPACING, (3.0, 1.7, 1.6)], ids=["coarser", "finer"])
def test_equals_simpleitk_on_an_identically_filtered_image(source_affine, geometry, grid_spacing):
    rng = np.random.default_rng(3)
    x_DHW = rng.uniform(0, 2000, SOURCE_SHAPE).astype(np.float32)
    grid_affine = geometry.centred_affine(GRID_SHAPE, grid_spacing)
    to_source = np.linalg.inv(source_affine) @ grid_affine
    extent = np.linalg.norm(to_source[:3, :3], axis=1)  # of an output voxel along each source axis
    sigmas = np.sqrt(np.maximum(extent**2 - 1, 0)) / (2 * np.sqrt(2 * np.log(2)))
    expected = simpleitk_linear(gaussian(x_DHW.astype(float), sigmas), source_affine, grid_affine, GRID_SHAPE)

    out = resample(torch.from_numpy(x_DHW), source_affine, grid_affine, GRID_SHAPE).numpy()

    # a point exactly on the outer face of the source may fall on either side
    near_face = (out == 0) != (expected == 0)
    assert near_face.mean() < 0.005
    np.testing.assert_allclose(out[~near_face], expected[~near_face], atol=0.1)
    assert (out != 0).mean() > 0.5


def test_a_constant_stays_constant(source_affine, geometry):
    x_DHW = torch.full(SOURCE_SHAPE, 731.0)
    out = resample(x_DHW, source_affine, geometry.centred_affine(GRID_SHAPE, GRID_SPACING), GRID_SHAPE)
    inside = out > 0
    assert inside.float().mean() > 0.5
    torch.testing.assert_close(out[inside], torch.full_like(out[inside], 731.0), atol=1e-3, rtol=0)


def centroid(x_DHW: np.ndarray) -> np.ndarray:
    return np.array([(index * x_DHW).sum() / x_DHW.sum() for index in np.indices(x_DHW.shape)])


@pytest.mark.parametrize("marker", [(10, 17, 22), (8, 12, 30), (13, 21, 17)])
def test_a_marker_keeps_its_place(source_affine, geometry, marker):
    """The centroid of one bright voxel is where the affine says, within a tenth of an output voxel."""
    shape = (11, 16, 15)
    grid_affine = geometry.centred_affine(shape, (8.0, 5.5, 6.5))
    x_DHW = torch.zeros(SOURCE_SHAPE)
    x_DHW[marker] = 1000.0
    out_DHW = resample(x_DHW, source_affine, grid_affine, shape).numpy()
    expected = np.linalg.inv(grid_affine) @ source_affine @ [*marker, 1]
    np.testing.assert_allclose(centroid(out_DHW), expected[:3], atol=0.1)


def test_a_smooth_marker_keeps_its_place_on_a_grid_of_about_the_same_spacing(source_affine, geometry):
    """There is hardly any filtering then: a marker of one voxel may fall between grid points, a smooth one not."""
    marker = np.array([9, 15, 24])
    offset = geometry.grid_mm(source_affine, SOURCE_SHAPE) - (source_affine @ [*marker, 1])[:3]
    x_DHW = torch.from_numpy(np.exp(-0.5 * (offset**2).sum(axis=-1) / 5.0**2).astype(np.float32))
    grid_affine = geometry.centred_affine(GRID_SHAPE, GRID_SPACING)
    out_DHW = resample(x_DHW, source_affine, grid_affine, GRID_SHAPE).numpy()
    expected = np.linalg.inv(grid_affine) @ source_affine @ [*marker, 1]
    np.testing.assert_allclose(centroid(out_DHW), expected[:3], atol=0.05)


def test_turning_by_nearly_nothing_changes_nearly_nothing(geometry):
    """The separable way and the gathering way are one operator: they meet where the grid leaves the axes."""
    rng = np.random.default_rng(5)
    x_DHW = torch.from_numpy(rng.uniform(0, 1000, SOURCE_SHAPE).astype(np.float32))
    grid_affine = geometry.centred_affine(GRID_SHAPE, GRID_SPACING)
    straight, turned = (
        resample(x_DHW, geometry.centred_affine(SOURCE_SHAPE, SOURCE_SPACING, linear), grid_affine, GRID_SHAPE)
        for linear in (np.eye(3), geometry.rotation(0.05, 0.05, 0.05))
    )
    assert not torch.equal(straight, turned)
    assert (straight - turned)[2:-2, 2:-2, 2:-2].abs().max() < 12  # of 1000, from voxels that moved by 0.02 voxels


def test_detail_finer_than_the_grid_does_not_alias(geometry):
    """A wave of 1.1 periods an output voxel would come back as a slow wave of full height from plain interpolation."""
    wave_W = 1000 * np.cos(2 * np.pi * 1.1 * np.arange(SOURCE_SHAPE[2]) * SOURCE_SPACING[2] / GRID_SPACING[2])
    x_DHW = torch.from_numpy(np.broadcast_to(wave_W, SOURCE_SHAPE).astype(np.float32).copy())
    affine = geometry.centred_affine(SOURCE_SHAPE, SOURCE_SPACING)
    out = resample(x_DHW, affine, geometry.centred_affine(GRID_SHAPE, GRID_SPACING), GRID_SHAPE)
    assert out[2:-2, 2:-2, 2:-2].abs().max() < 150


def test_the_same_grid_gives_the_same_voxels(source_affine):
    rng = np.random.default_rng(7)
    x_DHW = torch.from_numpy(rng.uniform(0, 1000, SOURCE_SHAPE).astype(np.float32))
    torch.testing.assert_close(resample(x_DHW, source_affine, source_affine, SOURCE_SHAPE), x_DHW, atol=1e-3, rtol=0)


@pytest.mark.parametrize("far", list(itertools.product((-1, 1), range(3))))
def test_a_grid_beside_the_source_is_empty(source_affine, geometry, far):
    side, axis = far
    grid_affine = geometry.centred_affine(GRID_SHAPE, GRID_SPACING)
    grid_affine[axis, 3] += side * 500.0
    assert not resample(torch.ones(SOURCE_SHAPE), source_affine, grid_affine, GRID_SHAPE).any()


def test_the_size_of_chunks_and_bands_plays_no_part(source_affine, geometry, monkeypatch):
    rng = np.random.default_rng(11)
    x_DHW = torch.from_numpy(rng.uniform(0, 1000, SOURCE_SHAPE).astype(np.float32))
    grid_affine = geometry.centred_affine(GRID_SHAPE, GRID_SPACING)
    whole = resample(x_DHW, source_affine, grid_affine, GRID_SHAPE)
    monkeypatch.setattr(resampling, "CHUNK", 5 * SOURCE_SHAPE[0] * SOURCE_SHAPE[2])  # 5 rows: 34 is no multiple
    monkeypatch.setattr(resampling, "BAND", 3)
    monkeypatch.setattr(resampling, "SMOOTH_COLUMNS", 7)
    for voxels, shared in ((10_000, 2.0), (5_000, 2.0), (1, 100.0)):
        monkeypatch.setattr(resampling, "GATHER_VOXELS", voxels)
        monkeypatch.setattr(resampling, "SHARED", shared)
        parts = resample(x_DHW, source_affine, grid_affine, GRID_SHAPE)
        torch.testing.assert_close(parts, whole, atol=1e-3, rtol=0)


def test_a_turned_grid_is_read_in_parts_that_share_little(geometry, monkeypatch):
    """Under gantry tilt as many as are needed, since parts share next to nothing; under a large rotation not at all."""
    monkeypatch.setattr(resampling, "GATHER_VOXELS", 4_000)
    grid_affine = geometry.centred_affine(GRID_SHAPE, GRID_SPACING)
    whole = np.prod(SOURCE_SHAPE)
    for linear, most, shared in ((TILT, 4_000, 1.25), (geometry.rotation(9, -14, 20), whole, 1.0)):
        source_affine = geometry.centred_affine(SOURCE_SHAPE, SOURCE_SPACING, linear)
        to_source = np.linalg.inv(source_affine) @ grid_affine
        parts = list(resampling._parts(to_source, GRID_SHAPE, SOURCE_SHAPE))
        reached = []
        for part in parts:
            low, high = resampling._reach(to_source, part, SOURCE_SHAPE)
            reached.append(np.prod(high - low + 1))
        assert max(reached) <= most
        assert sum(reached) <= shared * whole
        assert sum(np.prod([len(p) for p in part]) for part in parts) == np.prod(GRID_SHAPE)


def test_int16_within_limits_is_the_clipped_source(source_affine, geometry):
    rng = np.random.default_rng(13)
    hu_DHW = rng.integers(-3000, 5000, SOURCE_SHAPE).astype(np.int16)
    kept = hu_DHW.copy()
    grid_affine = geometry.centred_affine(GRID_SHAPE, GRID_SPACING)
    out = resample(torch.from_numpy(hu_DHW), source_affine, grid_affine, GRID_SHAPE, (-1024.0, 3071.0))
    above_air_DHW = torch.from_numpy(hu_DHW.clip(-1024, 3071).astype(np.float32) + 1024)
    expected = resample(above_air_DHW, source_affine, grid_affine, GRID_SHAPE)
    torch.testing.assert_close(out, expected, atol=1e-3, rtol=0)
    np.testing.assert_array_equal(hu_DHW, kept)
