"""One shard of timelines to label rows. Everything is vectorised over the shard's events, studies and tasks.

    events x studies  --group-->  (study, code)  --join closure, group-->  (study, task)  --group-->  label rows

The first grouping leaves a few hundred codes per study, so that walking up the ontology costs little.
"""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from ehr.followup import with_follow_up, with_visit
from ehr.phenotypes import outcomes
from ehr.schema import DAY_US, LABELS
from ehr.sources.meds import MedsSource
from ehr.timeline import in_units, last_moment, side_of_scan, with_intervals


@dataclass(frozen=True)
class Shard:
    """Subjects that are labelled together, and every file that holds one of them."""

    files: tuple[str, ...]
    studies: pl.DataFrame  # study (row number), subject_id, index, index_last (us), train (bool)


@dataclass(frozen=True)
class Rules:
    """What every shard needs to know. Plain data: travels to workers. Codes are indices into `names`."""

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
class ShardLabels:
    labels: pl.DataFrame  # study, censor_days and the list columns of schema.LABELS
    covariates: pl.DataFrame  # study, age_years, sex, past_codes
    outcomes: pl.DataFrame  # phenotypes.outcomes


def count_shard(shard: Shard, rules: Rules) -> tuple[pl.DataFrame, dict]:
    """Per code: train `subjects` with it at any time, and `events` and `patients` of the train studies' risk sets.

    The dict counts odd events.
    """
    every, events, studies = _timelines(shard, rules)
    train = studies.filter("train")
    having = every.join(train, on="subject_id", how="semi").select("subject_id", "code").unique()
    having = _walk_up(having, rules.closure).unique().group_by("code").len("subjects")
    first = by_code(events, train.filter("followed"), rules.blackout_us)
    first = _summarised(_walk_up(first, rules.closure), "code").filter(pl.col("first").is_not_null())
    if rules.incident:
        first = first.filter(~pl.col("history"))
    at_risk = first.join(train.select("study", "subject_id"), on="study").group_by("code")
    at_risk = at_risk.agg(events=pl.len(), patients=pl.col("subject_id").n_unique())
    return having.join(at_risk, on="code", how="left").fill_null(0), _odd_events(events, rules)


def label_shard(shard: Shard, rules: Rules, tasks: pl.DataFrame) -> ShardLabels:
    """Label rows, covariates and phenotype outcomes of the shard's followed studies.

    tasks: code, task: every code that means the task, itself and its descendants.
    """
    every, events, studies = _timelines(shard, rules)
    studies = with_visit(studies.filter("followed"), events, rules.admissions, rules.discharges)
    codes = by_code(events, studies, rules.blackout_us)
    per_task = _summarised(codes.join(tasks, on="code").drop("code"), "task")
    return ShardLabels(
        _label_rows(per_task, studies),
        _covariates(every, codes, studies, rules),
        outcomes(events, studies, rules.phenotypes, rules.blackout_us, rules.incident),
    )


def by_code(events: pl.DataFrame, studies: pl.DataFrame, blackout_us: int) -> pl.DataFrame:
    """Per study and code: `first` event of the risk set (us or null); whether any is history, feature, of the visit.

    Without columns visit_start and visit_last nothing is of the visit.
    """
    side = side_of_scan(pl.col("start"), pl.col("end"), pl.col("index"), pl.col("index_last"), blackout_us)
    visit = pl.lit(False)
    if "visit_start" in studies.columns:
        visit = (last_moment() >= pl.col("visit_start")) & (pl.col("start") <= pl.col("visit_last"))
    pairs = (
        events.lazy()
        .join(studies.lazy(), on="subject_id")
        .select(
            "study",
            "code",
            first=pl.when(side.after & (pl.col("start") <= pl.col("censor"))).then("start"),
            history=~side.after,
            feature=side.feature,
            visit=visit,
        )
    )
    return _summarised(pairs, "code").collect()


def _timelines(shard: Shard, rules: Rules) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """All events (subject_id, code, start, end; null for static ones), the timed ones, the studies' follow-up."""
    read = rules.source.read(list(shard.files), shard.studies["subject_id"].unique())
    intervals = with_intervals(read.lazy(), rules.source.date_only)
    every = intervals.join(rules.names.lazy(), left_on="code", right_on="name").select(
        "subject_id", "start", "end", code="code_right"
    ).collect()  # fmt: skip
    events = every.filter(pl.col("start").is_not_null())
    return every, events, with_follow_up(shard.studies, events, rules.death, rules.fixed_end_us, rules.blackout_us)


def _summarised(pairs, key: str):
    return pairs.group_by("study", key).agg(
        pl.col("first").min(), pl.col("history").any(), pl.col("feature").any(), pl.col("visit").any()
    )


def _walk_up(frame: pl.DataFrame, closure: pl.DataFrame) -> pl.DataFrame:
    return frame.join(closure, on="code").drop("code").rename({"ancestor": "code"})


def _label_rows(per_task: pl.DataFrame, studies: pl.DataFrame) -> pl.DataFrame:
    per_task = per_task.join(studies.select("study", "index"), on="study").sort("study", "task")
    per_task = per_task.with_columns(days=in_units(pl.col("first") - pl.col("index")))
    observed = pl.col("first").is_not_null()
    lists = per_task.group_by("study").agg(
        task_index=pl.col("task").filter(observed),
        event_days=pl.col("days").filter(observed),
        history_index=pl.col("task").filter("history"),
        visit_index=pl.col("task").filter("visit"),
    )
    rows = studies.select("study", censor_days=in_units(pl.col("censor") - pl.col("index")))
    rows = rows.join(lists, on="study", how="left", maintain_order="left")
    empty = [pl.col(name).cast(LABELS[name]).fill_null([]) for name in lists.columns if name != "study"]
    return rows.with_columns(empty)


def _covariates(every: pl.DataFrame, codes: pl.DataFrame, studies: pl.DataFrame, rules: Rules) -> pl.DataFrame:
    birth = every.filter(pl.col("code") == rules.birth).group_by("subject_id").agg(birth=pl.col("start").min())
    sex = every.join(rules.sexes, on="code").group_by("subject_id").agg(pl.col("sex").unique())
    sex = sex.filter(pl.col("sex").list.len() == 1).with_columns(pl.col("sex").list.first())
    past = _walk_up(codes.filter("feature").select("study", "code"), rules.closure).unique().sort("study", "code")
    past = past.join(rules.names, on="code", maintain_order="left").group_by("study", maintain_order=True)
    table = studies.join(birth, on="subject_id", how="left", maintain_order="left")
    table = table.join(sex, on="subject_id", how="left", maintain_order="left")
    table = table.join(past.agg(past_codes="name"), on="study", how="left", maintain_order="left")
    age = in_units(pl.col("index") - pl.col("birth"), 365.25 * DAY_US)
    return table.select("study", age_years=age, sex="sex", past_codes=pl.col("past_codes").fill_null([]))


def _odd_events(events: pl.DataFrame, rules: Rules) -> dict:
    """Events after death (none becomes a label) and before birth (kept as they are)."""
    code, start = pl.col("code"), pl.col("start")
    ends = events.group_by("subject_id").agg(
        death=start.filter(code == rules.death).min(), birth=start.filter(code == rules.birth).min()
    )
    odd = events.join(ends, on="subject_id").select(
        after_death=(start > pl.col("death")).sum(), before_birth=(start < pl.col("birth")).sum()
    )
    return odd.row(0, named=True)
