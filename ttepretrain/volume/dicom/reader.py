"""Read one CT series from DICOM files, in HU. pydicom parses; this module decides what is a CT.

files -> headers -> pictures -> one series, one phase -> an ordered stack -> pixels
"""

from __future__ import annotations

import logging
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ttepretrain.errors import BadStudy
from ttepretrain.volume.checks import Flag, Reason, check_affine, check_shape
from ttepretrain.volume.dicom.choice import DEFAULT_READING, WHATEVER, Reading, Wanted, check_identity, choose_series
from ttepretrain.volume.dicom.coding.syntaxes import LOSSY
from ttepretrain.volume.dicom.completeness import (
    NO_PICTURES,
    LeftOut,
    Skipped,
    check_none_left_out,
    check_none_lost,
    lost_slices,
    refuse_lost,
    refuse_without_pictures,
)
from ttepretrain.volume.dicom.contrast import has_contrast
from ttepretrain.volume.dicom.frames import Picture, check_concatenations, pictures, sop_classes
from ttepretrain.volume.dicom.headers import HeaderReader, declared_damage
from ttepretrain.volume.dicom.mixed_scans import check_alike
from ttepretrain.volume.dicom.phases import one_phase
from ttepretrain.volume.dicom.pixels import read_stack
from ttepretrain.volume.dicom.stack import arrange
from ttepretrain.volume.dicom.tags import acquisition, is_derived, numbers, slice_header, text
from ttepretrain.volume.dicom.times import acquired
from ttepretrain.volume.image import CTImage
from ttepretrain.volume.source import source_files

TILT_DEGREES = 0.5


def read_dicom(
    path: Path,
    reading: Reading = DEFAULT_READING,
    wanted: Wanted = WHATEVER,
    files: Sequence[Path] | None = None,
) -> CTImage:
    """The CT series in a folder, or the one that a file belongs to, in HU. BadStudy if there is none.

    `files`: source_files(path), where they are known.
    """
    with _quiet():
        found, skipped = _find_pictures(source_files(path) if files is None else files)
        chosen, flags = _choose(found, skipped, path, reading, wanted)
        slices = [slice_header(picture.header.file, picture.frame, picture.values) for picture in chosen]
        stack = arrange(slices, reading.max_gap_mm)
        values = {(picture.header.file, picture.frame): picture.values for picture in chosen}
        flags += check_alike([[values[s.file, s.frame] for s in place] for place in stack.places])
        check_shape((len(stack.grid_mm), *slices[0].shape_HW))
        flags += stack.flags + check_affine(stack.affine)
        if Flag.GANTRY_TILT not in flags and any(_names_tilt(picture) for picture in chosen):
            flags += (Flag.TILT_UNCONFIRMED,)
        hu_DHW, pixel_flags = read_stack(stack, chosen)
        if any(left.reason not in NO_PICTURES for left in skipped.values()):
            flags += (Flag.IMAGES_SKIPPED,)
        if any(_is_lossy(picture) for picture in chosen):
            flags += (Flag.LOSSY,)
        if any(is_derived(picture.values) for picture in chosen):
            flags += (Flag.DERIVED,)
        lowest = stack.places[0][0]
        first = min(filter(None, map(acquired, values.values())), default=None)
        shown = values[lowest.file, lowest.frame]
        said = acquisition(shown) | {"contrast": has_contrast(shown)}
        return CTImage(hu_DHW, stack.affine, flags + pixel_flags, said, first)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence pydicom: its warnings and its log quote values of the file, which may name the patient."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _find_pictures(files: Sequence[Path]) -> tuple[list[Picture], dict[Path, LeftOut]]:
    """The CT slices among the source files, without their pixels, and the files that were left out."""
    reader, found, skipped = HeaderReader(), [], {}
    for file in files:
        said: tuple[str, frozenset[str]] = "", frozenset()
        try:
            with declared_damage():
                header = reader.read(file)
                said = text(header.values, "SeriesInstanceUID"), sop_classes(header)
                kept, reason = pictures(header)
            found += kept
        except BadStudy as refusal:
            reason = Reason(refusal.code)
        if reason is not None:
            skipped[file] = LeftOut(reason, *said)
    return found, skipped


def _choose(
    found: list[Picture], skipped: Skipped, path: Path, reading: Reading, wanted: Wanted
) -> tuple[list[Picture], tuple[Flag, ...]]:
    """Pictures of one phase of the series: the series of the file `path`, or the best one of the folder."""
    series: dict[str, list[Picture]] = defaultdict(list)
    for picture in found:
        series[text(picture.values, "SeriesInstanceUID")].append(picture)
    lost = lost_slices(found, skipped)
    if path.is_file():
        own = next((picture for picture in found if picture.header.file == path), None)
        if own is None:
            raise BadStudy(skipped[path].reason, "the file itself is not a slice of a CT series")
        uid = text(own.values, "SeriesInstanceUID")
        series, wanted = {uid: series[uid]}, replace(wanted, series_uid=wanted.series_uid or uid)
    values = {uid: [picture.values for picture in members] for uid, members in series.items()}
    if not found or wanted.series_uid not in (None, *series):  # the requested series may be the lost one
        refuse_lost(lost)
    if not found:
        refuse_without_pictures(skipped)
    uid, flags = choose_series(values, reading, wanted)
    flags = check_none_lost(uid, found, lost, path) + flags
    check_identity(values[uid], wanted)
    flags += check_none_left_out(series[uid], skipped)
    check_concatenations(series[uid])
    members, phase_flags = one_phase(series[uid], reading.phase, path)
    return members, flags + phase_flags


def _is_lossy(picture: Picture) -> bool:
    return picture.header.syntax in LOSSY or text(picture.values, "LossyImageCompression") == "01"


def _names_tilt(picture: Picture) -> bool:
    try:
        return abs(numbers(picture.values, "GantryDetectorTilt", 1, Reason.BAD_AFFINE)[0]) > TILT_DEGREES
    except BadStudy:
        return False
