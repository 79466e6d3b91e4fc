"""Whether a series is complete: which files were left out, and which of them may be slices of it. No pixels here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ttepretrain.errors import BadStudy
from ttepretrain.volume.checks import Flag, Reason
from ttepretrain.volume.dicom.coding.decoder_child import NO_DECODER
from ttepretrain.volume.dicom.coding.syntaxes import has_readable_pixels
from ttepretrain.volume.dicom.frames import CT_CLASS, MULTIFRAME_CLASSES, Picture
from ttepretrain.volume.dicom.tags import text

DAMAGED = (Reason.TRUNCATED, Reason.UNREADABLE, Reason.TOO_LARGE)
NO_PICTURES = (Reason.NOT_DICOM, Reason.NOT_IMAGE)
MARKER_BYTES = 132  # a preamble, mostly zeros, followed by DICM


@dataclass(frozen=True)
class LeftOut:
    """Why a file, or one of its frames, is not a slice."""

    reason: Reason
    series_uid: str = ""  # stated in the file; "" if missing or unreadable
    sop_classes: frozenset[str] = frozenset()  # stated in the file; likewise


Skipped = Mapping[Path, LeftOut]


def lost_slices(found: Sequence[Picture], skipped: Skipped) -> Skipped:
    """The unreadable files that may have been slices of any series, with the reason each cannot be read.

    A file without the DICOM marker counts if it is named like the slices: with their suffix or, if they have none, with
    a digit in its name and only zeros where the marker should be.
    """
    classes = _classes(found)
    suffixes = {_suffix(file) for file in {picture.header.file for picture in found}}
    lost = {}
    for file, left in skipped.items():
        if left.reason in (*DAMAGED, Reason.UNSUPPORTED_SYNTAX) and _may_be_slice(left, classes):
            lost[file] = left
        elif left.reason == Reason.NOT_DICOM and not file.name.startswith(".") and _suffix(file) in suffixes:
            blank = _is_blank(file)
            if _suffix(file) or (blank and any(letter.isdigit() for letter in file.name)):
                lost[file] = replace(left, reason=Reason.TRUNCATED if blank else Reason.UNREADABLE)
    return lost


def refuse_lost(lost: Skipped) -> None:
    """BadStudy if there is a lost slice, with the reason that the user can do most about."""
    reasons = [left.reason for left in lost.values()]
    if Reason.UNSUPPORTED_SYNTAX in reasons:
        raise BadStudy(Reason.UNSUPPORTED_SYNTAX, NO_DECODER)
    if reasons:
        raise BadStudy(reasons[0], "a damaged DICOM file among the slices; nothing says that it is not one of them")


def check_none_lost(uid: str, found: Sequence[Picture], lost: Skipped, named: Path) -> tuple[Flag, ...]:
    """BadStudy if a lost slice may belong to the series `uid`: by its own UID or, if that is unknown, by its folder.

    Flagged instead if that folder has slices of other series and none of this one, or if the path names one file in a
    folder of several series.
    """
    own, others = (
        {picture.header.file.parent for picture in found if (text(picture.values, "SeriesInstanceUID") == uid) == mine}
        for mine in (True, False)
    )
    elsewhere = others - (set() if named.is_file() else own)
    # a file truncated within its UID still has the beginning of it
    ours = {file: left for file, left in lost.items() if uid.startswith(left.series_uid)}
    beside = {file for file, left in ours.items() if not (uid and left.series_uid == uid) and file.parent in elsewhere}
    refuse_lost({file: left for file, left in ours.items() if file not in beside})
    return (Flag.DAMAGED_BESIDE,) if beside else ()


def check_none_left_out(series: Sequence[Picture], skipped: Skipped) -> tuple[Flag, ...]:
    """BadStudy if a picture of the series, other than a localizer, was left out: it may be its last slice.

    Objects of SOP classes other than CT and that of the slices are not slices. They are flagged.
    """
    uid, classes = text(series[0].values, "SeriesInstanceUID"), _classes(series)
    no_slices = (Reason.LOCALIZER, *(() if uid else NO_PICTURES))
    own = [left for left in skipped.values() if left.series_uid == uid and left.reason not in no_slices]
    slices = [left.reason for left in own if _may_be_slice(left, classes)]
    if Reason.UNSUPPORTED_SYNTAX in slices or not all(has_readable_pixels(p.header.syntax) for p in series):
        raise BadStudy(Reason.UNSUPPORTED_SYNTAX, NO_DECODER)
    if slices:
        raise BadStudy(slices[0], "a picture of the series itself, which cannot be one of its slices")
    return (Flag.OBJECTS_SKIPPED,) if own and uid else ()


def refuse_without_pictures(skipped: Skipped) -> None:
    """BadStudy with the most frequent reason among the DICOM images; NOT_IMAGE for a study of reports alone."""
    counts = Counter(left.reason for left in skipped.values())
    for others in (NO_PICTURES, (Reason.NOT_DICOM,), ()):
        left = {reason: count for reason, count in counts.items() if reason not in others}
        if left:
            reason = max(sorted(left), key=lambda reason: left[reason])
            raise BadStudy(reason, f"no slice of a CT series among {len(skipped)} files")
    raise BadStudy(Reason.NOT_DICOM, "an empty folder")


def _classes(slices: Sequence[Picture]) -> set[str]:
    return {CT_CLASS, *MULTIFRAME_CLASSES, *(text(picture.values, "SOPClassUID") for picture in slices)}


def _may_be_slice(left: LeftOut, classes: set[str]) -> bool:
    return not left.sop_classes or not left.sop_classes.isdisjoint(classes)


def _suffix(file: Path) -> str:
    """Suffix in lower case; "" if it is a number, which is the end of a UID."""
    suffix = file.suffix.lower()
    return "" if suffix[1:].isdigit() else suffix


def _is_blank(file: Path) -> bool:
    """Whether the file is empty, or has only zeros where the DICOM marker should be."""
    with file.open("rb") as handle:
        return not any(handle.read(MARKER_BYTES))
