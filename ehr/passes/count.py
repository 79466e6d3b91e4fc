"""One shard of timelines to the state of each code in each study; vectorised over events, studies and codes.

events x studies  -->  codes x studies  -->  (codes and ancestors) x studies  -->  a file, and counts
"""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from ehr.followup import first_deaths, outside, with_follow_up, with_visit
from ehr.passes.cells import Counts, Scans
from ehr.passes.odd import BIRTHS_APART_US, OLDEST_YEARS, odd_events, odd_subjects
from ehr.passes.scratch import write_stash
from ehr.passes.shard import Rules, Shard, timelines
from ehr.phenotypes import outcomes
from ehr.schema import DAY_US
from ehr.timeline import NEVER, in_units


@dataclass(frozen=True)
class ShardCounts:
    """Of the shard's train subjects, and all rows that do not depend on the choice of tasks."""

    of_codes: Counts
    followed_us: int  # from blackout to end of follow-up, all train studies together
    odd: dict[str, dict[str, int]]  # of events, subjects, studies: what no true record can hold
    people: pl.DataFrame  # study, censor_days, age_years, sex of the followed studies
    outcomes: pl.DataFrame  # phenotypes.outcomes


def count_shard(shard: Shard, rules: Rules) -> ShardCounts:
    """How many train subjects have each code, and how many of the train studies' risk sets an event of it.

    Leaves the cells of the followed studies in files for `labels.with_lists`.
    """
    from ehr.passes.loops import count_cells  # a worker's: the driver does without half a second of imports

    events, studies = timelines(shard, rules)
    marks = events.marks(rules.special)
    timed = marks.filter(pl.col("start") <= rules.extract_end_us)  # null is not
    observed = ~studies.select(outside()).to_series()
    studies = studies.with_columns(
        pl.Series(name, us[studies["subject"].to_numpy()]).replace(-NEVER, None)
        for name, us in (("last", events.last), ("last_given", events.very_last))
    )
    if rules.until_last:
        last = events.last_until(studies["subject"].to_numpy(), studies["period_end"].to_numpy())
        studies = studies.with_columns(period_end=pl.max_horizontal(pl.Series(last), "index"))
    deaths = first_deaths(marks, rules.death, rules.extract_end_us)
    studies = with_follow_up(studies, deaths, rules.fixed_end_us, rules.extract_end_us, rules.blackout_us)
    studies = with_visit(studies, timed, rules.admissions, rules.discharges)
    # before any event where there is no follow-up: the risk set is empty then
    studies = studies.with_columns(risk_last=pl.when("followed").then("censor").fill_null(-NEVER))
    scans = Scans(*(studies[name].to_numpy() for name in Scans._fields))
    counts, cells = count_cells(events.arrays, scans, rules.closure, rules.blackout_us, rules.incident)
    write_stash(rules.scratch, shard.number, cells)
    followed = studies.filter("followed")
    at_risk = pl.col("censor") - pl.col("index") - rules.blackout_us
    people = _people(marks, followed, rules)
    odd = odd_events(events, marks, rules), odd_subjects(events, marks, rules), _odd_studies(studies, people)
    return ShardCounts(
        counts,
        followed.filter("train").select(at_risk.sum()).item(),
        dict(zip(("events", "subjects", "studies"), odd)),
        people.drop("age_given"),
        outcomes(timed, studies.filter(observed), rules.phenotypes, rules.death),
    )


def _people(events: pl.DataFrame, studies: pl.DataFrame, rules: Rules) -> pl.DataFrame:
    """study, censor_days, age_years, sex of the studies, in their order; age_given is the age that no person can have.

    A subject whose births disagree has none.
    """
    birth = (
        events.filter(pl.col("code") == rules.birth)
        .group_by("subject")
        .agg(
            birth=pl.when(pl.col("start").max() - pl.col("start").min() <= BIRTHS_APART_US).then(pl.col("start").min())
        )
    )
    sex = events.join(rules.sexes, on="code").group_by("subject").agg(pl.col("sex").unique())
    sex = sex.filter(pl.col("sex").list.len() == 1).with_columns(pl.col("sex").list.first())
    table = studies.join(birth, on="subject", how="left", maintain_order="left")
    table = table.join(sex, on="subject", how="left", maintain_order="left")
    age = in_units(pl.col("index") - pl.col("birth"), 365.25 * DAY_US)
    possible = age.is_between(0, OLDEST_YEARS)
    return table.select(
        "study",
        censor_days=in_units(pl.col("censor") - pl.col("index")),
        age_years=pl.when(possible).then(age),
        sex="sex",
        age_given=pl.when(~possible).then(age),
    )


def _odd_studies(studies: pl.DataFrame, people: pl.DataFrame) -> dict[str, int]:
    followed = studies.filter("followed")
    return {
        "capped": int(studies["capped"].sum()),
        "impossible_age": people["age_given"].count(),
        "undated_death": int(followed["undated"].sum()),
    }
