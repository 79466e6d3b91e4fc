"""The arrays that the passes hand on: for each study, the codes of its record and their ancestors, and when."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import polars as pl

# State of a code in a study, as bits: present at all; not after t0 + blackout; at or before t0; coded in the scan's own
# visit; with an event in the risk set.
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
    """The N studies of a shard, grouped by subject; int64, times in us."""

    subject: np.ndarray  # place in Events.begin
    index: np.ndarray  # type: ignore[assignment]  # hides tuple.index, which nobody calls
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
    """Codes of the followed studies, ascending by study and code, without those that are SEEN and no more."""

    # int64 [N], cells of each study
    count: np.ndarray  # type: ignore[assignment]  # hides tuple.count, which nobody calls
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
