"""Loops over all rows of a file: which dates are placeholders, such as 1900-01-01, and which rows are usable."""

from __future__ import annotations

import numpy as np

from ehr.compiled import compiled
from ehr.timeline import NEVER


@compiled
def any_placeholder(time: np.ndarray, first: int, late: int, spikes: tuple) -> bool:
    """Whether a date may be a placeholder: `usable_rows` without a look at the codes, which takes most of its time."""
    odd = 0  # a sum of int64: see ehr/passes/moments.py
    for event in range(len(time)):
        at = time[event]
        late_one, spike = (at >= late) & (at != NEVER), (at == spikes[0]) | (at == spikes[1])
        odd += np.int64((at <= first) | late_one | spike)  # type: ignore[assignment]
    return odd > 0


@compiled
def usable_rows(
    time: np.ndarray, code: np.ndarray, named: np.ndarray, birth: np.ndarray, first: int, late: int, spikes: tuple
) -> tuple[np.ndarray, int, int]:
    """bool [E], rows with a code and a date that means something; how many have no code, how many no such date.

    time: int64 us, NEVER for static events. named, birth: bool of every code. A date up to `first`, from `late` on or
    at one of the two `spikes` is a placeholder, the last not for a birth.
    """
    usable, uncoded, placeholders = np.empty(len(code), np.bool_), 0, 0
    for event in range(len(code)):
        at, coded = time[event], named[code[event]]
        spike = ((at == spikes[0]) | (at == spikes[1])) & coded & (not birth[code[event]])
        placeholder = (at <= first) | ((at >= late) & (at != NEVER)) | spike
        usable[event] = coded & (not placeholder)
        uncoded += not coded
        placeholders += placeholder
    return usable, uncoded, placeholders
