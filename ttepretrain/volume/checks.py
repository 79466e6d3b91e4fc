"""Reason codes of refused studies, flags of repaired ones, and the checks that all formats share."""

from __future__ import annotations

import math
from enum import StrEnum

import numpy as np

from ttepretrain.errors import BadStudy


class Reason(StrEnum):
    """Why a study is refused; part of the interface (quarantine.parquet, the command line)."""

    # the file
    NOT_FOUND = "NOT_FOUND"
    PERMISSION = "PERMISSION"
    UNREADABLE = "UNREADABLE"  # it exists, but no scan can be read from it
    TRUNCATED = "TRUNCATED"
    CRC = "CRC"  # the compressed stream does not match its checksum
    TOO_LARGE = "TOO_LARGE"  # would need more memory than any CT; refused before allocating
    NOT_NIFTI = "NOT_NIFTI"
    NOT_DICOM = "NOT_DICOM"
    NOT_IMAGE = "NOT_IMAGE"  # DICOM, but without images: reports, directories
    DECODER = "DECODER"  # compressed pixels crashed the decoder, or took too long or too much memory
    UNSUPPORTED_SYNTAX = "UNSUPPORTED_SYNTAX"
    UNSUPPORTED_DTYPE = "UNSUPPORTED_DTYPE"
    UNSUPPORTED_MULTIFRAME = "UNSUPPORTED_MULTIFRAME"
    # what it shows
    NOT_CT = "NOT_CT"
    LOCALIZER = "LOCALIZER"
    BURNED_IN = "BURNED_IN"  # text in the pixels: it may identify the patient, and it is not HU
    IDENTITY_CONFLICT = "IDENTITY_CONFLICT"
    NO_SERIES = "NO_SERIES"  # CT, but no series matches the study table or volume.series
    # geometry
    BAD_SHAPE = "BAD_SHAPE"
    BAD_SPACING = "BAD_SPACING"
    BAD_AFFINE = "BAD_AFFINE"
    TOO_FEW_SLICES = "TOO_FEW_SLICES"
    MISSING_SLICE = "MISSING_SLICE"
    DUPLICATE_SLICE = "DUPLICATE_SLICE"  # two different images at one position
    MIXED_GEOMETRY = "MIXED_GEOMETRY"  # slices of one series differ in matrix size, spacing or orientation
    # values
    BAD_SCALING = "BAD_SCALING"
    NAN_VOXELS = "NAN_VOXELS"
    CONSTANT = "CONSTANT"
    NOT_HU = "NOT_HU"
    # no fault of the scan
    OUT_OF_MEMORY = "OUT_OF_MEMORY"  # there was too little left to read it: of the machine, or of a limit on workers
    UNEXPECTED = "UNEXPECTED"  # any other exception; `detail` gives its type and place


class Flag(StrEnum):
    """What was repaired or noticed in a study that is used."""

    DUPLICATE_DROPPED = "duplicate_dropped"
    GANTRY_TILT = "gantry_tilt"  # slices are sheared against each other; the affine describes it
    TILT_UNCONFIRMED = "tilt_unconfirmed"  # the header states a tilt, the positions do not; they are used
    UNEVEN_SPACING = "uneven_spacing"  # interpolated onto an even grid along the slice direction
    IMAGES_SKIPPED = "images_skipped"  # localizers, screenshots and other images in the same folder
    OBJECTS_SKIPPED = "objects_skipped"  # reports, raw data or screenshots under the UID of the series
    DAMAGED_BESIDE = "damaged_beside"  # unreadable files in the folder may belong to this series
    MIXED_PROTOCOL = "mixed_protocol"  # kernel, kV and the like change along the stack: regions, or scans end to end
    RESCALE_VARIES = "rescale_varies"  # slope or intercept differ among slices
    CONSTANT_SLICE = "constant_slice"  # all pixels of a slice have the same value
    REPEATED_SLICE = "repeated_slice"  # the same image at two positions
    OTHER_SERIES = "other_series"  # further CT series in the folder were not read
    OTHER_PHASES = "other_phases"  # the series covers its positions several times; one pass was read
    PADDING_DOUBTFUL = "padding_doubtful"  # stated padding lies among tissue: taken outside the field of view alone
    STRAY_BITS = "stray_bits"  # bits above BitsStored differ: read as values or cleared, as their neighbours tell
    DERIVED = "derived"  # computed from other images: reformats, projections; or the header calls a copy so
    LOSSY = "lossy"
    NAN_TO_AIR = "nan_to_air"
    DUPLICATE_CONTENT = "DUPLICATE_CONTENT"  # another scan has the same voxels; set by doctor and jobs.prepare
    AFFINES_DISAGREE = "affines_disagree"  # NIfTI sform, qform or voxel sizes; the sform is used unless it is a dummy
    UNSCALED = "unscaled"  # NIfTI without a slope (0 or NaN): stored values are HU
    HU_DOUBTFUL = "hu_doubtful"  # air, fat or muscle are not quite where HU would put them: hu.py
    HU_CLIPPED = "hu_clipped"  # bone or air was cut off: the values of a window


PADDING_HU = -1024  # written where nothing was measured: the lowest of CT's 12 bits, below air, which is -1000
MIN_SLICES = 3
MAX_AXIS = 8192  # voxels
MAX_VOXELS = 2**30  # 1,024 slices of 1,024 x 1,024
SPACING_RANGE_MM = (0.1, 10.0)
MAX_ANISOTROPY = 20.0
MAX_SHEAR_DEGREES = 45.0
MAX_NAN_FRACTION = 0.01


def check_shape(shape_DHW: tuple[int, int, int]) -> None:
    """BadStudy unless the shape is that of a CT volume. Needs no voxels: call it before allocating."""
    if min(shape_DHW) < 1 or max(shape_DHW) > MAX_AXIS:
        raise BadStudy(Reason.BAD_SHAPE, f"an axis is outside 1..{MAX_AXIS} voxels")
    if math.prod(shape_DHW) > MAX_VOXELS:
        raise BadStudy(Reason.TOO_LARGE, f"{math.prod(shape_DHW)} voxels, limit {MAX_VOXELS}")
    if min(shape_DHW) < MIN_SLICES:
        raise BadStudy(Reason.TOO_FEW_SLICES, f"{min(shape_DHW)} slices, at least {MIN_SLICES} make a volume")


def check_affine(affine: np.ndarray) -> tuple[Flag, ...]:
    """Flags of a usable index -> mm map; BadStudy for one that is singular, absurdly spaced or sheared too far."""
    if not np.isfinite(affine).all():
        raise BadStudy(Reason.BAD_AFFINE, "NaN or infinity")
    with np.errstate(over="ignore"):  # what overflows is far out of range
        spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    if spacing_mm.min() == 0:
        raise BadStudy(Reason.BAD_AFFINE, "an axis has no direction")
    low, high = SPACING_RANGE_MM
    if spacing_mm.min() < low or spacing_mm.max() > high or spacing_mm.max() > MAX_ANISOTROPY * spacing_mm.min():
        shown = " x ".join(f"{s:.4g}" for s in spacing_mm)
        raise BadStudy(Reason.BAD_SPACING, f"{shown} mm; allowed {low}..{high} mm, ratio up to {MAX_ANISOTROPY:g}")
    directions = affine[:3, :3] / spacing_mm
    cosines = np.abs(directions.T @ directions - np.eye(3))
    if cosines.max() > math.sin(math.radians(MAX_SHEAR_DEGREES)) or abs(np.linalg.det(directions)) < 0.5:
        raise BadStudy(Reason.BAD_AFFINE, f"axes are sheared by more than {MAX_SHEAR_DEGREES:g} degrees")
    return (Flag.GANTRY_TILT,) if cosines.max() > math.sin(math.radians(0.5)) else ()


def check_scaling(slope: float, intercept: float) -> None:
    """BadStudy unless stored values can become HU.

    In DICOM a slope of zero is damage: it would give every pixel the intercept. In NIfTI it means unscaled (nifti.py).
    """
    if not (math.isfinite(slope) and math.isfinite(intercept)):
        raise BadStudy(Reason.BAD_SCALING, "slope or intercept is NaN or infinite")
    if not 1e-6 <= slope <= 1e3 or abs(intercept) > 1e5:
        raise BadStudy(Reason.BAD_SCALING, f"slope {slope:g}, intercept {intercept:g}")
