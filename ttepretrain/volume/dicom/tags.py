"""What the header of one DICOM picture states, as checked values. Free text is kept in known forms only."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, MutableSequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ttepretrain.errors import BadStudy
from ttepretrain.volume.checks import MIN_SLICES, Reason, check_scaling, check_shape
from ttepretrain.volume.image import ACQUISITION_KEYS

# Everything that is ever read from a file, besides the pixels.
TAGS = """
    SOPClassUID SOPInstanceUID SeriesInstanceUID StudyInstanceUID FrameOfReferenceUID PatientID PatientName Modality
    ImageType ConcatenationUID InConcatenationNumber InConcatenationTotalNumber ConcatenationFrameOffsetNumber
    BurnedInAnnotation NumberOfFrames SamplesPerPixel PhotometricInterpretation Rows Columns BitsAllocated BitsStored
    HighBit PixelRepresentation PixelPaddingValue PixelPaddingRangeLimit RescaleSlope RescaleIntercept RescaleType
    PixelSpacing ImageOrientationPatient ImagePositionPatient GantryDetectorTilt LossyImageCompression
    TemporalPositionIndex TemporalPositionIdentifier TemporalPositionTimeOffset NominalPercentageOfCardiacPhase
    NominalCardiacTriggerDelayTime ActualCardiacTriggerDelayTime TriggerTime NominalPercentageOfRespiratoryPhase
    NominalRespiratoryTriggerDelayTime StackID AcquisitionNumber FrameAcquisitionNumber AcquisitionTime ContentTime
    AcquisitionDate ContentDate AcquisitionDateTime FrameAcquisitionDateTime SeriesDate SeriesTime StudyDate StudyTime
    Manufacturer ConvolutionKernel KVP ContrastBolusAgent ContrastBolusAgentSequence SliceThickness
    DerivationDescription
    SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence
""".split()  # noqa: SIM905  a table of names reads better than a list of strings
PLACEHOLDERS = """
    ? - -- . * X XX XXX N/A NA NAN NULL UNKNOWN UNK UNSPECIFIED UNDEFINED OTHER ANON ANONYMIZED ANONYMISED ANONYMOUS
    DEIDENTIFIED DE-IDENTIFIED REMOVED REDACTED MASKED DUMMY TBD
""".split()  # noqa: SIM905  which say nothing
# RescaleType: how HU are spelled, and units that are not HU. Anything else says nothing: the values themselves decide.
HU_NAMES = re.compile(r"\[?(HU|HU_MOD|HOUNSFIELDS?|HOUNSFIELD[ _]?UNITS?|UNITS? HOUNSFIELD|H\.?U\.?)\]?")
OTHER_UNITS = re.compile(
    r"OD|MGML|Z_?EFF.*|EDW?|PCT|SUV.*|BQ.*|CNTS|COUNTS|GY|CGY|PPM|MS|S|SEC|KEV|NORMALIZED|.*[/%^].*"
)
# Values of ImageType, or words in them: what an image shows instead of HU.
MAPS = """
    SUBTRACTION SUBTRACTED SUBTRACT SUB DSA DIVISION MULTIPLICATION STD_DEVIATION T_TEST Z_SCORE MTT TTP TMAX TTD TTS
    RCBF RCBV CBF CBV PBV BLOODFLOW BLOODVOLUME BLOOD_FLOW BLOOD_VOLUME PERMEABILITY MAT_SPECIFIC MAT_FRACTIONAL
    MAT_VALUE_BASED EFF_ATOMIC_NUM Z_EFF ZEFF ELECTRON_DENSITY RHO_Z VRT
""".split()  # noqa: SIM905
MAPS_IN_WORDS = re.compile(
    r"SUBTRACT|PERFUSION MAP|BLOOD (FLOW|VOLUME)|TRANSIT TIME|TIME TO (PEAK|MAX)|IODINE (MAP|DENSITY|OVERLAY|IMAGE)"
    r"|EFFECTIVE (Z|ATOMIC)|ELECTRON DENSITY|VOLUME RENDER"
)
# What is HU, but not of one place: the largest, smallest or mean value along a line.
PROJECTIONS = re.compile(
    r"\b(MIP|MINIP|MAXIP|AIP|MAXIMUM|MINIMUM|MEAN|AVERAGE|AVG|MPR|REFORMATTED|RESAMPLED|PROJECTION)\b"
)
UNSAID = ("anonymized", "anonymised", "anonymous", "none", "unknown")  # instead of a manufacturer
VENDORS = "canon fujifilm ge hitachi neusoft philips samsung siemens toshiba uih".split()  # noqa: SIM905
KERNEL_NAMES = "STANDARD SOFT LUNG BONE BONEPLUS DETAIL EDGE CHST STND STD+ SMOOTH SHARP".split()  # noqa: SIM905

UNIT = 0.02  # lengths of row and column directions that differ less from 1 are rounded: .7 and .7 have .99

Values = Mapping[str, Any]  # keyword -> value as pydicom converts it; absent where the file has no such element


@dataclass(frozen=True)
class SliceHeader:
    """Position of one CT picture, and the scaling of its values."""

    file: Path
    frame: int  # number within the file; 0 for a file of one picture
    instance_uid: str  # orders slices at the same position; never shown
    shape_HW: tuple[int, int]
    spacing_HW_mm: tuple[float, float]
    direction_WH: np.ndarray  # [2, 3] LPS: along a row, along a column
    position: np.ndarray  # [3] LPS mm, centre of the first pixel
    slope: float
    intercept: float


def slice_header(file: Path, frame: int, values: Values) -> SliceHeader:
    """Geometry and scaling of one picture; BadStudy if they are missing or absurd."""
    rows, columns = (int(numbers(values, keyword, 1, Reason.BAD_SHAPE)[0]) for keyword in ("Rows", "Columns"))
    check_shape((MIN_SLICES, rows, columns))  # the number of slices is checked later
    spacing_HW_mm = numbers(values, "PixelSpacing", 2, Reason.BAD_SPACING)
    if min(spacing_HW_mm) <= 0:
        raise BadStudy(Reason.BAD_SPACING, "PixelSpacing is not positive")
    direction_WH = np.reshape(numbers(values, "ImageOrientationPatient", 6, Reason.BAD_AFFINE), (2, 3))
    lengths = np.linalg.norm(direction_WH, axis=1)
    if np.abs(lengths - 1).max() <= UNIT:
        direction_WH = direction_WH / lengths[:, None]
    (slope,) = numbers(values, "RescaleSlope", 1, Reason.BAD_SCALING)
    (intercept,) = numbers(values, "RescaleIntercept", 1, Reason.BAD_SCALING)
    check_scaling(slope, intercept)
    units = text(values, "RescaleType").upper()
    if units not in PLACEHOLDERS and not HU_NAMES.fullmatch(units) and OTHER_UNITS.fullmatch(units):
        raise BadStudy(Reason.NOT_HU, "RescaleType is not HU")
    return SliceHeader(
        file=file,
        frame=frame,
        instance_uid=text(values, "SOPInstanceUID"),
        shape_HW=(rows, columns),
        spacing_HW_mm=(spacing_HW_mm[0], spacing_HW_mm[1]),
        direction_WH=direction_WH,
        position=np.array(numbers(values, "ImagePositionPatient", 3, Reason.BAD_AFFINE)),
        slope=slope,
        intercept=intercept,
    )


def numbers(values: Values, keyword: str, count: int, reason: Reason) -> list[float]:
    """`count` finite numbers; BadStudy with `reason` for anything else."""
    value: Any = values.get(keyword)
    if count > 1 and isinstance(value, str | bytes):  # of a type that cannot be split
        value = (value.decode("ascii", "replace") if isinstance(value, bytes) else value).strip("\0 ").split("\\")
    try:
        numbers = [float(v) for v in (value if count > 1 else [value])]
    except (TypeError, ValueError, OverflowError):
        numbers = []
    if len(numbers) != count or not all(math.isfinite(number) for number in numbers):
        raise BadStudy(reason, f"{keyword} is missing or not {count} finite numbers")
    return numbers


def text(values: Values, keyword: str) -> str:
    value = values.get(keyword)
    return str(value).strip() if value or value == 0 else ""


def texts(values: Values, keyword: str) -> list[str]:
    value = values.get(keyword)
    parts = value if isinstance(value, MutableSequence) else [value] if value else []  # a damaged value may be a number
    return [str(part).strip().upper() for part in parts]


def vendor(values: Values) -> str:
    """One of VENDORS, or the stated manufacturer in lower case; "" if none is stated."""
    maker = text(values, "Manufacturer").lower()
    if maker in UNSAID:
        return ""
    return next((name for name in VENDORS if re.search(rf"(?<![a-z0-9]){name}(?![a-z0-9])", maker)), maker)


def acquisition(values: Values) -> dict[str, str | float | bool | None]:
    """ACQUISITION_KEYS of a picture, without contrast. Free text is kept in known forms only: it may name people."""
    known = dict.fromkeys(ACQUISITION_KEYS)
    maker = vendor(values)
    if maker:
        known["manufacturer"] = maker if maker in VENDORS else "other"
    kernel = (texts(values, "ConvolutionKernel") or [""])[0]
    if kernel in KERNEL_NAMES or re.fullmatch(r"[A-Z]{1,3}\d{0,3}[A-Z]?(-[A-Z])?", kernel):  # B30F, FC18-H, YA
        known["kernel"] = kernel
    for key, keyword in (("kvp", "KVP"), ("slice_thickness_mm", "SliceThickness")):
        try:
            (known[key],) = numbers(values, keyword, 1, Reason.UNREADABLE)
        except BadStudy:
            known[key] = None
    return known


def is_map(values: Values) -> bool:
    """Whether the picture shows something else than HU: a difference, a perfusion or material map, a rendering."""
    said = texts(values, "ImageType")
    words = {word for value in said for word in (value, *value.split())}
    iodine = any("IODINE" in word and "REMOV" not in word for word in said)
    perfusion = said[:1] == ["DERIVED"] and "PERFUSION" in words
    derived = MAPS_IN_WORDS.search(text(values, "DerivationDescription").upper().replace("_", " "))
    return bool(not words.isdisjoint(MAPS) or iodine or perfusion or derived)


def is_derived(values: Values) -> bool:
    """Whether the picture was computed from others, as its ImageType or DerivationDescription says."""
    said = texts(values, "ImageType")
    words = " ".join([*said[2:], text(values, "DerivationDescription").upper()]).replace("_", " ")
    return said[:1] == ["DERIVED"] or bool(PROJECTIONS.search(words))
