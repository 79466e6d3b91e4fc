"""What no true record can hold, counted: events after death, two births, dates after the extract's end."""

from __future__ import annotations

import numpy as np
import polars as pl

from ehr.passes.scratch import slices
from ehr.passes.shard import Rules, Timelines
from ehr.schema import DAY_US
from ehr.timeline import NEVER

OLDEST_YEARS = 120
BIRTHS_APART_US = 366 * DAY_US  # a year of birth and a date of birth are no contradiction
DEATHS_APART_US = 30 * DAY_US  # nor are the days on which a death was noted
LONG_AFTER_US = 365 * DAY_US  # bills come in for months


def odd_events(events: Timelines, marks: pl.DataFrame, rules: Rules) -> dict[str, int]:
    """Events after death and after the extract's end (none becomes a label), and before birth (kept as they are)."""
    subjects = len(events.count)
    death = _earliest(marks, rules.death, subjects, NEVER)
    birth = _earliest(marks, rules.birth, subjects, -NEVER)
    end = np.full(subjects, rules.extract_end_us)
    first = np.minimum.reduceat(events.start, events.begin[:-1])
    return {
        "after_death": _events(events, death, np.greater, events.very_last > death),
        "before_birth": _events(events, birth, np.less, first < birth),
        "after_extract": _events(events, end, np.greater, events.very_last > end),
    }


def _earliest(marks: pl.DataFrame, code: int, subjects: int, never: int) -> np.ndarray:
    """int64 [S] us, the first event of the code; `never` without one."""
    earliest = np.full(subjects, never)
    table = marks.filter(pl.col("code") == code).group_by("subject").agg(pl.col("start").min()).drop_nulls()
    earliest[table["subject"].to_numpy()] = table["start"].to_numpy()
    return earliest


def _events(events: Timelines, bound: np.ndarray, odd: np.ufunc, which: np.ndarray) -> int:
    """Timed events on the odd side of their subject's bound. which: bool [S], subjects to look at."""
    count = events.count[which]
    moment = slices(events.begin[:-1][which], count)
    start = events.start[moment]
    return int(events.size[moment][odd(start, np.repeat(bound[which], count)) & (start != NEVER)].sum())


def odd_subjects(events: Timelines, marks: pl.DataFrame, rules: Rules) -> dict[str, int]:
    """Subjects by what their records say of birth and death."""
    within = marks.filter(pl.col("start").is_null() | (pl.col("start") <= rules.extract_end_us))
    born = pl.col("start").filter(pl.col("code") == rules.birth)
    died = pl.col("start").filter(pl.col("code") == rules.death)
    table = within.group_by("subject").agg(
        birth=born.min(), births=born.max() - born.min(), death=died.min(), deaths=died.max() - died.min()
    )
    table = table.with_columns(last=pl.Series(events.last)[table["subject"].cast(pl.Int64)])
    dead = marks.filter(pl.col("code") == rules.death)["subject"].n_unique()
    dated = table["death"].count()
    return {
        "deaths": dated,
        "undated_deaths": dead - dated,
        "several_deaths": int((table["deaths"] > DEATHS_APART_US).sum()),
        "several_births": int((table["births"] > BIRTHS_APART_US).sum()),
        "death_before_birth": int((table["death"] < table["birth"]).sum()),
        "long_after_death": int((table["last"] - table["death"] > LONG_AFTER_US).sum()),
    }
