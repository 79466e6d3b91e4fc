"""CTImage: what every reader returns, and how its axes are aligned with the patient. No torch here.

Index order is D H W throughout: slices, rows, columns. Millimetres are RAS+: x grows to the patient's right, y to the
front, z to the head.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np

# What is kept about the acquisition; None where the file does not state it. Readers normalise free text.
ACQUISITION_KEYS = ("manufacturer", "kernel", "kvp", "contrast", "slice_thickness_mm")


@dataclass(frozen=True)
class CTImage:
    """One CT in HU on its own grid; `affine @ [d, h, w, 1]` is the centre of a voxel in RAS+ mm."""

    hu_DHW: np.ndarray  # int16 where every value is whole, else float32; PADDING_HU where nothing was measured
    affine: np.ndarray  # 4 x 4 float64; may be oblique, left-handed or sheared (gantry tilt)
    flags: tuple[str, ...]
    acquisition: dict[str, str | float | bool | None]  # ACQUISITION_KEYS; contains nothing that identifies a patient
    acquired: datetime | None = None  # on the scanner's clock; a date may identify a patient

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between voxel centres along each index axis."""
        return tuple(np.linalg.norm(self.affine[:3, :3], axis=0).tolist())


def to_ras(image: CTImage) -> CTImage:
    """The same voxels, as a view whose D H W point as nearly as possible to superior, anterior and right."""
    directions = image.affine[:3, :3] / np.linalg.norm(image.affine[:3, :3], axis=0)
    # rows of `towards`: superior, anterior, right; columns: the image's own axes
    towards = directions[[2, 1, 0]]
    order = max(itertools.permutations(range(3)), key=lambda p: sum(abs(towards[i, p[i]]) for i in range(3)))
    hu_DHW = image.hu_DHW.transpose(order)
    reorder = np.zeros((4, 4))
    reorder[3, 3] = 1.0
    for axis, source in enumerate(order):
        if towards[axis, source] >= 0:
            reorder[source, axis] = 1.0
        else:
            hu_DHW = np.flip(hu_DHW, axis)
            reorder[source, axis], reorder[source, 3] = -1.0, image.hu_DHW.shape[source] - 1
    return replace(image, hu_DHW=hu_DHW, affine=image.affine @ reorder)


def unflipped(image: CTImage) -> CTImage:
    """The same voxels with every axis in the direction of memory, which makes copying twice as fast."""
    backwards = [stride < 0 for stride in image.hu_DHW.strides]
    sizes = np.array(image.hu_DHW.shape)
    reorder = np.diag([*np.where(backwards, -1.0, 1.0), 1.0])
    reorder[:3, 3] = np.where(backwards, sizes - 1, 0)
    hu_DHW = np.flip(image.hu_DHW, tuple(np.flatnonzero(backwards).tolist()))
    return replace(image, hu_DHW=hu_DHW, affine=image.affine @ reorder)
