"""Whether the slices of a stack were made alike: two scans under one series UID make no volume. No pixels here."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import date
from itertools import groupby

import numpy as np

from ttepretrain.errors import BadStudy
from ttepretrain.volume.checks import Reason
from ttepretrain.volume.series import EVEN_MM, RUN_GAPS
from ttepretrain.volume.tags import Values, numbers, text, vendor

THICKNESS_FRACTION = 0.1  # stated thicknesses that differ less are one

Labels = list[set]  # of each place, what its pictures say; reconstructions at one place are compared by their pixels


def check_alike(places: Sequence[Sequence[Values]]) -> None:
    """BadStudy where the pictures, at their places in order along the stack, come of several scans.

    A A A A B B B B A A A A  regions of a protocol: pass       A B A A B A B  two scans between each other: refused
    What a picture does not say is what its neighbour says.
    """
    if len({vendor(values) for place in places for values in place} - {""}) > 1:
        raise BadStudy(Reason.MIXED_GEOMETRY, "slices of two manufacturers in one series")
    if _days_between({text(values, "AcquisitionDate") for place in places for values in place}) > 1:
        raise BadStudy(Reason.MIXED_GEOMETRY, "slices of several days in one series")
    labels = {
        "ConvolutionKernel": [
            {text(values, "ConvolutionKernel").upper() for values in place} - {""} for place in places
        ],
        "KVP": _measured(places, "KVP", 0.0),
        "SliceThickness": _measured(places, "SliceThickness", THICKNESS_FRACTION),
    }
    for keyword, of_place in labels.items():
        lengths = [len(list(stretch)) for _, stretch in groupby(filter(None, of_place))]
        if any(length < RUN_GAPS for length in lengths[1:-1]):
            raise BadStudy(Reason.MIXED_GEOMETRY, f"slices of different {keyword} lie between each other")


def _measured(places: Sequence[Sequence[Values]], keyword: str, fraction: float) -> Labels:
    """Numbers that differ by less than rounding, or than that share of them, have one label."""
    said = [[_number(values, keyword) for values in place] for place in places]
    known = np.unique([value for place in said for value in place if value is not None])
    apart = np.diff(known, prepend=known[:1]) > np.maximum(EVEN_MM, fraction * known)
    label = dict(zip(known, np.cumsum(apart)))
    return [{label[value] for value in place if value is not None} for place in said]


def _number(values: Values, keyword: str) -> float | None:
    try:
        return numbers(values, keyword, 1, Reason.BAD_SPACING)[0]
    except BadStudy:
        return None  # not said


def _days_between(dates: set[str]) -> int:
    days = []
    for said in dates:
        with suppress(ValueError):
            days.append(date.fromisoformat(said).toordinal())
    return max(days, default=0) - min(days, default=0)
