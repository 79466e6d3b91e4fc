"""Antialiased resampling of a volume onto any grid, exact under oblique and sheared affines.

One operator: a Gaussian along the source's own axes, then trilinear interpolation at the grid's voxel centres,

    out(p) = sum_i trilinear(p, i) sum_j gauss(i - j; sigma) x(j),     sigma_a = sqrt(max(r_a^2 - 1, 0)) / 2.355

where r_a is the extent of an output voxel along source axis a, in source voxels. This width turns a point spread with a
full width at half maximum of one source voxel into one of one output voxel (Cardoso et al., MICCAI 2015). It is zero
when upsampling. Weights sum to one, so a constant stays constant; outside the source the result is zero.

Both factors separate along the axes of the source. If the grid is aligned with them, as for nearly every CT, the whole
operator is three products with banded matrices. Otherwise the same matrices smooth, and the interpolation gathers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

FWHM_PER_SIGMA = 2.3548200450309493
# Largest off-axis drift over the whole grid, in source voxels, of a grid that counts as aligned.
ALIGNED_VOXELS = 0.01
CHUNK = 2**20  # voxels converted to float32 at a time; they stay in the processor's cache for two products
GATHER_VOXELS = 2**25  # source voxels smoothed at a time for a turned grid: 128 MiB
# A grid point on the outer face of the source is inside, also where a header of 32 bits puts it a little beyond.
FACE_VOXELS = 1e-3
SHARED, SMOOTH_COLUMNS, GATHER_SLICES = 1.25, 128, 16
BAND = 16  # output positions per product; more of them multiply more zeros

Limits = tuple[float, float]


@dataclass(frozen=True)
class Band:
    """A block of rows of a matrix, without the columns that are zero in all of them."""

    rows: slice  # output positions
    columns: slice  # input voxels
    weights: Tensor


def resample(
    x_DHW: Tensor,
    affine: np.ndarray,
    grid_affine: np.ndarray,
    grid_shape: tuple[int, int, int],
    limits: Limits | None = None,
) -> Tensor:
    """float32 volume on the grid; both affines map D H W indices to the same mm. It is 0 outside the source.

    With limits, the source (of any dtype) is first clipped to them, and the lower one is subtracted.
    """
    to_source = np.linalg.inv(affine) @ grid_affine  # grid index -> source index
    sigma_DHW = np.sqrt(np.maximum((to_source[:3, :3] ** 2).sum(axis=1) - 1.0, 0.0)) / FWHM_PER_SIGMA
    drift = np.abs(to_source[:3, :3] * (1 - np.eye(3))) @ np.array(grid_shape)
    if drift.max() < ALIGNED_VOXELS:
        middle = to_source[:3] @ [*((np.array(grid_shape) - 1) / 2), 1.0]
        positions = [middle[a] + to_source[a, a] * (np.arange(n) - (n - 1) / 2) for a, n in enumerate(grid_shape)]
        return separable(x_DHW, positions, sigma_DHW, limits)

    out_DHW = torch.empty(grid_shape)
    for part in _parts(to_source, grid_shape, tuple(x_DHW.shape)):
        low, high = _reach(to_source, part, tuple(x_DHW.shape))
        smooth_DHW = _smoothed(x_DHW, low, high, sigma_DHW, limits)
        for begin in range(part[0].start, part[0].stop, GATHER_SLICES):
            slab = (range(begin, min(begin + GATHER_SLICES, part[0].stop)), *part[1:])
            place = tuple(slice(along.start, along.stop) for along in slab)
            out_DHW[place] = _gather(smooth_DHW, low, tuple(x_DHW.shape), to_source, slab)
    return out_DHW


def _smoothed(x_DHW: Tensor, low: np.ndarray, high: np.ndarray, sigma_DHW: np.ndarray, limits: Limits | None) -> Tensor:
    """The voxels from `low` to `high`, smoothed. Some columns at a time: separable() holds its result twice."""
    rows_D, rows_H, columns = (np.arange(a, b + 1.0) for a, b in zip(low, high))
    out_DHW = torch.empty(len(rows_D), len(rows_H), len(columns))
    for begin in range(0, len(columns), SMOOTH_COLUMNS):
        positions = [rows_D, rows_H, columns[begin : begin + SMOOTH_COLUMNS]]
        out_DHW[:, :, begin : begin + SMOOTH_COLUMNS] = separable(x_DHW, positions, sigma_DHW, limits)
    return out_DHW


def _parts(
    to_source: np.ndarray, grid_shape: tuple[int, int, int], size_DHW: tuple[int, ...]
) -> list[tuple[range, ...]]:
    """The grid, halved until each part reaches GATHER_VOXELS or fewer, along the axis where parts share least.

    No further once all parts together reach SHARED times as much as the whole: under a large rotation they overlap.
    """

    def cut(axis: int, length: int) -> list[tuple[range, ...]]:
        starts = range(0, grid_shape[axis], length)
        along = [range(start, min(start + length, grid_shape[axis])) for start in starts]
        return [tuple(piece if a == axis else range(n) for a, n in enumerate(grid_shape)) for piece in along]

    def voxels(parts: list[tuple[range, ...]]) -> list[int]:
        return [int(np.prod(high - low + 1)) for low, high in (_reach(to_source, part, size_DHW) for part in parts)]

    axis = min(range(3), key=lambda a: max(voxels(cut(a, -(-grid_shape[a] // 2)))))
    length = grid_shape[axis]
    [whole] = voxels(cut(axis, length))
    while length > 1 and max(voxels(cut(axis, length))) > GATHER_VOXELS:
        shorter = -(-length // 2)
        if sum(voxels(cut(axis, shorter))) > SHARED * whole:
            break
        length = shorter
    return cut(axis, length)


def _reach(to_source: np.ndarray, part: tuple[range, ...], size_DHW: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """First and last source voxel along each axis that the part of the grid needs."""
    ends = [(p.start, p.stop - 1) for p in part]
    corners = np.array([[*(pair[k] for pair, k in zip(ends, corner)), 1] for corner in np.ndindex(2, 2, 2)])
    reached = corners @ to_source[:3].T
    low = np.clip(np.floor(reached.min(axis=0)), 0, np.array(size_DHW) - 2).astype(int)
    high = np.clip(np.ceil(reached.max(axis=0)), low + 1, np.array(size_DHW) - 1).astype(int)
    return low, high


def separable(
    x_DHW: Tensor, positions_DHW: list[np.ndarray], sigma_DHW: np.ndarray, limits: Limits | None = None
) -> Tensor:
    """x smoothed and read at the given positions (in voxels) along each axis; 0 more than half a voxel outside."""
    out_DHW = inside_DHW = torch.zeros([len(positions) for positions in positions_DHW])
    bands_DHW = []
    for axis, (positions, sigma) in enumerate(zip(positions_DHW, sigma_DHW)):
        size = x_DHW.shape[axis]
        covered = np.flatnonzero((positions >= -0.5 - FACE_VOXELS) & (positions <= size - 0.5 + FACE_VOXELS))
        if len(covered) == 0:
            return out_DHW
        inside_DHW = inside_DHW.narrow(axis, covered[0], len(covered))
        matrix, used = _axis_matrix(positions[covered], size, float(sigma))
        x_DHW = x_DHW.narrow(axis, used.start, used.stop - used.start)
        bands_DHW.append(_bands(matrix))
    _multiply(inside_DHW, bands_DHW, x_DHW, limits)
    return out_DHW


def _multiply(out_DHW: Tensor, bands_DHW: list[list[Band]], x_DHW: Tensor, limits: Limits | None) -> None:
    """Write the products of x with one matrix along each axis into `out`."""
    along_D, along_H, along_W = bands_DHW
    size_D, size_H, size_W = x_DHW.shape
    out_D, _, out_W = out_DHW.shape
    rows = max(1, CHUNK // (size_D * size_W))
    # allocating costs as much as the products: these two are reused
    chunk, product = torch.empty(size_D * rows * size_W), torch.empty(out_D * rows * size_W)
    # D and W a few rows at a time; then H, which needs all rows, when little is left
    thin_DHW = torch.empty(out_D, size_H, out_W)
    for begin in range(0, size_H, rows):
        x_DRW = x_DHW[:, begin : begin + rows]
        chunk_DRW = chunk[: x_DRW.numel()].view(x_DRW.shape).copy_(x_DRW)
        if limits is not None:
            chunk_DRW.clamp_(*limits).sub_(limits[0])
        num_rows = x_DRW.shape[1]
        product_DN = product[: out_D * num_rows * size_W].view(out_D, -1)
        for band in along_D:
            torch.mm(band.weights, chunk_DRW.view(size_D, -1)[band.columns], out=product_DN[band.rows])
        product_DRW = product_DN.view(out_D, num_rows, size_W)
        for band in along_W:
            thin_DHW[:, begin : begin + num_rows, band.rows] = product_DRW[:, :, band.columns] @ band.weights.T
    for band in along_H:
        out_DHW[:, band.rows] = band.weights @ thin_DHW[:, band.columns]


def _axis_matrix(positions: np.ndarray, size: int, sigma: float) -> tuple[Tensor, range]:
    """Weights [positions, used voxels] of smoothing followed by linear interpolation, and the voxels used."""
    clamped = np.clip(positions, 0, size - 1)
    left = np.minimum(np.floor(clamped).astype(int), max(size - 2, 0))
    right = np.minimum(left + 1, size - 1)
    part = (clamped - left) * (right > left)

    reach = int(np.ceil(4 * sigma))
    used = range(max(0, left.min() - reach), min(size, right.max() + reach + 1))
    voxels = np.arange(used.start, used.stop)

    def smoothing(centre: np.ndarray) -> np.ndarray:
        distance = np.abs(voxels - centre[:, None])
        if sigma == 0:
            return (distance == 0).astype(float)
        weight = np.where(distance <= reach, np.exp(-0.5 * (distance / sigma) ** 2), 0.0)
        return weight / weight.sum(axis=1, keepdims=True)

    matrix = (1 - part)[:, None] * smoothing(left) + part[:, None] * smoothing(right)
    return torch.from_numpy(matrix.astype(np.float32)), used


def _bands(matrix: Tensor) -> list[Band]:
    """The matrix in blocks of BAND rows. No row may be all zero."""
    bands = []
    for begin in range(0, len(matrix), BAND):
        weights = matrix[begin : begin + BAND]
        touched = weights.any(dim=0).nonzero()
        columns = slice(int(touched[0]), int(touched[-1]) + 1)
        bands.append(Band(slice(begin, begin + len(weights)), columns, weights[:, columns].contiguous()))
    return bands


def _gather(
    x_DHW: Tensor, low: np.ndarray, full_shape: tuple[int, ...], to_source: np.ndarray, part: tuple[range, ...]
) -> Tensor:
    """Trilinear values of `x`, the source from index `low` on, at every voxel of a part of the grid."""
    d, h, w = (
        torch.arange(p.start, p.stop, dtype=torch.float32).view([-1 if a == b else 1 for b in range(3)])
        for a, p in enumerate(part)
    )
    inside = torch.ones([len(p) for p in part], dtype=torch.bool)
    points = torch.empty(*inside.shape, 3)
    for axis in range(3):
        row = [float(value) for value in to_source[axis]]
        index = row[0] * d + row[1] * h + row[2] * w + row[3]
        inside &= (index >= -0.5 - FACE_VOXELS) & (index <= full_shape[axis] - 0.5 + FACE_VOXELS)
        # grid_sample expects -1 at the centre of the first voxel and 1 at that of the last, and the order W H D
        points[..., 2 - axis] = (index - float(low[axis])) * (2.0 / (x_DHW.shape[axis] - 1)) - 1.0
    sampled = torch.nn.functional.grid_sample(
        x_DHW[None, None], points[None], mode="bilinear", padding_mode="border", align_corners=True
    )[0, 0]
    return sampled * inside
