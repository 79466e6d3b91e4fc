"""Tables studies x codes of a block of studies, and the walk up the ontology for all of them at once (numpy).

    events x studies  --scatter-->  cells: studies x codes  --lift-->  cells: studies x (codes and ancestors)

N studies, C codes (numbers of the run's index). A table of N x C entries is filled by its flat index and only its
non-empty cells are kept. Scattering in the order of the studies stays in the processor's cache: 1-2 ns per event and
column, where hash joins took 200 and sorting takes 50 (benchmarks/labels.py).

What is said of several codes at once is said by groups: the codes of one moment, the ancestors of one code. A group's
columns are computed once and repeated for its codes. `take` gathers in half the time of an index in brackets.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from ehr.timeline import NEVER

# What a study knows of a code, ascending: it has it, before t0 + blackout ends, before t0.
SEEN, HISTORY, FEATURE = 1, 2, 3


@dataclass(frozen=True)
class Cells:
    """Non-empty cells as parallel arrays, ascending by study, then code."""

    row: np.ndarray  # int32, study
    code: np.ndarray  # int32
    first: np.ndarray  # int64 us: earliest event of the risk set; NEVER without one
    level: np.ndarray  # uint8: SEEN, HISTORY or FEATURE
    visit: np.ndarray  # bool: coded in the scan's own visit

    @classmethod
    def of(cls, groups: tuple, size: np.ndarray, code: np.ndarray, num_rows: int, num_codes: int) -> Cells:
        """Of (row, code) pairs in any order: the least `first`, the highest `level`, any `visit` of each.

        groups: their row, first, level and visit. size: codes of each group; code: those of all groups in turn.
        """
        row, first, level, visit = groups
        cell = np.repeat(row.astype(np.int64) * num_codes, size)
        cell += code
        first_NC = np.full(num_rows * num_codes, NEVER)
        level_NC = np.zeros(num_rows * num_codes, np.uint8)
        visit_NC = np.zeros(num_rows * num_codes, bool)
        np.minimum.at(first_NC, cell, np.repeat(first, size))
        np.maximum.at(level_NC, cell, np.repeat(level, size))
        seen = np.flatnonzero(visit)  # few
        visit_NC[cell[slices((np.cumsum(size) - size)[seen], size[seen])]] = True
        full = np.flatnonzero(level_NC != 0)
        row = full // num_codes
        code = (full - row * num_codes).astype(np.int32)
        return cls(row.astype(np.int32), code, first_NC.take(full), level_NC.take(full), visit_NC.take(full))


@dataclass(frozen=True)
class Closure:
    """Ancestors of every code, itself included: those of code c are ancestor[begin[c] : begin[c + 1]]."""

    begin: np.ndarray
    ancestor: np.ndarray

    @classmethod
    def of(cls, pairs: pl.DataFrame, num_codes: int) -> Closure:
        """pairs: code, ancestor; ascending by code."""
        begin = np.searchsorted(pairs["code"].to_numpy(), np.arange(num_codes + 1))
        return cls(begin, pairs["ancestor"].to_numpy().astype(np.int32))

    def lift(self, cells: Cells, num_rows: int) -> Cells:
        """Cells of everything that the codes mean."""
        begin = self.begin[cells.code]
        count = self.begin[cells.code + 1] - begin
        groups = cells.row, cells.first, cells.level, cells.visit
        return Cells.of(groups, count, self.ancestor.take(slices(begin, count)), num_rows, len(self.begin) - 1)


def slices(begin: np.ndarray, count: np.ndarray) -> np.ndarray:
    """begin[0], begin[0] + 1, ... for count[0] numbers, then the same of begin[1], ..."""
    numbers = np.repeat(begin - (np.cumsum(count) - count), count)
    numbers += np.arange(len(numbers))
    return numbers
