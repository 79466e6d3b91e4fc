"""The presets of others: Merlin's against MONAI's own transforms, the paper's against a plain average."""

from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch

from ttepretrain.errors import ConfigError
from ttepretrain.volume.image import CTImage
from ttepretrain.volume.preprocess import preprocess_ct, stretch
from ttepretrain.volume.spec import PRESETS, VolumeConfig
from ttepretrain.volume.windows import apply_windows


@pytest.fixture(scope="module")
def merlin():
    """What is published with Merlin's weights, from a NIfTI file to [X, Y, Z]; ours has the axes D H W = Z Y X."""
    from monai.data import MetaTensor
    from monai.transforms import (
        CenterSpatialCrop,
        Compose,
        Orientation,
        ScaleIntensityRange,
        Spacing,
        SpatialPad,
    )

    transforms = Compose(
        [
            Orientation(axcodes="RAS", labels=None),
            Spacing(pixdim=(1.5, 1.5, 3.0), mode="bilinear"),
            ScaleIntensityRange(a_min=-1000, a_max=1000, b_min=0.0, b_max=1.0, clip=True),
            SpatialPad(spatial_size=MERLIN.shape_DHW[::-1]),
            CenterSpatialCrop(roi_size=MERLIN.shape_DHW[::-1]),
        ]
    )

    def read(path) -> np.ndarray:
        image = nibabel.load(path)
        scan = MetaTensor(torch.from_numpy(image.get_fdata(dtype=np.float32))[None], affine=image.affine)
        return transforms(scan)[0].numpy().transpose(2, 1, 0)

    return read


MERLIN = replace(PRESETS["merlin"], shape_DHW=(50, 70, 74))  # less to compute than its 160 x 224 x 224


def network_input(path, spec) -> np.ndarray:
    """[D, H, W] of the first channel."""
    hu_DHW = torch.from_numpy(preprocess_ct(path, spec).hu_DHW)
    return apply_windows(hu_DHW[None], spec.windows)[0, 0].numpy()


def test_merlins_grid_and_range_are_the_published_ones():
    spec = PRESETS["merlin"]
    assert (spec.spacing_mm, spec.shape_DHW, spec.hu_range) == ((3.0, 1.5, 1.5), (160, 224, 224), (-1000, 1000))
    ends = apply_windows(torch.tensor([[[[-1000, 0, 1000]]]], dtype=torch.int16), spec.windows)
    assert ends.flatten().tolist() == [0.0, 0.5, 1.0]


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((24, 31, 33), (4.1, 2.3, 1.9)), ((71, 21, 52), (3.0, 4.0, 7.3))],
    ids=["smaller than the grid", "larger along the body and across it"],
)
def test_merlin_is_monais_pipeline_where_nothing_is_averaged(tmp_path, geometry, write_nifti, merlin, shape, spacing):
    """Coarser scans than the grid: both interpolate linearly, at the same places, voxel by voxel.

    Half a stored HU is .00025. At the faces ours covers the outer half voxel of the scan; MONAI pads.
    """
    affine = geometry.centred_affine(shape, spacing, np.diag([-1.0, 1.0, 1.0]))
    affine[:3, 3] += [11.3, -7.1, 40.9]
    path = write_nifti(tmp_path / "scan.nii.gz", geometry.phantom_hu(geometry.grid_mm(affine, shape)), affine)
    ours = network_input(path, MERLIN)
    theirs = merlin(path)
    assert ours.shape == theirs.shape == MERLIN.shape_DHW
    assert ours.min() >= 0
    assert ours.max() <= 1
    assert theirs.max() > 0.6  # the spine is in it
    others = [tuple(b for b in range(3) if b != axis) for axis in range(3)]
    covered = [np.flatnonzero((theirs > 0).any(axis=other)) for other in others]
    inside = tuple(slice(planes[0], planes[-1] + 1) for planes in covered)
    assert np.abs(ours - theirs)[inside].max() < 0.0005
    seen = [np.flatnonzero((ours > 0).any(axis=other)) for other in others]
    for ours_planes, their_planes, mm, step in zip(seen, covered, spacing, MERLIN.spacing_mm):
        assert 0 <= len(ours_planes) - len(their_planes) <= 2 * np.ceil(mm / 2 / step)


def test_merlin_differs_from_monai_only_by_averaging_when_downsampling(tmp_path, geometry, write_nifti, merlin):
    """Ours does not alias: it is closer to the body's own mean over each voxel."""
    shape, spacing = (40, 50, 60), (1.0, 0.9, 0.8)
    affine = geometry.centred_affine(shape, spacing)
    noise = np.random.default_rng(3).normal(0, 100, shape)
    hu_DHW = (geometry.phantom_hu(geometry.grid_mm(affine, shape)) + noise).astype(np.float32)
    path = write_nifti(tmp_path / "scan.nii.gz", hu_DHW, affine)
    ours, theirs = network_input(path, MERLIN), merlin(path)
    mm = geometry.grid_mm(preprocess_ct(path, MERLIN).affine, ours.shape)
    truth = (geometry.phantom_hu(mm) + 1000) / 2000
    inside = np.zeros(ours.shape, bool)
    inside[22:28, 25:45, 27:47] = True
    assert np.abs(ours - truth)[inside].std() < 0.5 * np.abs(theirs - truth)[inside].std()


def test_reference_is_the_papers_min_max_and_area_resize():
    """Against plain loops over one axis at a time, shrinking and growing; one bright voxel darkens all others."""
    rng = np.random.default_rng(5)
    hu_DHW = rng.integers(-1000, 1500, (300, 100, 91)).astype(np.int16)
    spec = PRESETS["reference"]
    image = CTImage(hu_DHW, np.diag([1.0, 2.0, 3.0, 1.0]), (), {})
    stored_DHW, affine = stretch(image, spec)
    expected = (hu_DHW - hu_DHW.min()) / np.float64(int(hu_DHW.max()) - int(hu_DHW.min()))
    for axis in range(3):
        size, cells = expected.shape[axis], 224
        starts, ends = [i * size // cells for i in range(cells)], [-(-(i + 1) * size // cells) for i in range(cells)]
        expected = np.stack([expected.take(range(a, b), axis).mean(axis) for a, b in zip(starts, ends)], axis)
    x = apply_windows(torch.from_numpy(stored_DHW)[None], spec.windows)[0, 0].numpy()
    np.testing.assert_allclose(x, expected, atol=2e-5)
    np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), np.array([300, 200, 273]) / 224)
    corners_mm = [affine[:3] @ [a, b, c, 1] for a in (-0.5, 223.5) for b in (-0.5, 223.5) for c in (-0.5, 223.5)]
    np.testing.assert_allclose(np.min(corners_mm, axis=0), [-0.5, -1.0, -1.5])
    np.testing.assert_allclose(np.max(corners_mm, axis=0), [299.5, 199.0, 271.5])

    hu_DHW[0, 0, 0] = 30000
    darker, _ = stretch(image, spec)
    assert darker[100:].max() < -25000


def test_reference_keeps_the_files_own_axes(tmp_path, geometry, write_nifti):
    affine = geometry.centred_affine((20, 24, 30), (9.0, 6.5, 7.0))
    hu_DHW = np.round(geometry.phantom_hu(geometry.grid_mm(affine, (20, 24, 30)))).astype(np.int16)
    upright = network_input(write_nifti(tmp_path / "a.nii", hu_DHW, affine), PRESETS["reference"])
    mirrored = affine @ np.diag([1.0, 1.0, -1.0, 1.0])
    mirrored[:3, 3] += affine[:3, 2] * 29
    turned = network_input(write_nifti(tmp_path / "b.nii", hu_DHW[:, :, ::-1], mirrored), PRESETS["reference"])
    np.testing.assert_allclose(turned, upright[:, :, ::-1], atol=2e-5)  # one step of the 65,536


def test_reference_has_no_spacing_window_or_range_to_set():
    assert VolumeConfig("reference", shape_DHW=[64, 64, 64]).resolve().shape_DHW == (64, 64, 64)
    for keys in ({"spacing_mm": [1.0, 1.0, 1.0]}, {"hu_range": [-1000, 1000]}, {"windows": [[0, 100]]}):
        with pytest.raises(ConfigError, match=f"volume.{next(iter(keys))} has no meaning with reference"):
            VolumeConfig("reference", **keys)
