"""One phase of a series that passes its positions several times: contrast phases, repeats, 4D.

position  1 2 3 4 5 | 1 2 3 4 5        one tag with one value on the left and another on the right: two phases
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from ttepretrain.volume.checks import Flag, Reason
from ttepretrain.volume.frames import Picture
from ttepretrain.volume.tags import numbers, text

# The first that tells all phases apart counts. Times are numbers, too: HHMMSS.
TAGS_OF_PHASES = (
    "TemporalPositionIndex",
    "TemporalPositionIdentifier",
    "AcquisitionNumber",
    "AcquisitionTime",
    "ContentTime",
)


def one_phase(pictures: Sequence[Picture], which: str) -> tuple[list[Picture], tuple[Flag, ...]]:
    """The pictures of the `first` or `last` phase; all of them where there is one, or `which` is `refuse`.

    Phases are told apart only where each of them has one picture at every position of the series. What stays
    together, two pictures at a position, is for the stack to refuse.
    """
    positions = (numbers(picture.values, "ImagePositionPatient", 3, Reason.BAD_AFFINE) for picture in pictures)
    places = [tuple(round(mm, 2) for mm in position) for position in positions]
    if which == "refuse" or len(set(places)) == len(places):
        return list(pictures), ()
    for keyword in TAGS_OF_PHASES:
        members = defaultdict(list)
        for number, picture in enumerate(pictures):
            members[_value(picture, keyword)].append(number)
        complete = all({places[n] for n in phase} == set(places) for phase in members.values())
        if complete and len(members) * len(set(places)) == len(places) and math.nan not in members:
            chosen = min(members) if which == "first" else max(members)
            return [pictures[n] for n in members[chosen]], (Flag.OTHER_PHASES,)
    return list(pictures), ()


def _value(picture: Picture, keyword: str) -> float:
    """NaN, the same object each time, where the picture has no such number."""
    try:
        value = float(text(picture.values, keyword))
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan
