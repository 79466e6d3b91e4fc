"""Random views of a batch, computed on its own device.

Axes: B batch, D H W slices rows columns (superior, anterior, right).

Views are not mirrored by default: the left and right side of the body differ, and so do their diseases. Rotation is
about the body's long axis, which needs no voxel spacing as long as rows and columns have the same.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

ROTATION_DEGREES = 10.0  # every limit is that of a uniform draw around no change
SCALE = 0.08
SHIFT = 0.05  # of the grid's extent, per axis
CONTRAST = 0.03  # scanners and tube voltages differ
OFFSET_HU = 10.0
NOISE_HU = 20.0  # largest standard deviation
AIR_HU = -1000.0  # by definition of the unit; contrast is scaled about it, so that air stays air


def augment(hu_BDHW: Tensor, seeds_B: Tensor, strength: float = 1.0, flip: float = 0.0, blur: float = 0.0) -> Tensor:
    """float32 batch of the same shape. The view of a study depends on its int64 seed alone, not on its batch.

    strength: factor on all limits above
    flip: share of the views that are mirrored left to right
    blur: largest standard deviation of a Gaussian, in voxels

    flip and blur do not change the other random draws. The seeds are read on the CPU, which waits for a GPU once. The
    noise differs between kinds of device.
    """
    device, seeds = hu_BDHW.device, seeds_B.tolist()
    draws = [torch.rand(10, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in seeds]
    draws_10B = torch.stack(draws, dim=1)
    turn_B, scale_B, *shift_3B, contrast_B, offset_B, noise_B = strength * (draws_10B[:8] * 2 - 1).float().to(device)
    mirrored_B, blur_B = (draws_10B[8] < flip).to(device), blur * draws_10B[9].float().to(device)
    scale_B = 1 + SCALE * scale_B
    per_study = (-1, 1, 1, 1)

    out_BDHW = hu_BDHW.float()
    if flip > 0:
        out_BDHW = torch.where(mirrored_B.view(per_study), out_BDHW.flip(3), out_BDHW)
    out_BDHW = _along_D(out_BDHW, scale_B, SHIFT * shift_3B[0])
    out_BDHW = _in_plane(out_BDHW, math.radians(ROTATION_DEGREES) * turn_B, scale_B, *(SHIFT * s for s in shift_3B[1:]))
    if blur > 0:
        out_BDHW = _blurred(out_BDHW, blur_B)
    gain_B = 1 + CONTRAST * contrast_B
    bias_B = OFFSET_HU * offset_B + AIR_HU * (1 - gain_B)
    out_BDHW = torch.addcmul(bias_B.view(per_study), out_BDHW, gain_B.view(per_study))
    for hu_DHW, seed, noise in zip(out_BDHW, seeds, noise_B):
        generator = torch.Generator(hu_DHW.device).manual_seed(seed)
        hu_DHW.addcmul_(torch.randn(hu_DHW.shape, generator=generator, device=hu_DHW.device), NOISE_HU * noise)
    return out_BDHW


def _along_D(hu_BDHW: Tensor, scale_B: Tensor, shift_B: Tensor) -> Tensor:
    """Shifted and scaled along D by linear interpolation, one [D, D] matrix per study; the ends are repeated."""
    size = hu_BDHW.shape[1]
    index_D = torch.arange(size, device=hu_BDHW.device, dtype=torch.float32)
    centre = (size - 1) / 2
    read_BD = centre + (index_D - centre) / scale_B[:, None] + shift_B[:, None] * size
    read_BD = read_BD.clamp(0, size - 1)
    weight_BDD = (1 - (read_BD[:, :, None] - index_D).abs()).clamp_(min=0)
    return (weight_BDD @ hu_BDHW.flatten(2)).view_as(hu_BDHW)


def _in_plane(hu_BDHW: Tensor, turn_B: Tensor, scale_B: Tensor, shift_H_B: Tensor, shift_W_B: Tensor) -> Tensor:
    """Rotated, scaled and shifted within H W. D is treated as channels, which makes it cheap."""
    height, width = hu_BDHW.shape[2:]
    cosine_B, sine_B = turn_B.cos() / scale_B, turn_B.sin() / scale_B
    # affine_grid counts in half extents, W first: the aspect keeps angles on a grid that is not square
    aspect = height / width
    theta_B23 = torch.stack(
        [cosine_B, -sine_B * aspect, 2 * shift_W_B, sine_B / aspect, cosine_B, 2 * shift_H_B], dim=1
    ).view(-1, 2, 3)
    grid_BHW2 = functional.affine_grid(theta_B23, list(hu_BDHW.shape), align_corners=False)
    return functional.grid_sample(hu_BDHW, grid_BHW2, mode="bilinear", padding_mode="border", align_corners=False)


def _blurred(hu_BDHW: Tensor, sigma_B: Tensor) -> Tensor:
    """Smoothed along D, H and W in turn, one [N, N] matrix per study and axis; voxels outside do not count."""
    for axis in (1, 2, 3):
        index_N = torch.arange(hu_BDHW.shape[axis], device=hu_BDHW.device, dtype=torch.float32)
        apart_NN = index_N[:, None] - index_N
        # a sigma of 0 becomes one so small that it changes nothing
        weight_BNN = torch.exp(-0.5 * (apart_NN / sigma_B.clamp(min=1e-3).view(-1, 1, 1)) ** 2)
        weight_BNN /= weight_BNN.sum(dim=2, keepdim=True)
        lined_up = hu_BDHW.movedim(axis, 1)
        hu_BDHW = (weight_BNN @ lined_up.flatten(2)).view_as(lined_up).movedim(1, axis)
    return hu_BDHW
