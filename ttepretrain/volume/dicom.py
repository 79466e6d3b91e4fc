"""Reading one CT series out of DICOM files into HU. pydicom parses; what is a CT is decided here.

files -> headers -> pictures -> one series, one phase -> an ordered stack -> pixels
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ttepretrain.errors import BadStudy
from ttepretrain.volume.alike import check_alike
from ttepretrain.volume.checks import Flag, Reason, check_affine, check_shape
from ttepretrain.volume.choice import DEFAULT_READING, WHATEVER, Reading, Wanted, check_identity, choose_series
from ttepretrain.volume.decode import NO_DECODER
from ttepretrain.volume.frames import Picture, check_concatenations, pictures
from ttepretrain.volume.headers import HeaderReader, declared_damage
from ttepretrain.volume.image import CTImage
from ttepretrain.volume.phases import one_phase
from ttepretrain.volume.pixels import read_stack
from ttepretrain.volume.series import arrange
from ttepretrain.volume.source import source_files
from ttepretrain.volume.syntaxes import LOSSY, has_readable_pixels
from ttepretrain.volume.tags import acquired, acquisition, numbers, slice_header, text

DAMAGED = (Reason.TRUNCATED, Reason.UNREADABLE, Reason.TOO_LARGE)
NO_PICTURES = (Reason.NOT_DICOM, Reason.NOT_IMAGE)
TILT_DEGREES = 0.5


@dataclass(frozen=True)
class LeftOut:
    """Why a file, or some of its frames, is no slice."""

    reason: Reason
    series_uid: str  # that it names; "" where it names none or cannot be read


Skipped = dict[Path, LeftOut]


def read_dicom(path: Path, reading: Reading = DEFAULT_READING, wanted: Wanted = WHATEVER) -> CTImage:
    """The CT series in a folder, or the one a file belongs to, in HU; BadStudy with its reason when there is none."""
    with _quiet():
        found, skipped = _find_pictures(path)
        chosen, flags = _choose(found, skipped, path, reading, wanted)
        if not all(has_readable_pixels(picture.header.syntax) for picture in chosen):
            raise BadStudy(Reason.UNSUPPORTED_SYNTAX, NO_DECODER)
        slices = [slice_header(picture.header.file, picture.frame, picture.values) for picture in chosen]
        stack = arrange(slices, reading.max_gap_mm)
        values = {(picture.header.file, picture.frame): picture.values for picture in chosen}
        check_alike([[values[s.file, s.frame] for s in place] for place in stack.places])
        check_shape((len(stack.grid_mm), *slices[0].shape_HW))
        flags += stack.flags + check_affine(stack.affine)
        if Flag.GANTRY_TILT not in flags and any(_names_tilt(picture) for picture in chosen):
            flags += (Flag.TILT_UNCONFIRMED,)
        hu_DHW, pixel_flags = read_stack(stack, chosen)
        if any(left.reason not in NO_PICTURES for left in skipped.values()):
            flags += (Flag.IMAGES_SKIPPED,)
        if any(_is_lossy(picture) for picture in chosen):
            flags += (Flag.LOSSY,)
        lowest = stack.places[0][0]
        first = min(filter(None, map(acquired, values.values())), default=None)
        said = acquisition(values[lowest.file, lowest.frame])
        return CTImage(hu_DHW, stack.affine, flags + pixel_flags, said, first)


@contextmanager
def _quiet() -> Iterator[None]:
    """pydicom quotes values of the file in warnings and in its log; they may name the patient."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _find_pictures(path: Path) -> tuple[list[Picture], Skipped]:
    """The CT slices among the source files, pixels left in the file, and what was left out."""
    reader, found, skipped = HeaderReader(), [], {}
    for file in source_files(path):
        series_uid = ""
        try:
            with declared_damage():
                header = reader.read(file)
                series_uid = text(header.values, "SeriesInstanceUID")
                kept, reason = pictures(header)
            found += kept
        except BadStudy as refusal:
            reason = refusal.code
        if reason is not None:
            skipped[file] = LeftOut(reason, series_uid)
    return found, skipped


def _choose(
    found: list[Picture], skipped: Skipped, path: Path, reading: Reading, wanted: Wanted
) -> tuple[list[Picture], tuple[Flag, ...]]:
    """Pictures of one phase of the series: that of the file `path`, or of the folder's best series."""
    damaged = [left.reason for left in skipped.values() if left.reason in DAMAGED]
    if damaged and path.is_dir():
        raise BadStudy(damaged[0], "a damaged DICOM file among the slices; nothing says that it is not one of them")
    if not found:
        _refuse_without_pictures(skipped)
    series = defaultdict(list)
    for picture in found:
        series[text(picture.values, "SeriesInstanceUID")].append(picture)
    if path.is_file():
        own = next((picture for picture in found if picture.header.file == path), None)
        if own is None:
            raise BadStudy(skipped[path].reason, "the file itself is not a slice of a CT series")
        uid = text(own.values, "SeriesInstanceUID")
        series, wanted = {uid: series[uid]}, replace(wanted, series_uid=wanted.series_uid or uid)
    values = {uid: [picture.values for picture in members] for uid, members in series.items()}
    uid, flags = choose_series(values, reading, wanted)
    check_identity(values[uid], wanted)
    _check_none_left_out(skipped, uid)
    check_concatenations(series[uid])
    members, phase_flags = one_phase(series[uid], reading.phase, path)
    return members, flags + phase_flags


def _check_none_left_out(skipped: Skipped, uid: str) -> None:
    """BadStudy where a picture of the series itself was left out, other than a localizer: it may be its last slice."""
    for left in skipped.values():
        is_slice = left.reason not in (Reason.LOCALIZER, *(() if uid else NO_PICTURES))
        if left.series_uid == uid and is_slice:
            raise BadStudy(left.reason, "a picture of the series itself, which cannot be one of its slices")


def _refuse_without_pictures(skipped: Skipped) -> None:
    """BadStudy with the commonest reason among the DICOM images; a study of reports alone is NOT_IMAGE."""
    counts = Counter(left.reason for left in skipped.values())
    for others in (NO_PICTURES, (Reason.NOT_DICOM,), ()):
        left = {reason: count for reason, count in counts.items() if reason not in others}
        if left:
            reason = max(sorted(left), key=left.get)
            raise BadStudy(reason, f"no slice of a CT series among {len(skipped)} files")
    raise BadStudy(Reason.NOT_DICOM, "an empty folder")


def _is_lossy(picture: Picture) -> bool:
    return picture.header.syntax in LOSSY or text(picture.values, "LossyImageCompression") == "01"


def _names_tilt(picture: Picture) -> bool:
    try:
        return abs(numbers(picture.values, "GantryDetectorTilt", 1, Reason.BAD_AFFINE)[0]) > TILT_DEGREES
    except BadStudy:
        return False
