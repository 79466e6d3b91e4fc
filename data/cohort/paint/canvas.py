"""Soft-edged ellipsoids, tubes and points painted into a CT on any voxel grid.

Anatomical coordinates are millimetres, x right, y anterior, z superior, in the patient's own frame.
D H W slices rows columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

Point = tuple[float, float, float] | np.ndarray
Box = tuple[slice, slice, slice]  # may be empty: nothing of the body lies on the grid

AIR, FAT = -1000.0, -100.0


class Canvas:
    """HU volume and the affine map from its voxel indices to anatomical millimetres."""

    def __init__(self, shape_DHW: tuple[int, int, int], to_anatomy: np.ndarray):
        self.hu_DHW = np.full(shape_DHW, AIR, np.float32)
        self.linear = to_anatomy[:3, :3]
        self.origin = to_anatomy[:3, 3]
        self.inverse = np.linalg.inv(self.linear)
        self.voxel_mm = float(abs(np.linalg.det(self.linear)) ** (1 / 3))
        self.voxel_mm3 = self.voxel_mm**3

    def ellipsoid(
        self, centre: Point, radii: Point, value: float, axes: np.ndarray | None = None, soft: float = 1.0
    ) -> None:
        """Fill an ellipsoid with `value` HU. `axes`: unit rows; `soft` widens the edge, in voxels."""
        self.mix(*self.ellipsoid_cover(centre, radii, axes, soft), value)

    def ellipsoid_cover(
        self, centre: Point, radii: Point, axes: np.ndarray | None = None, soft: float = 1.0
    ) -> tuple[Box, np.ndarray]:
        """Box of the ellipsoid and its soft membership in [0, 1] there."""
        axes = np.eye(3) if axes is None else np.asarray(axes)
        middle, half = np.asarray(centre, float), np.asarray(radii, float)
        smallest = half.min()
        edge = soft * self.voxel_mm
        reach = half * (1 + edge / (2 * smallest))
        box = self.box(middle, np.linalg.norm(self.inverse @ (axes.T * reach), axis=1))
        rows = (axes @ self.linear) / half[:, None]
        offsets = axes @ (self.origin - middle) / half
        square = sum(np.square(self.affine(row, offset, box)) for row, offset in zip(rows, offsets))
        return box, soften(1 - np.sqrt(square), edge / smallest)

    def tube(self, start: Point, end: Point, radius: float, value: float) -> None:
        """Fill a capsule from `start` to `end`."""
        self.mix(*self.tube_cover(start, end, radius), value)

    def tube_cover(self, start: Point, end: Point, radius: float) -> tuple[Box, np.ndarray]:
        """Box of the capsule and its soft membership in [0, 1] there."""
        first, last = np.asarray(start, float), np.asarray(end, float)
        along = (last - first) / max(float(np.sum((last - first) ** 2)), 1e-6)
        reach = np.abs(last - first) / 2 + radius + self.voxel_mm
        box = self.box((first + last) / 2, np.abs(self.inverse) @ reach)
        part = np.clip(self.affine(along @ self.linear, along @ (self.origin - first), box), 0, 1)
        square = np.zeros_like(part)
        for axis in range(3):
            offset = self.affine(self.linear[axis], self.origin[axis] - first[axis], box)
            square += np.square(offset - np.float32(last[axis] - first[axis]) * part)
        return box, soften(radius - np.sqrt(square), self.voxel_mm)

    def path(self, points: Sequence[Point], radius: float, value: float) -> None:
        """Fill the capsules between consecutive points."""
        for start, end in pairwise(points):
            self.tube(start, end, radius, value)

    def mix(self, box: Box, cover: np.ndarray, value: float | np.ndarray) -> None:
        """Move the box's voxels towards `value` by their share `cover`."""
        view = self.hu_DHW[box]
        view += cover * (value - view)

    def splat(self, points_P3: np.ndarray, mm3_P: np.ndarray, box: Box) -> np.ndarray:
        """Share of the box's voxels that small bodies of `mm3_P` at the given points fill, float32 in [0, 1]."""
        shape = np.array([s.stop - s.start for s in box])
        index_P3 = (points_P3 - self.origin) @ self.inverse.T - [s.start for s in box]
        kept_P = ((index_P3 >= 0) & (index_P3 < shape - 1)).all(1)
        index_P3, share_P = index_P3[kept_P], mm3_P[kept_P] / self.voxel_mm3
        low_P3 = index_P3.astype(np.int64)
        part_P3 = index_P3 - low_P3
        flat_P = (low_P3[:, 0] * shape[1] + low_P3[:, 1]) * shape[2] + low_P3[:, 2]
        flat, share = [], []
        for corner in np.ndindex(2, 2, 2):  # linear weights
            d, h, w = (part_P3[:, i] if corner[i] else 1 - part_P3[:, i] for i in range(3))
            flat.append(flat_P + (corner[0] * shape[1] + corner[1]) * shape[2] + corner[2])
            share.append(d * h * w * share_P)
        total = np.bincount(np.concatenate(flat), np.concatenate(share), int(shape.prod()))
        return np.minimum(total, 1).astype(np.float32).reshape(shape)

    def affine(self, row: np.ndarray, offset: float, box: Box) -> np.ndarray:
        """row . index + offset over the box, float32."""
        d, h, w = (np.arange(s.start, s.stop, dtype=np.float32) for s in box)
        row = row.astype(np.float32)
        plane = (row[1] * h)[:, None] + (row[2] * w + np.float32(offset))[None, :]
        return (row[0] * d)[:, None, None] + plane[None]

    def box(self, centre: np.ndarray, half_DHW: np.ndarray) -> Box:
        """Voxels within `half_DHW` voxels of a point in millimetres."""
        middle = self.inverse @ (centre - self.origin)
        low = np.maximum(np.floor(middle - half_DHW), 0).astype(int)
        high = np.minimum(np.ceil(middle + half_DHW) + 1, self.hu_DHW.shape).astype(int)
        d, h, w = (slice(a, max(a, b)) for a, b in zip(low, high))
        return d, h, w


def soften(distance: np.ndarray, edge: float) -> np.ndarray:
    """0 below -edge/2, 1 above edge/2, linear between: partial volume of a surface."""
    distance /= np.float32(edge)
    distance += np.float32(0.5)
    return np.clip(distance, 0, 1, out=distance)
