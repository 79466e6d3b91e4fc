"""The geometry of a NIfTI header: which of sform, qform and voxel sizes is believed, and what the body says of it.

sform set         it counts. What the qform or pixdim say beside it is compared: flagged, and judged by the body
sform a dummy     the qform counts, flagged; refused without a sound one
sform not set     the qform counts
neither           refused: left and right are unknown
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from nibabel.nifti1 import Nifti1Header

from ttepretrain.errors import BadStudy
from ttepretrain.volume.body import BODY_HU, extents
from ttepretrain.volume.checks import Flag, Reason, check_affine
from ttepretrain.volume.image import CTImage, to_ras

DISAGREE_MM = 1.0  # flagged where two statements of the header differ by more at a corner
FACTOR = 1.05  # sizes that differ by more are judged by the body
QUATERNION_OVER = 1e-3  # old writers leave b, c, d a little longer than 1
QUATERNION_ZERO = 3.6e-7  # a smaller square of a is the rounding of b, c, d to 32 bits; as in nibabel
MILLIMETRES, UNIT_UNKNOWN = 2, 0
TO_DHW = [2, 1, 0, 3]  # columns of a NIfTI affine, which counts W H D

# What a CT shows of a human body, in mm, from a newborn's head to the largest field of view
ACROSS_MM = (50.0, 650.0)  # left to right, and back to front
ALONG_MM = 2100.0
WIDER = 3.0  # ratio of width and depth of a whole body or limb
LARGEST_MM = 1000.0  # across; no scanner has such a bore
SAMPLES = 64  # voxels looked at along an axis


@dataclass(frozen=True)
class Geometry:
    affine: np.ndarray  # 4 x 4: index D H W -> RAS+ mm
    flags: tuple[Flag, ...]
    other_mm_DHW: np.ndarray | None = None  # other voxel sizes in the header, so different that the body must settle it


def geometry(header: Nifti1Header) -> Geometry:
    """The affine that counts, its flags, and what the voxels must settle; BadStudy if none is sound."""
    if int(header["xyzt_units"]) & 7 not in (MILLIMETRES, UNIT_UNKNOWN):
        raise BadStudy(Reason.BAD_SPACING, "lengths are not in millimetres")
    sform_set, qform_set = (int(header[code]) > 0 for code in ("sform_code", "qform_code"))
    if not sform_set and not qform_set:
        raise BadStudy(Reason.BAD_AFFINE, "neither sform nor qform is set: left and right are unknown")
    if not sform_set:
        return _of(_qform(header))
    sform = header.get_sform().astype(float)
    if not np.isfinite(sform).all():
        raise BadStudy(Reason.BAD_AFFINE, "NaN or infinity")
    sizes_mm = np.abs(header["pixdim"][1:4].astype(float))
    known = bool(np.isfinite(sizes_mm).all() and (sizes_mm > 0).all())
    if _is_dummy(sform, sizes_mm if known else None):
        if not qform_set:
            raise BadStudy(Reason.BAD_AFFINE, "the sform is a dummy and the qform is not set")
        return _of(_qform(header), (Flag.AFFINES_DISAGREE,))

    found = _of(sform)
    ours_mm, last = np.linalg.norm(sform[:3, :3], axis=0), np.array(header["dim"][1:4], float) - 1
    agree = known and bool((np.abs(ours_mm - sizes_mm) * last <= DISAGREE_MM).all())
    if qform_set:
        agree = agree and _near(header, sform, last)
    doubtful = known and bool((np.maximum(ours_mm / sizes_mm, sizes_mm / ours_mm) > FACTOR).any())
    return replace(
        found,
        flags=found.flags if agree else (Flag.AFFINES_DISAGREE, *found.flags),
        other_mm_DHW=sizes_mm[::-1] if doubtful else None,
    )


def check_body(image: CTImage, other_mm_DHW: np.ndarray | None) -> None:
    """BadStudy if the body is larger than any, or no human's by the affine's sizes but by the header's other ones."""
    if other_mm_DHW is None and np.multiply(image.hu_DHW.shape, image.spacing_mm).max() <= LARGEST_MM:
        return  # no body is larger than its image
    ours_mm = _body_mm(image)
    if max(ours_mm[1:]) > LARGEST_MM:
        raise BadStudy(Reason.BAD_SPACING, f"a body of {_shown(ours_mm)} mm")
    if other_mm_DHW is None:
        return
    rescaled = image.affine.copy()
    rescaled[:3, :3] *= other_mm_DHW / image.spacing_mm
    theirs_mm = _body_mm(replace(image, affine=rescaled))
    if _is_human(theirs_mm) and not _is_human(ours_mm):
        detail = f"a body of {_shown(ours_mm)} mm by the sform, {_shown(theirs_mm)} mm by pixdim"
        raise BadStudy(Reason.BAD_SPACING, detail)


def _of(affine_WHD: np.ndarray, flags: tuple[Flag, ...] = ()) -> Geometry:
    affine = affine_WHD[:, TO_DHW]
    return Geometry(affine, (*flags, *check_affine(affine)))


def _is_dummy(sform: np.ndarray, sizes_mm: np.ndarray | None) -> bool:
    """A row or column of zeros, or the identity where pixdim does not say 1 mm: the code is set, the matrix is not."""
    linear = sform[:3, :3]
    if not (linear.any(axis=0).all() and linear.any(axis=1).all()):
        return True
    identity = np.array_equal(np.abs(linear), np.eye(3)) and not sform[:3, 3].any()
    return bool(identity and (sizes_mm is None or (np.abs(np.log(sizes_mm)) > math.log(FACTOR)).any()))


def _near(header: Nifti1Header, sform: np.ndarray, last_WHD: np.ndarray) -> bool:
    """Whether the qform is the sform, as it is or as nearly as a qform can hold it: without shear."""
    try:
        qform = _qform(header)
    except BadStudy:
        return False
    closest = Nifti1Header()
    closest.set_qform(sform)
    corners = np.array([[*(last_WHD * corner), 1] for corner in np.ndindex(2, 2, 2)])
    apart = (np.abs(corners @ (candidate - qform)[:3].T).max() for candidate in (sform, closest.get_qform()))
    return bool(min(apart) <= DISAGREE_MM)


def _qform(header: Nifti1Header) -> np.ndarray:
    sizes_mm = header["pixdim"][1:4].astype(float)
    if not (np.isfinite(sizes_mm).all() and (sizes_mm > 0).all()):
        raise BadStudy(Reason.BAD_AFFINE, "a voxel size is zero, negative or NaN")
    handed = float(header["pixdim"][0])
    if handed not in (-1.0, 0.0, 1.0):
        raise BadStudy(Reason.BAD_AFFINE, "pixdim[0] says neither left nor right")
    turn = np.array([header[f"quatern_{axis}"] for axis in "bcd"], float)
    place = np.array([header[f"qoffset_{axis}"] for axis in "xyz"], float)
    if not (np.isfinite(turn).all() and np.isfinite(place).all()):
        raise BadStudy(Reason.BAD_AFFINE, "NaN or infinity")
    if turn @ turn > 1 + QUATERNION_OVER:
        raise BadStudy(Reason.BAD_AFFINE, "the quaternion is not a rotation")
    b, c, d = turn / max(1.0, math.sqrt(turn @ turn))
    squared = 1 - b * b - c * c - d * d
    a = math.sqrt(squared) if squared > QUATERNION_ZERO else 0.0
    affine = np.eye(4)
    affine[:3, :3] = [
        [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
        [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
        [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
    ]
    affine[:3, :3] *= sizes_mm * [1, 1, -1 if handed < 0 else 1]
    affine[:3, 3] = place
    return affine


def _body_mm(image: CTImage) -> tuple[float, float, float]:
    """Extent of what is no air along head, front and right: between the 1 % and 99 % quantiles along each axis."""
    image = to_ras(image)
    sampled = image.hu_DHW[tuple(slice(None, None, max(1, n // SAMPLES)) for n in image.hu_DHW.shape)]
    sides = [
        np.linspace(0, size * mm, n + 1) for size, mm, n in zip(image.hu_DHW.shape, image.spacing_mm, sampled.shape)
    ]
    found = extents(sampled > BODY_HU, sides)
    if found is None:
        return 0.0, 0.0, 0.0
    along, deep, wide = (high - low for low, high in found)
    return along, deep, wide


def _is_human(body_mm: tuple[float, float, float]) -> bool:
    along, deep, wide = body_mm
    low, high = ACROSS_MM
    return low <= min(deep, wide) and max(deep, wide) <= min(high, WIDER * min(deep, wide)) and along <= ALONG_MM


def _shown(body_mm: tuple[float, float, float]) -> str:
    return " x ".join(f"{mm:.0f}" for mm in body_mm)
