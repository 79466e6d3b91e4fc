"""What one DICOM image says about itself, as checked values. Free text passes in known forms only."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
from pydicom import Dataset

from ttepretrain.errors import BadStudy
from ttepretrain.volume.checks import MIN_SLICES, Reason, check_scaling, check_shape
from ttepretrain.volume.image import ACQUISITION_KEYS
from ttepretrain.volume.series import SliceHeader

# All that is ever read from a file; PixelData, the last, stays in it until it is needed.
TAGS = """
    SOPClassUID SOPInstanceUID SeriesInstanceUID StudyInstanceUID PatientID Modality ImageType BurnedInAnnotation
    NumberOfFrames SamplesPerPixel PhotometricInterpretation PlanarConfiguration Rows Columns BitsAllocated BitsStored
    HighBit PixelRepresentation PixelPaddingValue PixelPaddingRangeLimit RescaleSlope RescaleIntercept RescaleType
    PixelSpacing ImageOrientationPatient ImagePositionPatient LossyImageCompression
    Manufacturer ConvolutionKernel KVP ContrastBolusAgent SliceThickness PixelData
""".split()  # noqa: SIM905  a table of names reads better than a list of strings
VENDORS = "canon fujifilm ge hitachi neusoft philips samsung siemens toshiba uih".split()  # noqa: SIM905
KERNEL_NAMES = "STANDARD SOFT LUNG BONE BONEPLUS DETAIL EDGE CHST STND STD+ SMOOTH SHARP".split()  # noqa: SIM905


def slice_header(file: Path, dataset: Dataset) -> SliceHeader:
    """Geometry and scaling of one slice; BadStudy when they are missing or absurd."""
    rows, columns = (int(numbers(dataset, keyword, 1, Reason.BAD_SHAPE)[0]) for keyword in ("Rows", "Columns"))
    check_shape((MIN_SLICES, rows, columns))  # the whole stack is checked when it is known
    spacing_HW_mm = numbers(dataset, "PixelSpacing", 2, Reason.BAD_SPACING)
    if min(spacing_HW_mm) <= 0:
        raise BadStudy(Reason.BAD_SPACING, "PixelSpacing is not positive")
    direction_WH = np.reshape(numbers(dataset, "ImageOrientationPatient", 6, Reason.BAD_AFFINE), (2, 3))
    (slope,) = numbers(dataset, "RescaleSlope", 1, Reason.BAD_SCALING)
    (intercept,) = numbers(dataset, "RescaleIntercept", 1, Reason.BAD_SCALING)
    check_scaling(slope, intercept)
    if text(dataset, "RescaleType").upper() not in ("", "HU", "HU_MOD", "US"):  # US: unspecified
        raise BadStudy(Reason.NOT_HU, "RescaleType is not HU")
    return SliceHeader(
        file=file,
        instance_uid=text(dataset, "SOPInstanceUID"),
        shape_HW=(rows, columns),
        spacing_HW_mm=tuple(spacing_HW_mm),
        direction_WH=direction_WH,
        position=np.array(numbers(dataset, "ImagePositionPatient", 3, Reason.BAD_AFFINE)),
        slope=slope,
        intercept=intercept,
    )


def numbers(dataset: Dataset, keyword: str, count: int, reason: Reason) -> list[float]:
    """`count` finite numbers, or BadStudy with the reason."""
    try:
        value = dataset.get(keyword)
        numbers = [float(v) for v in (value if count > 1 else [value])]
    except (TypeError, ValueError, OverflowError):
        numbers = []
    if len(numbers) != count or not all(math.isfinite(number) for number in numbers):
        raise BadStudy(reason, f"{keyword} is missing or not {count} finite numbers")
    return numbers


def text(dataset: Dataset, keyword: str) -> str:
    return str(dataset.get(keyword) or "").strip()


def texts(dataset: Dataset, keyword: str) -> list[str]:
    value = dataset.get(keyword)
    values = [value] if isinstance(value, str) else list(value or [])
    return [str(v).strip().upper() for v in values]


def acquisition(dataset: Dataset) -> dict[str, str | float | bool | None]:
    """ACQUISITION_KEYS of one slice. Free text passes only in known forms: anything may be typed into it."""
    known = dict.fromkeys(ACQUISITION_KEYS)
    maker = text(dataset, "Manufacturer").lower()
    if maker:
        known["manufacturer"] = next((vendor for vendor in VENDORS if re.search(rf"\b{vendor}\b", maker)), "other")
    kernel = (texts(dataset, "ConvolutionKernel") or [""])[0]
    if kernel in KERNEL_NAMES or re.fullmatch(r"[A-Z]{1,3}\d{0,3}[A-Z]?(-[A-Z])?", kernel):  # B30F, FC18-H, YA
        known["kernel"] = kernel
    for key, keyword in (("kvp", "KVP"), ("slice_thickness_mm", "SliceThickness")):
        try:
            (known[key],) = numbers(dataset, keyword, 1, Reason.UNREADABLE)
        except BadStudy:
            known[key] = None
    agent = text(dataset, "ContrastBolusAgent").upper()
    if agent:
        known["contrast"] = agent not in ("NO", "NONE", "N")
    return known
