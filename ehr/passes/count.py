"""One shard of timelines to the state of each code in each study; vectorised over events, studies and codes.

events x studies  -->  codes x studies  -->  (codes and ancestors) x studies  -->  a file, and counts
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from ehr.followup import outside, with_follow_up, with_visit
from ehr.passes.cells import Counts, Scans
from ehr.passes.scratch import slices, write_stash
from ehr.passes.shard import Rules, Shard, Timelines, timelines
from ehr.phenotypes import outcomes
from ehr.schema import DAY_US
from ehr.timeline import NEVER, in_units


@dataclass(frozen=True)
class ShardCounts:
    """Of the shard's train subjects, and all rows that do not depend on the choice of tasks."""

    of_codes: Counts
    followed_us: int  # from blackout to end of follow-up, all train studies together
    odd: dict  # events after death and before birth, all subjects
    people: pl.DataFrame  # study, censor_days, age_years, sex of the followed studies
    outcomes: pl.DataFrame  # phenotypes.outcomes


def count_shard(shard: Shard, rules: Rules) -> ShardCounts:
    """How many train subjects have each code, and how many of the train studies' risk sets an event of it.

    Leaves the cells of the followed studies in files for `labels.with_lists`.
    """
    from ehr.passes.loops import count_cells  # a worker's: the driver does without half a second of imports

    events, studies = timelines(shard, rules)
    marks = events.marks(rules.special)
    timed = marks.drop_nulls("start")
    observed = ~studies.select(outside()).to_series()
    studies = with_follow_up(studies, timed, rules.death, rules.fixed_end_us, rules.blackout_us)
    studies = with_visit(studies, timed, rules.admissions, rules.discharges)
    # before any event where there is no follow-up: the risk set is empty then
    studies = studies.with_columns(risk_last=pl.when("followed").then("censor").fill_null(-NEVER))
    scans = Scans(*(studies[name].to_numpy() for name in Scans._fields))
    counts, cells = count_cells(events.arrays, scans, rules.closure, rules.blackout_us, rules.incident)
    write_stash(rules.scratch, shard.number, cells)
    followed = studies.filter("followed")
    at_risk = pl.col("censor") - pl.col("index") - rules.blackout_us
    return ShardCounts(
        counts,
        followed.filter("train").select(at_risk.sum()).item(),
        _odd_events(events, marks, rules),
        _people(marks, followed, rules),
        outcomes(timed, studies.filter(observed), rules.phenotypes),
    )


def _people(events: pl.DataFrame, studies: pl.DataFrame, rules: Rules) -> pl.DataFrame:
    """study, censor_days, age_years, sex of the studies, in their order."""
    birth = events.filter(pl.col("code") == rules.birth).group_by("subject").agg(birth=pl.col("start").min())
    sex = events.join(rules.sexes, on="code").group_by("subject").agg(pl.col("sex").unique())
    sex = sex.filter(pl.col("sex").list.len() == 1).with_columns(pl.col("sex").list.first())
    table = studies.join(birth, on="subject", how="left", maintain_order="left")
    table = table.join(sex, on="subject", how="left", maintain_order="left")
    age = in_units(pl.col("index") - pl.col("birth"), 365.25 * DAY_US)
    return table.select("study", censor_days=in_units(pl.col("censor") - pl.col("index")), age_years=age, sex="sex")


def _odd_events(events: Timelines, marks: pl.DataFrame, rules: Rules) -> dict:
    """Events after death (none becomes a label) and before birth (kept as they are)."""
    death, birth = np.full(len(events.count), NEVER), np.full(len(events.count), -NEVER)
    for earliest, number in ((death, rules.death), (birth, rules.birth)):
        table = marks.filter(pl.col("code") == number).group_by("subject").agg(pl.col("start").min()).drop_nulls()
        earliest[table["subject"].to_numpy()] = table["start"].to_numpy()
    counts = {}
    for name, odd, which in (
        ("after_death", np.greater, events.last > death),
        ("before_birth", np.less, np.minimum.reduceat(events.start, events.begin[:-1]) < birth),
    ):
        bound, count = (death if odd is np.greater else birth)[which], events.count[which]
        moment = slices(events.begin[:-1][which], count)
        start = events.start[moment]
        counts[name] = int(events.size[moment][odd(start, np.repeat(bound, count)) & (start != NEVER)].sum())
    return counts
