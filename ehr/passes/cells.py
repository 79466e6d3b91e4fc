"""What each study knows of each code and of each ancestor, as arrays."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import polars as pl

# Bits of what a study knows of a code: it has it; before t0 + blackout ends; before t0; coded in the scan's own visit;
# an event in the risk set.
SEEN, HISTORY, FEATURE, VISIT, TIMED = 1, 2, 4, 8, 16


def code_type(num_codes: int) -> type:
    """Of the numbers of that many codes: half of the bytes where they fit."""
    return np.uint16 if num_codes <= 1 << 16 else np.int32


class Events(NamedTuple):
    """Of S subjects, in M moments (shard.Timelines)."""

    begin: np.ndarray  # [S + 1]
    start: np.ndarray  # int64 [M] us
    end: np.ndarray
    first: np.ndarray  # [M + 1]
    code: np.ndarray  # int32


class Scans(NamedTuple):
    """The N studies of a shard, those of a subject beside each other; int64, times in us."""

    subject: np.ndarray  # place in Events.begin
    index: np.ndarray
    index_last: np.ndarray
    risk_last: np.ndarray  # end of follow-up; before everything where there is none
    visit_start: np.ndarray
    visit_last: np.ndarray
    followed: np.ndarray  # bool
    train: np.ndarray  # bool


class Closure(NamedTuple):
    """Ancestors of every code, itself included: those of code c are ancestor[begin[c] : begin[c + 1]]."""

    begin: np.ndarray  # int64 [C + 1]
    ancestor: np.ndarray  # int32

    @classmethod
    def of(cls, pairs: pl.DataFrame, num_codes: int) -> Closure:
        """pairs: code, ancestor; ascending by code."""
        begin = np.searchsorted(pairs["code"].to_numpy(), np.arange(num_codes + 1))
        return cls(begin, pairs["ancestor"].to_numpy().astype(np.int32))


class Counts(NamedTuple):
    """Of a shard's train subjects, int64 [C]."""

    subjects: np.ndarray  # with the code or a descendant at any time, static events included
    events: np.ndarray  # studies with an event in the risk set
    patients: np.ndarray  # subjects with such a study
    lost_us: np.ndarray  # of the follow-up, not at risk of the code: after its event, or for its history (incident)


class Cells(NamedTuple):
    """What the followed studies know, ascending by study and code; what is seen alone says nothing and is left out."""

    count: np.ndarray  # int64 [N], cells of each study
    timed: np.ndarray  # int64 [N], of them TIMED
    code: np.ndarray  # code_type
    state: np.ndarray  # uint8, bits
    days: np.ndarray  # float64, T of the first event in the risk set, of the TIMED cells alone


class Rows(NamedTuple):
    """Lists of the N studies, flat; int64 [4, N]: how long each one's are, in this order."""

    length: np.ndarray
    event: np.ndarray  # int32, tasks, ascending in every study
    history: np.ndarray
    visit: np.ndarray
    past: np.ndarray  # code_type, codes
    event_days: np.ndarray  # as long as `event`
