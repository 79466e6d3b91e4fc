"""Whether the slices of a stack were made alike: two scans under one series UID make no volume. No pixels here."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import date
from itertools import pairwise

import numpy as np

from ttepretrain.errors import BadStudy
from ttepretrain.volume.checks import Reason
from ttepretrain.volume.series import EVEN_MM
from ttepretrain.volume.tags import Values, numbers, text

REGIONAL = ("ConvolutionKernel", "KVP", "AcquisitionDate")  # may change along the stack, as SliceThickness may

Labels = list[set]  # of each place, what its pictures say; reconstructions at one place are compared by their pixels


def check_alike(places: Sequence[Sequence[Values]]) -> None:
    """BadStudy where the pictures, at their places in order along the stack, come of several scans.

    A A A B B B B  regions of a protocol, midnight: passes       A B A A B A B  two scans: refused
    """
    if len(set().union(*_said(places, "Manufacturer")) - {""}) > 1:
        raise BadStudy(Reason.MIXED_GEOMETRY, "slices of two manufacturers in one series")
    labels = {keyword: _said(places, keyword) for keyword in REGIONAL} | {"SliceThickness": _thicknesses(places)}
    if _days_between(set().union(*labels["AcquisitionDate"])) > 1:
        raise BadStudy(Reason.MIXED_GEOMETRY, "slices of several days in one series")
    for keyword, of_place in labels.items():
        changes = sum(one != other for one, other in pairwise(of_place))
        if changes >= len(set(map(frozenset, of_place))):
            raise BadStudy(Reason.MIXED_GEOMETRY, f"slices of different {keyword} lie between each other")


def _said(places: Sequence[Sequence[Values]], keyword: str) -> Labels:
    return [{text(values, keyword).upper() for values in place} for place in places]


def _thicknesses(places: Sequence[Sequence[Values]]) -> Labels:
    """Thicknesses that differ by less than rounding does have one label."""
    mm = [[_thickness_mm(values) for values in place] for place in places]
    known = np.unique(np.concatenate(mm))
    label = dict(zip(known, np.cumsum(np.diff(known, prepend=known[0]) > EVEN_MM)))
    return [{label[thickness] for thickness in place} for place in mm]


def _thickness_mm(values: Values) -> float:
    try:
        return numbers(values, "SliceThickness", 1, Reason.BAD_SPACING)[0]
    except BadStudy:
        return -1.0  # not said


def _days_between(dates: set[str]) -> int:
    days = []
    for said in dates:
        with suppress(ValueError):
            days.append(date.fromisoformat(said).toordinal())
    return max(days, default=0) - min(days, default=0)
