"""One phase of a series that covers its positions several times: contrast phases, repeats, 4D.

position  1 2 3 4 5 | 1 2 3 4 5        a tag with one value on the left and another on the right: two phases
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from ttepretrain.volume.checks import Flag, Reason
from ttepretrain.volume.dicom.frames import Picture
from ttepretrain.volume.dicom.tags import numbers, text, texts
from ttepretrain.volume.dicom.times import day_of, midnight_between, moments, seconds_of

# The first that distinguishes all phases is used: what a standard says for it, then the number and time of acquisition.
TAGS_OF_PHASES = (
    "TemporalPositionIndex",
    "TemporalPositionIdentifier",
    "TemporalPositionTimeOffset",
    "NominalPercentageOfCardiacPhase",
    "NominalCardiacTriggerDelayTime",
    "ActualCardiacTriggerDelayTime",
    "TriggerTime",
    "NominalPercentageOfRespiratoryPhase",
    "NominalRespiratoryTriggerDelayTime",
    "AcquisitionNumber",
    "FrameAcquisitionNumber",
    "FrameAcquisitionDateTime",
    "AcquisitionDateTime",
    "AcquisitionTime",
    "ContentTime",
    "StackID",
)
DATES = {"AcquisitionTime": "AcquisitionDate", "ContentTime": "ContentDate"}


def one_phase(pictures: Sequence[Picture], which: str, source: Path) -> tuple[list[Picture], tuple[Flag, ...]]:
    """The pictures of the `first` or `last` phase; if `source` is a file, of the phases in that file.

    A file that has every position once is read by itself, even where no tag separates it from the others. All pictures
    if there is one phase, or if `which` is `refuse`. Phases are separated only if each of them has one
    picture at every position of the series, reconstructed in the same way. Otherwise two pictures share a position,
    which the stack refuses.
    """
    spots = [_spot(picture) for picture in pictures]
    every = set(spots)
    positions = {spot[:3] for spot in spots}
    if which == "refuse" or len(positions) == len(spots):
        return list(pictures), ()
    for keyword in TAGS_OF_PHASES if len(every) < len(spots) else ():
        said = _values(pictures, keyword)
        members = defaultdict(list)
        for number, value in enumerate(said):
            if value is not None:
                members[value].append(number)
        if None in said or len(members) * len(every) != len(spots):
            continue
        if all({spots[n] for n in phase} == every for phase in members.values()):
            own = {value for value, phase in members.items() if any(pictures[n].header.file == source for n in phase)}
            chosen = (min if which == "first" else max)(own or members)
            return [pictures[n] for n in members[chosen]], (Flag.OTHER_PHASES,)
    whole = [n for n, picture in enumerate(pictures) if picture.header.file == source]
    covered = {spots[n][:3] for n in whole}
    if len(covered) == len(whole) > 1 and covered == positions:
        return [pictures[n] for n in whole], (Flag.OTHER_PHASES,)
    return list(pictures), ()


def _spot(picture: Picture) -> tuple:
    """Position in .01 mm, kernel and image type: two reconstructions of one acquisition are not two phases."""
    position = numbers(picture.values, "ImagePositionPatient", 3, Reason.BAD_AFFINE)
    made = (tuple(texts(picture.values, keyword)) for keyword in ("ConvolutionKernel", "ImageType"))
    return (*(round(mm, 2) for mm in position), *made)


def _values(pictures: Sequence[Picture], keyword: str) -> list[tuple[int, float] | None]:
    """(day, number) of each picture, which sort by time. None if it has no number, or if midnight may hide the order.

    A time is a number of seconds. The day is 0 for numbers that are not times, and for all pictures if one of them has
    no date.
    """
    said = [text(picture.values, keyword) for picture in pictures]
    if keyword == "StackID":
        order = {label: rank for rank, label in enumerate(sorted(set(said) - {""}))}  # may be any text
        return [(0, order[label]) if label else None for label in said]
    if keyword.endswith("DateTime"):
        stated = [next(moments(picture.values, ((keyword,),)), None) for picture in pictures]
        return [(m.day.toordinal(), m.seconds) if m and m.day and m.seconds is not None else None for m in stated]
    if keyword not in DATES:
        return [None if number is None else (0, number) for number in map(_number, said)]
    dates = [day_of(text(picture.values, DATES[keyword])) for picture in pictures]
    days = [day.toordinal() for day in dates if day is not None]
    if len(days) < len(dates):
        days = [0] * len(dates)
    times = list(map(seconds_of, said))
    known = [seconds for seconds in times if seconds is not None]
    if len(set(days)) == 1 and midnight_between(known):
        return [None] * len(times)
    return [None if seconds is None else (day, seconds) for day, seconds in zip(days, times)]


def _number(said: str) -> float | None:
    try:
        value = float(said)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
