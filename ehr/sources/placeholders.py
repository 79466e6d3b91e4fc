"""Loops over all rows of a file: which dates are placeholders, such as 1900-01-01, and which rows are usable."""

from __future__ import annotations

import numpy as np

from ehr.compiled import compiled
from ehr.schema import DAY_US
from ehr.timeline import NEVER, ends_day

_ends_day = compiled(ends_day)


@compiled
def any_placeholder(time: np.ndarray, first: int, late: int, days: tuple) -> bool:
    """Whether a date may be a placeholder: `usable_rows` without a look at the codes, which takes most of its time."""
    odd = 0  # a sum of int64: see ehr/passes/moments.py
    for event in range(len(time)):
        at = time[event]
        late_one = (at >= late) & (at != NEVER)
        on_day = ((at >= days[0]) & (at < days[0] + DAY_US)) | ((at >= days[1]) & (at < days[1] + DAY_US))
        odd += np.int64((at < first) | late_one | on_day)  # type: ignore[assignment]
    return odd > 0


@compiled
def usable_rows(
    time: np.ndarray,
    code: np.ndarray,
    named: np.ndarray,
    birth: np.ndarray,
    death: np.ndarray,
    first: int,
    late: int,
    days: tuple,
) -> tuple[np.ndarray, np.ndarray, int, int]:
    """bool [E], rows with a code and a date that means something; their times, a death's NEVER where it has no such
    date; how many rows have no code, how many were dropped for their date.

    time: int64 us, NEVER for static events. named, birth, death: bool of every code. A date before `first`, from `late`
    on, or at one of the two `days` and no time of that day is a placeholder, the last not for a birth.
    """
    usable, known, uncoded, placeholders = np.empty(len(code), np.bool_), time.copy(), 0, 0
    for event in range(len(code)):
        at, coded = time[event], named[code[event]]
        placeholder = (at < first) | ((at >= late) & (at != NEVER))
        day = at // DAY_US * DAY_US
        if (day == days[0]) | (day == days[1]):
            bare = (at == day) | _ends_day(at - day)
            placeholder = bare & coded & (not birth[code[event]])
        dead = coded & death[code[event]]
        usable[event] = coded & (dead | (not placeholder))
        uncoded += not coded
        placeholders += placeholder & (not dead)
        if placeholder:
            known[event] = NEVER
    return usable, known, uncoded, placeholders
