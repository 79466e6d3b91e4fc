"""One shard read: its subjects' events placed against their studies, block by block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl

from ehr.followup import with_follow_up
from ehr.grid import cut, earliest, flags
from ehr.sources.meds import MedsSource
from ehr.timeline import last_moment, side_of_scan, with_intervals


@dataclass(frozen=True)
class Shard:
    """Subjects that are labelled together, and every file that holds one of them."""

    files: tuple[str, ...]
    studies: pl.DataFrame  # study (row number), subject_id, index, index_last (us), train (bool)


@dataclass(frozen=True)
class Rules:
    """What every shard needs to know. Plain data: travels to workers. Codes are numbers of `names`."""

    source: MedsSource
    names: pl.DataFrame  # name, code: all codes in string order
    closure: pl.DataFrame  # code, ancestor: self included
    birth: int
    death: int
    sexes: pl.DataFrame  # code, sex
    admissions: pl.Series
    discharges: pl.Series
    blackout_us: int
    fixed_end_us: int | None
    incident: bool
    phenotypes: pl.DataFrame  # phenotypes.rule_table


@dataclass(frozen=True)
class Block:
    """Some subjects' studies (N, ordered by subject) and their events as parallel arrays of (event, study) pairs."""

    studies: pl.DataFrame
    codes_L: np.ndarray  # code numbers that occur, ascending
    having: np.ndarray  # bool [L, subjects]: any event, timed or static
    code: np.ndarray  # position in codes_L
    row: np.ndarray  # study
    start: np.ndarray  # us
    risk: np.ndarray  # in the study's risk set
    history: np.ndarray
    feature: np.ndarray
    last: np.ndarray  # us, last moment of the event

    def flags(self, mask: np.ndarray) -> np.ndarray:
        """bool [L, N]"""
        return flags(self.code[mask], self.row[mask], len(self.codes_L), len(self.studies))

    def first(self) -> np.ndarray:
        """int64 [L, N]: first event of the risk set, us."""
        risk, shape = self.risk, (len(self.codes_L), len(self.studies))
        return earliest(self.code[risk], self.row[risk], self.start[risk], *shape)

    def of_visit(self) -> np.ndarray:
        """bool [L, N]: coded in the scan's own visit."""
        begin, end = (self.studies[name].to_numpy()[self.row] for name in ("visit_start", "visit_last"))
        return self.flags((self.last >= begin) & (self.start <= end))


def timelines(shard: Shard, rules: Rules) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Events (subject, code, start, end; null times when static) and the studies with their follow-up.

    `subject` numbers the shard's subjects; the studies are ordered by it.
    """
    studies = shard.studies.sort("subject_id", "study")
    ids = studies["subject_id"].unique().sort()
    numbers = pl.DataFrame({"subject_id": ids, "subject": np.arange(len(ids), dtype=np.uint32)})
    read = with_intervals(rules.source.read(list(shard.files), ids).lazy(), rules.source.date_only)
    events = read.join(rules.names.lazy(), left_on="code", right_on="name").join(numbers.lazy(), on="subject_id")
    events = events.select("subject", "start", "end", code="code_right").collect()
    studies = studies.join(numbers, on="subject_id", maintain_order="left").drop("subject_id")
    timed = events.filter(pl.col("start").is_not_null())
    return events, with_follow_up(studies, timed, rules.death, rules.fixed_end_us, rules.blackout_us)


def blocks(events: pl.DataFrame, studies: pl.DataFrame, rules: Rules) -> Iterator[Block]:
    """All studies, in blocks of whole subjects that fit into dense tables."""
    place = np.zeros(len(rules.names), np.int32)
    for part in cut(studies, len(rules.closure)):
        subjects = part["subject"].unique(maintain_order=True)
        mine = events.filter(pl.col("subject").is_in(subjects.implode()))
        codes_L = mine["code"].unique().sort().to_numpy()
        place[codes_L] = np.arange(len(codes_L))
        column = np.searchsorted(subjects.to_numpy(), mine["subject"].to_numpy())
        having = flags(place[mine["code"].to_numpy()], column, len(codes_L), len(subjects))
        timed = mine.filter(pl.col("start").is_not_null())
        pairs = timed.join(part.with_row_index("row").select("row", "subject"), on="subject")
        yield _block(part, codes_L, having, place[pairs["code"].to_numpy()], pairs, rules.blackout_us)


def _block(
    studies: pl.DataFrame, codes_L: np.ndarray, having: np.ndarray, code: np.ndarray, pairs: pl.DataFrame, b_us: int
) -> Block:
    row, start, end = (pairs[name].to_numpy() for name in ("row", "start", "end"))
    index, index_last, followed = (studies[name].to_numpy()[row] for name in ("index", "index_last", "followed"))
    censor = studies["censor"].fill_null(0).to_numpy()[row]  # null: not followed
    side = side_of_scan(start, end, index, index_last, b_us)
    risk = side.after & (start <= censor) & followed
    last = last_moment(start, end)
    return Block(studies, codes_L, having, code, row, start, risk, ~side.after, side.feature, last)
