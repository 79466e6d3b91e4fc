"""What the network sees: windows and random views."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from ttepretrain.volume.augment import augment
from ttepretrain.volume.spec import BONE, LUNG, PRESETS, SOFT_TISSUE, VolumeConfig, VolumeSpec
from ttepretrain.volume.windows import apply_windows


@pytest.fixture
def hu_BDHW():
    """Four studies of smooth structure, unequal axes."""
    rng = np.random.default_rng(1)
    coarse = torch.from_numpy(rng.uniform(-900, 900, (4, 1, 4, 5, 6))).float()
    return torch.nn.functional.interpolate(coarse, (18, 24, 30), mode="trilinear")[:, 0]


def test_windows_map_their_edges_to_minus_one_and_one():
    hu = torch.tensor([-2000, -1350, -600, 150, 240, 3000], dtype=torch.int16).reshape(1, 1, 2, 3)
    lung, soft = apply_windows(hu, (LUNG, SOFT_TISSUE))[0].reshape(2, 6)
    torch.testing.assert_close(lung, torch.tensor([-1.0, -1.0, 0.0, 1.0, 1.0, 1.0]))
    torch.testing.assert_close(soft, torch.tensor([-1.0, -1.0, -1.0, 110 / 200, 1.0, 1.0]))


def test_windows_are_channels_in_their_order(hu_BDHW):
    x_BCDHW = apply_windows(hu_BDHW.to(torch.int16), (LUNG, SOFT_TISSUE, BONE))
    assert x_BCDHW.shape == (4, 3, 18, 24, 30)
    assert x_BCDHW.dtype == torch.float32
    expected = np.clip((hu_BDHW.to(torch.int16).numpy() - 400.0) / 900.0, -1, 1)
    np.testing.assert_allclose(x_BCDHW[:, 2].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(("flip", "blur"), [(0.0, 0.0), (0.5, 1.5)])
def test_a_view_is_a_function_of_its_seed_alone(hu_BDHW, flip, blur):
    """Order and company in the batch change nothing, bit for bit; the input is left as it was."""
    before = hu_BDHW.clone()
    seeds_B = torch.tensor([5, -(2**62), 7, 2**62 + 1])
    views = augment(hu_BDHW, seeds_B, 1.0, flip, blur)
    assert torch.equal(hu_BDHW, before)
    for rows in ([0], [3, 1], [2, 0, 1, 3]):
        assert torch.equal(augment(hu_BDHW[rows], seeds_B[rows], 1.0, flip, blur), views[rows])
    torch.manual_seed(123)
    assert torch.equal(augment(hu_BDHW, seeds_B, 1.0, flip, blur), views)


def test_flipping_mirrors_left_to_right_as_many_views_as_it_says(hu_BDHW):
    x, seeds_B = hu_BDHW[:1].expand(400, -1, -1, -1)[:, :3, :4], torch.arange(400)
    views = augment(x, seeds_B, 0.0, flip=0.3)
    mirrored_B = (views - x.flip(3)).abs().amax(dim=(1, 2, 3)) < 0.01
    same_B = (views - x).abs().amax(dim=(1, 2, 3)) < 0.01
    assert (mirrored_B ^ same_B).all()
    assert 90 <= int(mirrored_B.sum()) <= 150  # 120 +- 3.3 deviations
    assert not (augment(x, seeds_B, 0.0, flip=1.0) - x.flip(3)).abs().max() > 0.01


def test_blurring_is_a_gaussian_of_a_width_drawn_up_to_the_limit():
    """Compared with SciPy's away from the faces; a flat study stays as it is, faces included."""
    ball = torch.zeros(1, 25, 27, 29)
    ball[0, 12, 13, 14] = 1000.0
    widths = []
    for seed in range(40):
        view = augment(ball, torch.tensor([seed]), 0.0, blur=2.0)[0].numpy()
        index = np.arange(29) - 14
        widths.append(np.sqrt((view.sum((0, 1)) * index**2).sum() / view.sum()))  # its standard deviation
        expected = gaussian_filter(ball[0].numpy(), max(widths[-1], 0.01), truncate=6.0)
        if widths[-1] > 0.7:  # narrower ones lose variance to sampling
            np.testing.assert_allclose(view, expected, atol=0.5)
    assert 0 <= min(widths) < 0.4
    assert 1.6 < max(widths) <= 2.0 + 1e-3
    flat = torch.full((2, 9, 10, 11), 40.0)
    torch.testing.assert_close(augment(flat, torch.tensor([1, 2]), 0.0, blur=2.0), flat)


def test_flip_and_blur_leave_the_other_draws_as_they_are(hu_BDHW):
    """A recipe without them has the same views, bit for bit, since before they were there: the first eight draws."""
    seeds_B = torch.arange(4)
    views = augment(hu_BDHW, seeds_B)
    assert torch.equal(augment(hu_BDHW, seeds_B, 1.0, flip=1e-12, blur=1e-12), views)
    draws = torch.rand(10, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    first = torch.rand(8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert torch.equal(draws[:8], first)


def test_other_seeds_give_other_views(hu_BDHW):
    one, other = (augment(hu_BDHW[:1], torch.tensor([seed])) for seed in (1, 2))
    assert (one - other).abs().mean() > 5


def test_strength_takes_a_view_to_the_study_itself(hu_BDHW):
    seeds_B = torch.arange(4)
    changes = [float((augment(hu_BDHW, seeds_B, s) - hu_BDHW).abs().mean()) for s in (0.0, 0.1, 0.5, 1.0)]
    assert changes[0] < 0.01
    assert changes == sorted(changes)


def test_views_are_the_same_study_a_little_changed(hu_BDHW):
    """Alike enough to be recognised, never mirrored, never turned upside down; int16 is taken as it is."""
    x = hu_BDHW[:1]
    for seed in range(20):
        view = augment(x.to(torch.int16), torch.tensor([seed]))
        assert view.dtype == torch.float32
        assert view.shape == x.shape
        assert torch.isfinite(view).all()
        itself = correlation(view, x)
        assert itself > 0.6
        for axis in (1, 2, 3):
            assert correlation(view, x.flip(axis)) < itself - 0.3


def test_a_point_moves_by_no_more_than_the_limits():
    """A bright ball in the middle stays within shift limits and keeps about its mass."""
    shape = (20, 26, 32)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1) - (np.array(shape) - 1) / 2
    ball = torch.from_numpy(np.exp(-0.5 * (index**2).sum(axis=-1) / 3.0**2)).float()[None] * 3000 - 1000
    moved = []
    for seed in range(30):
        weight = (augment(ball, torch.tensor([seed]))[0] + 1000).clamp(min=300).numpy() - 300
        moved.append([(index[..., a] * weight).sum() / weight.sum() for a in range(3)])
        assert 0.7 < weight.sum() / (ball[0] + 1000).clamp(min=300).sub(300).sum() < 1.4
    largest = np.abs(moved).max(axis=0)
    assert (largest < 0.06 * np.array(shape)).all()
    assert (largest > 0.02 * np.array(shape)).all()


def correlation(x, y):
    return float(torch.corrcoef(torch.stack([x.flatten(), y.flatten()]))[0, 1])


def test_a_spec_survives_json():
    for spec in PRESETS.values():
        assert VolumeSpec.from_json(spec.to_json()) == spec
    spec = VolumeConfig("small", [5.0, 4.0, 3.0], [20, 30, 40], [-1000, 1000], [[-600, 1500]]).resolve()
    assert VolumeSpec.from_json(spec.to_json()) == spec
    assert spec.num_channels == 1
