"""Whether the slices of a stack come from one scan: two scans under one series UID are no volume. No pixels here."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from functools import partial
from itertools import groupby

import numpy as np

from ttepretrain.errors import BadStudy
from ttepretrain.volume.checks import Flag, Reason
from ttepretrain.volume.dicom.contrast import has_contrast
from ttepretrain.volume.dicom.stack import EVEN_MM, RUN_GAPS
from ttepretrain.volume.dicom.tags import Values, numbers, text, texts, vendor
from ttepretrain.volume.dicom.times import HALF_A_DAY, acquisition_day, acquisition_time, midnight_between

THICKNESS_FRACTION = 0.1  # thicknesses that differ by less are equal
MINUTES_APART = 60  # times that differ by more belong to two scans
RETURNS = 3  # to a value after a few slices of another; one or two may come from a missing value

# In order along the stack; duplicates at one place are compared later, by their pixels.
Places = Sequence[Sequence[Values]]
Labels = list[frozenset]  # of each place, the values of its pictures; empty if none is stated


def check_alike(places: Places) -> tuple[Flag, ...]:
    """Flags of pictures that come from one scan; BadStudy if they come from several.

    A A A A B B B B A A A A  regions of a protocol: flagged        A B A A B A B  two interleaved scans: refused
    A missing value is taken from the neighbour.
    """
    if len({vendor(values) for place in places for values in place} - {""}) > 1:
        raise BadStudy(Reason.MIXED_GEOMETRY, "slices of two manufacturers in one series")
    if _days_between({acquisition_day(values) for place in places for values in place}) > 1:
        raise BadStudy(Reason.MIXED_GEOMETRY, "slices of several days in one series")
    protocol, occasion = list(_protocol(places)), list(_occasion(places))
    thickness = _clusters(_positive(places, "SliceThickness"), EVEN_MM, THICKNESS_FRACTION)
    for keyword, labels in [*protocol, ("SliceThickness", thickness)]:
        if any(length < RUN_GAPS for _, length in _stretches(labels)[1:-1]):
            raise _mixed(keyword)
    for keyword, labels in [*occasion, *_numbering(places)]:
        if _returns(_stretches(labels)) >= RETURNS:
            raise _mixed(keyword)
    changes = any(len(_stretches(labels)) > 1 for _, labels in [*protocol, *occasion])
    flags = (Flag.MIXED_PROTOCOL,) if changes else ()
    return (*flags, Flag.RESCALE_VARIES) if _rescale_varies(places) else flags


def _mixed(keyword: str) -> BadStudy:
    return BadStudy(Reason.MIXED_GEOMETRY, f"interleaved slices of different {keyword}")


def _protocol(places: Places) -> Iterator[tuple[str, Labels]]:
    yield "ConvolutionKernel", _labels(places, lambda values: text(values, "ConvolutionKernel").upper())
    yield "KVP", _clusters(_positive(places, "KVP"), EVEN_MM)


def _occasion(places: Places) -> Iterator[tuple[str, Labels]]:
    """Values that a scan shares, but that may be missing or odd in one of its slices."""
    for n in range(3):
        yield "ImageType", _labels(places, partial(_image_type, n))
    yield "ContrastBolusAgent", _labels(places, _contrast)
    yield "AcquisitionTime", _clusters(_minutes(places), MINUTES_APART)


def _contrast(values: Values) -> str:
    """What is not stated is no contrast; a placeholder states nothing."""
    if has_contrast(values) is None and text(values, "ContrastBolusAgent"):
        return ""
    return "named" if has_contrast(values) else "none"


def _image_type(n: int, values: Values) -> str:
    return "".join(texts(values, "ImageType")[n : n + 1])


def _numbering(places: Places) -> Iterator[tuple[str, Labels]]:
    """Values that may change from one slice of a scan to the next, but do not alternate."""
    yield "AcquisitionNumber", _labels(places, lambda values: text(values, "AcquisitionNumber"))
    storages = defaultdict(list)
    for place in places:
        here = defaultdict(list)
        for values in place:
            # the intercept may change with the slope or the sign
            here[text(values, "RescaleSlope"), text(values, "PixelRepresentation")].append(values)
        for storage, pictures in here.items():
            storages[storage].append(pictures)
    for alike in storages.values():
        yield "RescaleIntercept", _clusters(_measured(alike, "RescaleIntercept"), 0.0)


def _labels(places: Places, said: Callable[[Values], str]) -> Labels:
    return [frozenset({said(values) for values in place} - {""}) for place in places]


def _measured(places: Places, keyword: str) -> list[list[float]]:
    """The numbers stated at each place."""
    return [[number for values in place for number in _number(values, keyword)] for place in places]


def _positive(places: Places, keyword: str) -> list[list[float]]:
    """The same without zeros, which stand for removed values."""
    return [[number for number in place if number > 0] for place in _measured(places, keyword)]


def _rescale_varies(places: Places) -> bool:
    """Whether slope or intercept change among pictures of the same sign."""
    scales = {
        (text(values, "PixelRepresentation"), *_number(values, "RescaleSlope"), *_number(values, "RescaleIntercept"))
        for place in places
        for values in place
    }
    return len(scales) > len({sign for sign, *_ in scales})


def _clusters(numbers: list[list[float]], slack: float, fraction: float = 0.0) -> Labels:
    """One label for numbers that are no further apart than the slack, or than that fraction of them."""
    known = np.unique([number for place in numbers for number in place])
    apart = np.diff(known, prepend=known[:1]) > np.maximum(slack, fraction * known)
    label = dict(zip(known, np.cumsum(apart)))
    return [frozenset(label[number] for number in place) for place in numbers]


def _number(values: Values, keyword: str) -> list[float]:
    try:
        return numbers(values, keyword, 1, Reason.BAD_SPACING)
    except BadStudy:
        return []  # not stated


def _minutes(places: Places) -> list[list[float]]:
    """Whole minutes of the acquisition at each place: since a fixed day where all times have a date, else of the day.

    Without dates, times before noon belong to the next day where the times are more than half a day apart.
    """
    times = [[time for values in place if (time := acquisition_time(values)) is not None] for place in places]
    if all(day is not None for place in times for day, _ in place):
        return [[1440 * day.toordinal() + seconds // 60 for day, seconds in place if day] for place in times]
    midnight = midnight_between([60 * (seconds // 60) for place in times for _, seconds in place])
    return [[seconds // 60 + 1440 * (midnight and seconds < HALF_A_DAY) for _, seconds in place] for place in times]


def _stretches(labels: Labels) -> list[tuple[frozenset, int]]:
    """Each label along the stack with its number of adjacent places. Places without a label are left out."""
    return [(label, len(list(places))) for label, places in groupby(filter(None, labels))]


def _returns(stretches: Sequence[tuple[frozenset, int]]) -> int:
    """How often a label returns after one or two others of a few places each: A B A, A B C A."""
    short = [length < RUN_GAPS for _, length in stretches]
    return sum(
        any(stretches[j][0] == label and all(short[i + 1 : j]) for j in (i + 2, i + 3) if j < len(stretches))
        for i, (label, _) in enumerate(stretches)
    )


def _days_between(dates: set[date | None]) -> int:
    days = [day.toordinal() for day in dates if day is not None]
    return max(days, default=0) - min(days, default=0)
