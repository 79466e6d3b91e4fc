"""From the slices of a DICOM series to one ordered stack: order, spacing, affine. No pixels here.

DICOM uses LPS axes. The affine that this module returns is RAS+.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ttepretrain.errors import BadStudy
from ttepretrain.volume.checks import MIN_SLICES, Flag, Reason
from ttepretrain.volume.dicom.tags import SliceHeader

SAME_POSITION_MM = 0.01
SAME_POSITION_FRACTION = 0.05  # of the steps on either side; closer slices are at the same place
EVEN_MM = 0.1  # headers round positions to tenths of a mm
EVEN_STEPS = 0.3  # of the step, if it is so small that a missing slice would move others by less than EVEN_MM
EVEN_FRACTION = 0.05  # of the step, if it is large
SHIFT_MM = 0.5  # largest sideways distance of a slice from the line of the others
HOLE_STEPS = 1.5  # of the local step; a wider one is a missing slice, unless it is part of a run
RUN_GAPS = 4  # adjacent wider steps that count as a protocol's own spacing rather than as missing slices
ODD_RUN_GAPS = 3  # likewise, if the step is not a multiple of the others, as missing slices would make it
HALVES_STEPS = 3  # of 1 mm among those of .5 mm
FINEST_STEP_MM = 0.5  # of the even grid onto which uneven slices are interpolated
# One thin slab must not cost forty times the memory of its scan: the grid has at most so many times the slices, and at
# most so many unless the scan has more. Its step is then at most 1.25 mm, or 2 mm for a scan of two metres.
MAX_GROWTH, MOST_SLICES = 8, 1024


@dataclass(frozen=True)
class Stack:
    """Slices in order along their normal. `places` groups those at the same position."""

    places: list[list[SliceHeader]]
    offsets_mm: np.ndarray  # of each place along the normal, relative to the first
    affine: np.ndarray  # 4 x 4: index D H W -> RAS+ mm, D on the even grid of `grid_mm`
    grid_mm: np.ndarray  # offsets of the even grid; equal to offsets_mm up to rounding, unless flagged as uneven
    flags: tuple[Flag, ...]


def arrange(slices: list[SliceHeader], max_gap_mm: float) -> Stack:
    """The slices of one series as a stack; BadStudy if they do not form one volume."""
    first = slices[0]
    along_W, along_H = _one_geometry(slices)
    normal = np.cross(along_W, along_H)
    heights_mm = [float(s.position @ normal) for s in slices]
    order = sorted(range(len(slices)), key=lambda i: (heights_mm[i], slices[i].instance_uid))
    places = [[slices[order[0]]]]
    for i, same in zip(order[1:], _at_one_place(np.diff(np.sort(heights_mm)))):
        if same:
            places[-1].append(slices[i])
        else:
            places.append([slices[i]])
    if len(places) < MIN_SLICES:
        raise BadStudy(Reason.TOO_FEW_SLICES, f"{len(places)} slice positions, at least {MIN_SLICES} make a volume")

    positions = np.array([place[0].position for place in places])
    offsets_mm = (positions - positions[0]) @ normal
    line = (positions[-1] - positions[0]) / offsets_mm[
        -1
    ]  # mm moved per mm along the normal; oblique under gantry tilt
    aside_mm = np.linalg.norm(positions - positions[0] - offsets_mm[:, None] * line, axis=1)
    if not aside_mm.max() <= SHIFT_MM:  # NaN where differences overflow
        raise BadStudy(Reason.MIXED_GEOMETRY, "slices are shifted sideways against each other")
    grid_mm, flags = _even_grid(offsets_mm, max_gap_mm)

    affine = np.eye(4)
    affine[:3, 0] = line * (grid_mm[1] - grid_mm[0])
    affine[:3, 1] = along_H * first.spacing_HW_mm[0]
    affine[:3, 2] = along_W * first.spacing_HW_mm[1]
    affine[:3, 3] = positions[0]
    affine[:2] *= -1.0  # LPS -> RAS
    return Stack(places, offsets_mm, affine, grid_mm, flags)


def _at_one_place(steps_mm: np.ndarray) -> np.ndarray:
    """For each step to the next slice, whether both are at the same place.

    10 10 10 .4 1 1 1  two slabs meet: a step        2 2 2 .04 2 2 2  the same slice twice
    """
    same = steps_mm <= SAME_POSITION_MM
    apart = np.flatnonzero(~same)
    wide = steps_mm[apart]
    for k in np.flatnonzero(wide <= SAME_POSITION_FRACTION * wide.max(initial=0)):
        sides = [np.median(side) for side in (wide[max(0, k - 3) : k], wide[k + 1 : k + 4]) if len(side)]
        same[apart[k]] = wide[k] <= SAME_POSITION_FRACTION * min(sides)
    return same


def _one_geometry(slices: list[SliceHeader]) -> np.ndarray:
    """The directions [2, 3] along rows and columns that all slices share; BadStudy if they differ."""
    first = slices[0]
    if any(s.shape_HW != first.shape_HW for s in slices):
        raise BadStudy(Reason.MIXED_GEOMETRY, "slices of different matrix size")
    if not np.allclose([s.spacing_HW_mm for s in slices], first.spacing_HW_mm, rtol=1e-3, atol=0):
        raise BadStudy(Reason.MIXED_GEOMETRY, "slices of different pixel spacing")
    if not np.allclose([s.direction_WH for s in slices], first.direction_WH, rtol=0, atol=1e-3):
        raise BadStudy(Reason.MIXED_GEOMETRY, "slices of different orientation")
    if not np.allclose(first.direction_WH @ first.direction_WH.T, np.eye(2), rtol=0, atol=1e-2):
        raise BadStudy(Reason.BAD_AFFINE, "row and column directions are not perpendicular unit vectors")
    return first.direction_WH


def _even_grid(offsets_mm: np.ndarray, max_gap_mm: float) -> tuple[np.ndarray, tuple[Flag, ...]]:
    """An even grid over the offsets: their own if they are even, else one with the smallest step. BadStudy for a gap.

    2 2 2 2 2 2  even      2 2 4 4 4 4  2 2 3.1 3.1 3.1 2  runs: interpolated, flagged      2 2 4 2 2  a missing slice
    """
    count, extent = len(offsets_mm), offsets_mm[-1]
    step = extent / (count - 1)
    even_mm = np.arange(count) * step
    gaps = np.diff(offsets_mm)
    astray_mm = offsets_mm - even_mm
    # the first position is rounded like the others
    astray_mm -= np.clip((astray_mm.max() + astray_mm.min()) / 2, -EVEN_MM / 2, EVEN_MM / 2)
    if np.abs(astray_mm).max() <= _rounding(np.median(gaps)):
        if step > max_gap_mm + EVEN_MM:
            raise BadStudy(Reason.BAD_SPACING, f"{step:.4g} mm between slices, at most {max_gap_mm:g} is allowed")
        return even_mm, ()
    if (halves := _from_halves(offsets_mm)) is not None:
        return np.arange(count) * halves, ()
    if gaps.max() > max_gap_mm:
        raise BadStudy(Reason.MISSING_SLICE, f"a gap of {gaps.max():.1f} mm between slices")
    for i in range(len(gaps)):
        if _is_hole(gaps, i):
            raise BadStudy(Reason.MISSING_SLICE, f"an isolated gap of {gaps[i]:.2f} mm between slices")
    most = max(count, min(MAX_GROWTH * count, MOST_SLICES))
    step = max(gaps.min(), FINEST_STEP_MM, extent / (most - 1))
    return np.arange(int(extent / step + 1e-6) + 1) * step, (Flag.UNEVEN_SPACING,)


def _from_halves(offsets_mm: np.ndarray) -> float | None:
    """The step of .6 to .8 mm, if positions were written in half millimetres: steps of .5 and 1, evenly mixed.

    Missing slices of a scan of .5 mm would have to lie as regularly, one in seven at least.
    """
    gaps = np.diff(offsets_mm)
    wide, narrow = (np.abs(gaps - mm) < SAME_POSITION_MM for mm in (1.0, 0.5))
    if not (wide | narrow).all() or wide.sum() < HALVES_STEPS or not 0.15 < wide.mean() < 0.7:
        return None
    ends = (offsets_mm[-1] + np.linspace(-0.5, 0.5, 101)) / len(gaps)
    spread = np.ptp(offsets_mm - ends[:, None] * np.arange(len(offsets_mm)), axis=1)
    return float(ends[spread.argmin()]) if spread.min() <= 0.5 + SAME_POSITION_MM else None


def _rounding(step_mm: float) -> float:
    """Largest difference between two steps of that size that count as equal."""
    return max(min(EVEN_MM, EVEN_STEPS * step_mm), EVEN_FRACTION * step_mm)


def _is_hole(gaps: np.ndarray, i: int) -> bool:
    """Whether gap i is wider than HOLE_STEPS and not part of a run of equal gaps."""
    local = np.median(np.concatenate([gaps[max(0, i - 3) : i], gaps[i + 1 : i + 4]]))
    if gaps[i] <= HOLE_STEPS * local:
        return False
    alike = np.abs(gaps - gaps[i]) <= _rounding(gaps[i])
    start, stop = i, i + 1
    while start > 0 and alike[start - 1]:
        start -= 1
    while stop < len(gaps) and alike[stop]:
        stop += 1
    is_multiple = abs(gaps[i] - round(gaps[i] / local) * local) <= _rounding(gaps[i])
    return stop - start < (RUN_GAPS if is_multiple else ODD_RUN_GAPS)
