"""The only path from a scan on disk to the volume a network sees, in pretraining, evaluation and the commands.

read -> plausible HU? -> nearest axes to RAS+ -> clip -> centre -> resample -> round
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import numpy as np
import torch

from ttepretrain.errors import BadStudy
from ttepretrain.volume.body import BODY_HU, body_cells, extents
from ttepretrain.volume.checks import Reason
from ttepretrain.volume.dicom.choice import DEFAULT_READING, WHATEVER, Reading, Wanted
from ttepretrain.volume.hu import check_hu
from ttepretrain.volume.image import CTImage, to_ras, unflipped
from ttepretrain.volume.other_formats import other_format
from ttepretrain.volume.refusal import reads_files
from ttepretrain.volume.resample import FWHM_PER_SIGMA, Limits, resample, separable
from ttepretrain.volume.source import is_nifti, refuse_special
from ttepretrain.volume.spec import VolumeSpec

# The body is located on cells of this size, so large that the mean over a sheet or a tube is air.
BODY_CELL_MM = 12.0


@dataclass(frozen=True)
class Volume:
    """A study on the spec's grid."""

    hu_DHW: np.ndarray  # int16, spec.shape_DHW
    affine: np.ndarray  # 4 x 4 float64: index D H W -> RAS+ mm of the scanner
    flags: tuple[str, ...]  # checks.Flag
    acquisition: dict[str, str | float | bool | None]
    source_spacing_mm: tuple[float, float, float]  # D H W, along RAS+
    source_shape_DHW: tuple[int, int, int]  # likewise
    acquired: datetime | None  # as in CTImage

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """D H W, of the grid."""
        return tuple(np.linalg.norm(self.affine[:3, :3], axis=0).tolist())


def preprocess_ct(
    path: Path, spec: VolumeSpec, wanted: Wanted = WHATEVER, files: Sequence[Path] | None = None
) -> Volume:
    """The scan at `path` (DICOM folder or file, .nii, .nii.gz) on the spec's grid; BadStudy when it is refused.

    `files`: source_files(path), where they are known.
    """
    path = Path(path)
    image = read_ct(path, spec.reading, wanted, files)
    if spec.fit == "stretch":
        hu_DHW, affine = stretch(image, spec)
    else:
        image = to_ras(image)
        hu_DHW, affine = to_grid(image, spec)
    flags, source = tuple(map(str, image.flags)), (image.spacing_mm, image.hu_DHW.shape)
    return Volume(hu_DHW, affine, flags, image.acquisition, *source, image.acquired)


@reads_files
def read_ct(
    path: Path,
    reading: Reading = DEFAULT_READING,
    wanted: Wanted = WHATEVER,
    files: Sequence[Path] | None = None,
) -> CTImage:
    """The scan at `path` in HU on its own grid; BadStudy unless it looks like CT."""
    refuse_special(path)
    if is_nifti(path):
        from ttepretrain.volume.nifti import read_nifti

        image = read_nifti(path)
    else:
        from ttepretrain.volume.dicom.reader import read_dicom

        try:
            image = read_dicom(path, reading, wanted, files)
        except BadStudy as refusal:
            if refusal.code == Reason.NOT_DICOM and (named := other_format(path)) is not None:
                raise BadStudy(Reason.NOT_DICOM, named) from None
            raise
    return replace(image, flags=(*image.flags, *check_hu(image.hu_DHW)))


def to_grid(image: CTImage, spec: VolumeSpec) -> tuple[np.ndarray, np.ndarray]:
    """int16 HU on the spec's grid, and the affine of the grid. `image` must be aligned with RAS+ (to_ras)."""
    # Clipped before filtering, so that metal and padding do not bleed into their neighbours.
    limits = float(spec.hu_range[0]), float(spec.hu_range[1])
    stored = unflipped(image)
    centre_mm = _body_centre_mm(stored, limits) if spec.fit == "body" else _image_centre_mm(image, spec)
    middle = (np.array(spec.shape_DHW) - 1) / 2
    grid_affine = np.eye(4)
    grid_affine[:3, :3] = np.diag(spec.spacing_mm)[::-1]  # D steps along z, H along y, W along x
    grid_affine[:3, 3] = centre_mm - grid_affine[:3, :3] @ middle

    out_DHW = resample(torch.from_numpy(stored.hu_DHW), stored.affine, grid_affine, spec.shape_DHW, limits)
    return out_DHW.add_(limits[0]).round_().to(torch.int16).numpy(), grid_affine


def stretch(image: CTImage, spec: VolumeSpec) -> tuple[np.ndarray, np.ndarray]:
    """int16 of the image averaged onto the spec's shape, its extremes at the ends of hu_range, and its affine.

    Only for comparison with the paper: it ignores spacing and orientation, and one bright voxel darkens all others.
    """
    lowest, highest = (np.float32(end) for end in (image.hu_DHW.min(), image.hu_DHW.max()))
    out_DHW = torch.empty(spec.shape_DHW)
    size, slices = image.hu_DHW.shape[0], spec.shape_DHW[0]
    for d in range(slices):  # one at a time: a copy of all in float32 would take twice as much as the scan
        part_DHW = image.hu_DHW[d * size // slices : -(-(d + 1) * size // slices)].astype(np.float32)
        scaled_DHW = torch.from_numpy((part_DHW - lowest) / (highest - lowest))
        out_DHW[d] = torch.nn.functional.adaptive_avg_pool3d(scaled_DHW[None], (1, *spec.shape_DHW[1:]))[0, 0]
    low, high = spec.hu_range
    stored_DHW = (out_DHW * (high - low) + low).round_().clamp_(low, high).to(torch.int16).numpy()
    step = np.array(image.hu_DHW.shape) / spec.shape_DHW  # source voxels per output voxel
    affine = image.affine @ np.diag([*step, 1.0])
    affine[:3, 3] = image.affine[:3] @ [*((step - 1) / 2), 1.0]
    return stored_DHW, affine


def _image_centre_mm(image: CTImage, spec: VolumeSpec) -> np.ndarray:
    """Middle of the grid after resampling from the first voxel's centre, then padding or cropping about the centre.

    The same voxels as MONAI's Spacing, SpatialPad and CenterSpatialCrop.
    """
    middle = []
    for size, mm, step, wanted in zip(image.hu_DHW.shape, image.spacing_mm, spec.spacing_mm, spec.shape_DHW):
        resampled = round((size - 1) * mm / step + 1)
        first = -((wanted - resampled) // 2) if resampled < wanted else resampled // 2 - wanted // 2
        middle.append((first + (wanted - 1) / 2) * step / mm)
    return image.affine[:3] @ [*middle, 1.0]


def _body_centre_mm(image: CTImage, limits: Limits) -> np.ndarray:
    """The body's middle: halfway between the 1 % and 99 % quantiles of its cells along each axis."""
    shape = np.array(image.hu_DHW.shape)
    # first to thousandths: 15.5 cells must not become 16 or 15 by the rounding of a header to 32 bits
    cells = np.maximum(1, np.rint(np.round(shape * image.spacing_mm / BODY_CELL_MM, 3))).astype(int)
    step = shape / cells  # voxels per cell
    positions = [(np.arange(n) + 0.5) * s - 0.5 for n, s in zip(cells, step)]
    sigma = np.sqrt(np.maximum(step**2 - 1.0, 0.0)) / FWHM_PER_SIGMA
    solid_DHW = separable(torch.from_numpy(image.hu_DHW), positions, sigma, limits) > BODY_HU - limits[0]
    if not solid_DHW.any():
        raise BadStudy(Reason.NOT_HU, f"nothing as large as a body above {BODY_HU:g} HU")
    body_DHW = body_cells(solid_DHW.numpy())
    found = extents(body_DHW, [np.arange(n + 1) * s for n, s in zip(cells, step)])
    assert found is not None  # there is a solid cell
    middle = [(low + high) / 2 - 0.5 for low, high in found]
    return image.affine[:3] @ [*middle, 1.0]
