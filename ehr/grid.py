"""Tables codes x rows of a block of subjects, and the walk up the ontology for all of them at once (numpy).

N rows (studies or subjects), L codes that occur in the block, A codes or tasks that they mean. A block is small enough
for dense tables; hash joins over (row, code) pairs took ten times as long.

    first_LN   earliest event of the risk set (us), NEVER without one        --lift-->   first_AN
    flag_LN    whether any event of the code has the flag                    --lift-->   flag_AN
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl

NEVER = np.iinfo(np.int64).max
MAX_CELLS = 16_000_000  # entries of the largest temporary: 128 MB of int64


@dataclass(frozen=True)
class Lift:
    """From L codes to the A targets (ancestors or tasks) that they mean."""

    source: np.ndarray  # position among the L codes, one per pair, grouped by target
    begin: np.ndarray  # first pair of every target
    target: np.ndarray  # [A], ascending

    @classmethod
    def of(cls, codes_L: np.ndarray, pairs: pl.DataFrame, target: str) -> Lift:
        """codes_L ascending; pairs: code and the target column."""
        code, meaning = pairs["code"].to_numpy(), pairs[target].to_numpy()
        place = np.minimum(np.searchsorted(codes_L, code), max(len(codes_L) - 1, 0))
        here = codes_L[place] == code if len(codes_L) else np.zeros(len(code), bool)
        order = np.argsort(meaning[here], kind="stable")
        targets, begin = np.unique(meaning[here][order], return_index=True)
        return cls(place[here][order], begin, targets)

    def any(self, flag_LN: np.ndarray) -> np.ndarray:
        return np.logical_or.reduceat(flag_LN[self.source], self.begin, axis=0)

    def earliest(self, first_LN: np.ndarray) -> np.ndarray:
        return np.minimum.reduceat(first_LN[self.source], self.begin, axis=0)


def flags(code: np.ndarray, row: np.ndarray, num_codes: int, num_rows: int) -> np.ndarray:
    """bool [L, N], true where a (code position, row) pair is given."""
    table = np.zeros((num_codes, num_rows), bool)
    table[code, row] = True
    return table


def earliest(code: np.ndarray, row: np.ndarray, time: np.ndarray, num_codes: int, num_rows: int) -> np.ndarray:
    """int64 [L, N]: least time of each (code position, row) pair, NEVER where none is given."""
    table = np.full(num_codes * num_rows, NEVER)
    np.minimum.at(table, code.astype(np.int64) * num_rows + row, time)
    return table.reshape(num_codes, num_rows)


def cut(studies: pl.DataFrame, num_pairs: int) -> Iterator[pl.DataFrame]:
    """The studies (ordered by subject), cut between subjects so that tables of num_pairs x N stay below MAX_CELLS."""
    most = max(1, MAX_CELLS // max(num_pairs, 1))
    subject = studies["subject"].to_numpy().astype(np.int64)
    # the first study of each subject, and the end
    cuts = np.append(np.flatnonzero(np.diff(subject, prepend=-1)), len(subject))
    begin = 0
    while begin < len(subject):
        within = cuts[(cuts > begin) & (cuts <= begin + most)]
        end = within[-1] if len(within) else cuts[cuts > begin][0]  # a single subject may exceed the bound
        yield studies[begin : int(end)]
        begin = int(end)
