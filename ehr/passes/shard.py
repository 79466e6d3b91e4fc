"""One shard read: its subjects' timelines, and the rules that their studies are labelled by."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl

from ehr.passes.cells import Closure, Events
from ehr.passes.scratch import read_spool, slices
from ehr.timeline import NEVER, intervals


@dataclass(frozen=True)
class Shard:
    """Subjects that are labelled together."""

    number: int
    events: pl.DataFrame  # Survey.subjects: where the subjects' events are; by spool
    # study (row number), subject_id, index, index_last, period_end (us), train (bool); by subject, then study
    studies: pl.DataFrame


@dataclass(frozen=True)
class Rules:
    """What every shard needs to know. Plain data: travels to workers. Codes are numbers of `names`."""

    scratch: Path
    date_only: str
    names: pl.Series  # all codes in string order
    closure: Closure
    birth: int
    death: int
    sexes: pl.DataFrame  # code, sex
    admissions: pl.Series
    discharges: pl.Series
    blackout_us: int
    fixed_end_us: int | None
    extract_end_us: int  # end of the last day with records; those beyond it are mistakes
    until_last: bool  # an observation period ends with the last event inside it, where that is earlier
    incident: bool
    phenotypes: pl.DataFrame  # phenotypes.rule_table

    @cached_property
    def special(self) -> np.ndarray:
        """bool [C]: codes that a rule names."""
        special = np.zeros(len(self.names), bool)
        special[[self.birth, self.death]] = True
        for codes in (self.sexes["code"], self.admissions, self.discharges, self.phenotypes["code"].drop_nulls()):
            special[codes.to_numpy()] = True
        return special


@dataclass(frozen=True)
class Timelines:
    """Events of a shard's S subjects in M moments (ehr/passes/scratch.py), grouped by subject."""

    begin: np.ndarray  # [S + 1], the first moment of each subject, and the end
    start: np.ndarray  # int64 [M] us; NEVER for static events
    end: np.ndarray
    size: np.ndarray  # int64 [M], events
    code: np.ndarray  # int32, of the events, moment by moment
    until: int  # us, end of the extract

    @cached_property
    def count(self) -> np.ndarray:
        """[S], moments."""
        return np.diff(self.begin)

    @cached_property
    def first(self) -> np.ndarray:
        """[M + 1], the first event of each moment, and the end."""
        return np.append(0, np.cumsum(self.size))

    @property
    def arrays(self) -> Events:
        return Events(self.begin, self.start, self.end, self.first, self.code)

    @cached_property
    def very_last(self) -> np.ndarray:
        """int64 [S] us: the end of each subject's last event; -NEVER without a timed one."""
        return self._latest(NEVER - 1)

    @cached_property
    def last(self) -> np.ndarray:
        """The same of the events within the extract."""
        return self.very_last if (self.very_last <= self.until).all() else self._latest(self.until)

    def _latest(self, until: int) -> np.ndarray:
        return np.maximum.reduceat(np.where(self.end > until, -NEVER, self.end), self.begin[:-1])

    def last_until(self, subject: np.ndarray, until: np.ndarray) -> np.ndarray:
        """int64 [N] us: the end of the last event of each subject (place) that ends by its time; -NEVER without one."""
        count = self.count[subject]
        end = self.end[slices(self.begin[:-1][subject], count)]
        end = np.where(end > np.repeat(until, count), -NEVER, end)
        return np.maximum.reduceat(end, np.cumsum(count) - count) if len(count) else end

    def frame(self, chosen: np.ndarray) -> pl.DataFrame:
        """subject, code, start, end (null when static) of the chosen events."""
        moment = np.searchsorted(self.first, chosen, side="right") - 1
        subject = np.searchsorted(self.begin, moment, side="right") - 1
        columns = {"code": self.code[chosen], "start": self.start[moment], "end": self.end[moment]}
        frame = pl.DataFrame({"subject": subject, **columns}).with_columns(pl.col("subject", "code").cast(pl.UInt32))
        static = pl.col("start") == NEVER
        return frame.with_columns(pl.when(~static).then(name).alias(name) for name in ("start", "end"))

    def marks(self, special: np.ndarray) -> pl.DataFrame:
        """`frame` of the events of special codes (bool [C]): all that visits, phenotypes and covariates look at."""
        from ehr.passes.moments import looked_up  # a worker's

        return self.frame(np.flatnonzero(looked_up(special, self.code)))


def timelines(shard: Shard, rules: Rules) -> tuple[Timelines, pl.DataFrame]:
    """Events of the shard's subjects, and its studies with their `subject`, its number in the shard."""
    ids = shard.studies["subject_id"].unique().sort().to_numpy()
    parts = [
        read_spool(rules.scratch, spool, part, rules.names)
        for (spool,), part in shard.events.partition_by("spool", as_dict=True, maintain_order=True).items()
    ]
    time, size, code = (np.concatenate(columns) if len(parts) > 1 else columns[0] for columns in zip(*parts))
    subject, moments, rows = (shard.events[name].to_numpy() for name in ("subject_id", "moments", "rows"))
    if (subject[1:] < subject[:-1]).any():
        order = np.argsort(subject, kind="stable")
        own, events = (slices((np.cumsum(n) - n)[order], n[order]) for n in (moments, rows))
        subject, moments, time, size, code = subject[order], moments[order], time[own], size[own], code[events]
    count = np.bincount(np.searchsorted(ids, subject), weights=moments, minlength=len(ids)).astype(np.int64)
    death = code[np.cumsum(size) - size] == rules.death
    start, end = intervals(time, death, rules.date_only)
    numbers = pl.Series("subject", np.searchsorted(ids, shard.studies["subject_id"].to_numpy()), pl.UInt32)
    own_studies = shard.studies.with_columns(numbers)
    return Timelines(np.append(0, np.cumsum(count)), start, end, size, code, rules.extract_end_us), own_studies


def runs(values: np.ndarray) -> np.ndarray:
    """Where a run of equal values begins."""
    return np.flatnonzero(np.concatenate([np.ones(min(1, len(values)), bool), values[1:] != values[:-1]]))
