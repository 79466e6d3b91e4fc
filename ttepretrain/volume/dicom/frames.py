"""The CT slices in DICOM files, and why a file has none.

A classic file has one picture. Enhanced and Legacy Converted Enhanced CT have many frames, which are described in
functional groups: shared by all frames, or for each of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ttepretrain.errors import BadStudy
from ttepretrain.volume.checks import Reason
from ttepretrain.volume.dicom.coding.syntaxes import has_readable_header
from ttepretrain.volume.dicom.headers import Header
from ttepretrain.volume.dicom.tags import TAGS, Values, is_map, numbers, text, texts

DIRECTORY_CLASS = "1.2.840.10008.1.3.10"
CT_CLASS = "1.2.840.10008.5.1.4.1.1.2"
MULTIFRAME_CLASSES = (f"{CT_CLASS}.1", f"{CT_CLASS}.2")  # enhanced, legacy converted
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
CONCATENATION = ("ConcatenationUID", "InConcatenationNumber", "ConcatenationFrameOffsetNumber")
MAX_FRAMES = 20_000  # per file; each takes a kilobyte before it is checked
SHARED, PER_FRAME = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
# The first two hold what a conversion found no place for. They come first, so that a proper group overrides them.
GROUPS = """
    UnassignedSharedConvertedAttributesSequence UnassignedPerFrameConvertedAttributesSequence
    FrameContentSequence PlanePositionSequence PlaneOrientationSequence PixelMeasuresSequence
    PixelValueTransformationSequence
    TemporalPositionSequence CardiacSynchronizationSequence RespiratorySynchronizationSequence
    CTImageFrameTypeSequence CTReconstructionSequence CTXRayDetailsSequence CTAcquisitionDetailsSequence
""".split()  # noqa: SIM905


@dataclass(frozen=True)
class Picture:
    """One slice: a frame of a file, with all its values."""

    header: Header
    frame: int
    values: Values


def pictures(header: Header) -> tuple[list[Picture], Reason | None]:
    """CT slices of one file that have a position, and why another of its pictures was left out.

    BadStudy if the file has no such slice.
    """
    _check_file(header)
    frames: list[Values] = [header.values]
    if text(header.values, "SOPClassUID") in MULTIFRAME_CLASSES:
        frames = _frames(header.values)
    reasons = [_why_no_slice(values) for values in frames]
    if Reason.BAD_AFFINE in reasons:
        raise BadStudy(Reason.BAD_AFFINE, "a picture without position or orientation")
    left_out = next((reason for reason in (Reason.NOT_HU, Reason.LOCALIZER) if reason in reasons), None)
    if None not in reasons and left_out is not None:
        raise BadStudy(left_out, "localizers, or maps of something else than HU")
    kept = [Picture(header, i, values) for i, (values, reason) in enumerate(zip(frames, reasons)) if reason is None]
    return kept, left_out


def sop_classes(header: Header) -> frozenset[str]:
    """SOP classes that the file states, in its meta information and in its header."""
    return frozenset({text(header.values, "SOPClassUID"), header.storage_class} - {""})


def check_concatenations(pictures: Sequence[Picture]) -> None:
    """BadStudy if a multi-frame object was written as several files (a concatenation) and one of them is missing.

    A missing last file is noticed only if the others state their number.
    """
    frames: defaultdict[str, dict[int, tuple[int, int]]] = defaultdict(
        dict
    )  # part -> its first frame, and the next part's
    totals: defaultdict[str, set[str]] = defaultdict(set)
    for values in {id(picture.header): picture.header.values for picture in pictures}.values():
        total = text(values, "InConcatenationTotalNumber")
        if text(values, "ConcatenationUID") or total not in ("", "0", "1"):  # else this part is the whole
            number, first = (int(numbers(values, keyword, 1, Reason.MISSING_SLICE)[0]) for keyword in CONCATENATION[1:])
            uid = text(values, "ConcatenationUID")
            frames[uid][number] = first, first + int(values.get("NumberOfFrames") or 1)
            totals[uid].add(total)
    for uid, parts in frames.items():
        starts, ends = zip(*(parts[number] for number in sorted(parts)))
        whole = sorted(parts) == list(range(1, len(parts) + 1)) and starts == (0, *ends[:-1])
        if not whole or totals[uid] - {"", str(len(parts))}:
            raise BadStudy(Reason.MISSING_SLICE, "a multi-frame scan in several files, of which some are missing")


def _check_file(header: Header) -> None:
    """BadStudy unless the file has grey 16-bit CT pictures with a position."""
    values = header.values
    if header.storage_class == DIRECTORY_CLASS:
        raise BadStudy(Reason.NOT_IMAGE, "a DICOMDIR")
    if header.damage is not None:
        raise header.damage
    if not has_readable_header(header.syntax):
        raise BadStudy(Reason.UNSUPPORTED_SYNTAX, "unknown transfer syntax")
    sop_class = text(values, "SOPClassUID")
    images = sop_classes(header) & {CT_CLASS, *MULTIFRAME_CLASSES}
    if ("Modality" not in values and "SOPClassUID" not in values) or (images and "Rows" not in values):
        raise BadStudy(Reason.TRUNCATED, "the header ends before it has said what it must")
    if values.get("Modality") != "CT":
        raise BadStudy(Reason.NOT_CT if "Rows" in values else Reason.NOT_IMAGE, "another modality")
    if "Rows" not in values or "Columns" not in values:
        raise BadStudy(Reason.NOT_IMAGE, "no picture")
    if sop_class not in MULTIFRAME_CLASSES and int(values.get("NumberOfFrames") or 1) != 1:
        raise BadStudy(Reason.UNSUPPORTED_MULTIFRAME, "several frames, and nothing says where they lie")
    if "LOCALIZER" in texts(values, "ImageType"):
        raise BadStudy(Reason.LOCALIZER, "a localizer")
    grey = int(values.get("SamplesPerPixel") or 1) == 1 and values.get("PhotometricInterpretation") == "MONOCHROME2"
    if sop_class.startswith(SECONDARY_CAPTURE) or not grey or int(values.get("BitsAllocated") or 0) != 16:
        raise BadStudy(Reason.NOT_CT, "a secondary capture, or not grey in 16 bits")
    if text(values, "BurnedInAnnotation").upper() == "YES":
        raise BadStudy(Reason.BURNED_IN, "text in the pixels")


def _why_no_slice(values: Values) -> Reason | None:
    if "LOCALIZER" in texts(values, "ImageType"):
        return Reason.LOCALIZER
    if is_map(values):
        return Reason.NOT_HU
    if not (values.get("ImagePositionPatient") and values.get("ImageOrientationPatient")):
        return Reason.BAD_AFFINE
    return None


def _frames(values: Values) -> list[Values]:
    """Values of each frame, as a file with that frame alone would state them."""
    shared, per_frame = (list(values.get(keyword) or []) for keyword in (SHARED, PER_FRAME))
    if not per_frame:
        raise BadStudy(Reason.UNSUPPORTED_MULTIFRAME, "no functional groups: nothing says where the frames lie")
    if len(per_frame) > MAX_FRAMES:
        raise BadStudy(Reason.TOO_LARGE, f"{len(per_frame)} frames in one file")
    if len(per_frame) != int(values.get("NumberOfFrames") or 0):
        raise BadStudy(Reason.BAD_SHAPE, "the number of frames is not that of their descriptions")
    common = dict(values)
    for item in shared[:1]:
        common |= _said_in(item)
    return [common | _said_in(item) for item in per_frame]


def _said_in(item: Any) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for group in GROUPS:
        for part in list(item.get(group) or [])[:1]:
            said |= {keyword: part.get(keyword) for keyword in TAGS if keyword in part}
            if "FrameType" in part:
                said["ImageType"] = part.get("FrameType")
    return said
