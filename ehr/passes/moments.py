"""The loops over all rows of the files.

Moment: successive events of one subject at one time; a death is a moment of its own, as its time may be read otherwise.
"""

from __future__ import annotations

import numpy as np

from ehr.compiled import compiled
from ehr.schema import DAY_US
from ehr.timeline import NEVER, ends_day

_ends_day = compiled(ends_day)


def find_moments(subject: np.ndarray, time: np.ndarray, code: np.ndarray, death: int) -> tuple[np.ndarray, bool, int]:
    """Place of the first event of each moment; whether a row lies before its predecessor of the same subject, static
    events first; how many rows are equal to their predecessor.

    time: int64 us, NEVER for static events. death: its code, or one that no event has.
    """
    first, backwards, repeated = _find_moments(subject, time, code, death)
    return np.flatnonzero(first), backwards > 0, repeated


# `range` and sums of int64: for these forms of a loop the compiler handles eight rows at once. int64 and int are one
# type to it, and two to mypy.
@compiled
def _find_moments(subject: np.ndarray, time: np.ndarray, code: np.ndarray, death: int) -> tuple[np.ndarray, int, int]:
    first, backwards, repeated = np.ones(len(code), np.bool_), 0, 0
    for event in range(1, len(code)):
        before = event - 1
        same = subject[event] == subject[before]
        together = same & (time[event] == time[before])
        earlier = (time[event] < time[before]) & (time[before] != NEVER) | (time[event] == NEVER)
        backwards += np.int64(same & earlier & (time[event] != time[before]))  # type: ignore[assignment]
        repeated += np.int64(together & (code[event] == code[before]))  # type: ignore[assignment]
        first[event] = (not together) | (code[event] == death) | (code[before] == death)
    return first, backwards, repeated


@compiled
def kinds_of_codes(code: np.ndarray, kind: np.ndarray, rows: np.ndarray, num_codes: int) -> np.ndarray:
    """uint8 [num_codes], the highest kind among the subjects that have each code, 0 without one.

    code: of the events. kind, rows: uint8 kind and number of events of each subject in turn.
    """
    highest, begin = np.zeros(num_codes, np.uint8), 0
    for place in range(len(rows)):
        for event in range(begin, begin + rows[place]):
            highest[code[event]] = max(highest[code[event]], kind[place])
        begin += rows[place]
    return highest


@compiled
def clock_counts(time: np.ndarray) -> tuple[int, int]:
    """How many moments have a time, and how many of these are where `ehr.date_only=day_end` reads a date."""
    timed, ends = 0, 0
    for moment in range(len(time)):
        at = time[moment]
        timed += np.int64(at != NEVER)  # type: ignore[assignment]
        ends += np.int64(_ends_day(at - at // DAY_US * DAY_US))  # type: ignore[assignment]
    return timed, ends


def looked_up(table: np.ndarray, places: np.ndarray) -> np.ndarray:
    """table[places]; numpy would make 8 bytes of every place first."""
    return _looked_up(table, places, np.empty(len(places), table.dtype))


@compiled
def _looked_up(table: np.ndarray, places: np.ndarray, found: np.ndarray) -> np.ndarray:
    for n in range(len(places)):
        found[n] = table[places[n]]
    return found
