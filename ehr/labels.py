"""One shard of timelines to label rows. Everything is vectorised over the shard's events, studies and tasks.

events x studies  --scatter-->  codes x studies  --lift-->  tasks x studies  --nonzero-->  label rows
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa

from ehr.followup import with_visit
from ehr.grid import NEVER, Lift
from ehr.phenotypes import outcomes
from ehr.schema import DAY_US, LABELS
from ehr.shard import Block, Rules, Shard, blocks, timelines
from ehr.timeline import in_units


@dataclass(frozen=True)
class ShardCounts:
    """Of the shard's train subjects; int64 per code number."""

    subjects: np.ndarray  # with the code or a descendant at any time, static events included
    events: np.ndarray  # studies with an event in the risk set
    patients: np.ndarray  # subjects with such a study
    odd: dict  # events after death and before birth, all subjects


@dataclass(frozen=True)
class ShardLabels:
    labels: pl.DataFrame  # study, censor_days and the list columns of schema.LABELS
    covariates: pl.DataFrame  # study, age_years, sex, past_codes
    outcomes: pl.DataFrame  # phenotypes.outcomes


def count_shard(shard: Shard, rules: Rules) -> ShardCounts:
    """How many train subjects have each code, and how many of the train studies' risk sets an event of it."""
    events, studies = timelines(shard, rules)
    counts = np.zeros((3, len(rules.names)), np.int64)
    for block in blocks(events, studies.filter("train"), rules):
        lift = Lift.of(block.codes_L, rules.closure, "ancestor")
        hit_AN = lift.any(block.flags(block.risk))
        if rules.incident:
            hit_AN &= ~lift.any(block.flags(block.history))
        first_of_subject = np.flatnonzero(np.diff(block.studies["subject"].to_numpy().astype(np.int64), prepend=-1))
        counts[0, lift.target] += lift.any(block.having).sum(1)
        counts[1, lift.target] += hit_AN.sum(1)
        counts[2, lift.target] += np.logical_or.reduceat(hit_AN, first_of_subject, axis=1).sum(1)
    return ShardCounts(*counts, _odd_events(events, rules))


def label_shard(shard: Shard, rules: Rules, tasks: pl.DataFrame) -> ShardLabels:
    """Label rows, covariates and phenotype outcomes of the shard's followed studies.

    tasks: code, task: every code that means the task, itself and its descendants.
    """
    events, studies = timelines(shard, rules)
    studies = studies.filter("followed")
    timed = events.filter(pl.col("start").is_not_null())
    studies = with_visit(studies, timed, rules.admissions, rules.discharges)
    rows = [_block_rows(block, rules, tasks) for block in blocks(events, studies, rules)]
    table = pl.concat(rows) if rows else studies.select("study").join(pl.DataFrame(schema=_ROWS), on="study")
    return ShardLabels(
        table.drop("past_codes"),
        _people(events, studies, rules).join(table.select("study", "past_codes"), on="study", maintain_order="left"),
        outcomes(timed, studies, rules.phenotypes, rules.blackout_us, rules.incident),
    )


_ROWS = {"study": pl.UInt32, "censor_days": pl.Float64, "past_codes": pl.List(pl.String)} | {
    name: LABELS[name] for name in ("task_index", "event_days", "history_index", "visit_index")
}


def _block_rows(block: Block, rules: Rules, tasks: pl.DataFrame) -> pl.DataFrame:
    """Columns _ROWS of the block's studies."""
    to_tasks = Lift.of(block.codes_L, tasks, "task")
    up = Lift.of(block.codes_L, rules.closure, "ancestor")
    first_NK = to_tasks.earliest(block.first()).T
    study, task = np.nonzero(first_NK != NEVER)
    index, censor = (block.studies[name].to_numpy() for name in ("index", "censor"))
    past_study, past = np.nonzero(up.any(block.flags(block.feature)).T)
    names = rules.names["name"].gather(up.target[past])
    columns = {
        "study": block.studies["study"],
        "censor_days": (censor - index) / DAY_US,
        "past_codes": _lists(past_study, names, len(index)),
        "task_index": _lists(study, to_tasks.target[task], len(index)),
        "event_days": _lists(study, (first_NK[study, task] - index[study]) / DAY_US, len(index)),
    }
    for name, flag_LN in (("history_index", block.flags(block.history)), ("visit_index", block.of_visit())):
        row, task = np.nonzero(to_tasks.any(flag_LN).T)
        columns[name] = _lists(row, to_tasks.target[task], len(index))
    return pl.DataFrame(columns).select(pl.col(name).cast(dtype) for name, dtype in _ROWS.items())


def _lists(row: np.ndarray, values: np.ndarray | pl.Series, num_rows: int) -> pl.Series:
    """One list per row, of the values whose `row` (ascending) it is."""
    offsets = np.zeros(num_rows + 1, np.int64)
    np.cumsum(np.bincount(row, minlength=num_rows), out=offsets[1:])
    flat = pl.Series(values).to_arrow()
    # from_buffers: pa.array would import pandas, .7 s in every worker
    lists = pa.Array.from_buffers(pa.large_list(flat.type), num_rows, [None, pa.py_buffer(offsets)], children=[flat])
    return pl.Series(pl.from_arrow(lists))


def _people(events: pl.DataFrame, studies: pl.DataFrame, rules: Rules) -> pl.DataFrame:
    """study, age_years, sex of the studies, in their order."""
    birth = events.filter(pl.col("code") == rules.birth).group_by("subject").agg(birth=pl.col("start").min())
    sex = events.join(rules.sexes, on="code").group_by("subject").agg(pl.col("sex").unique())
    sex = sex.filter(pl.col("sex").list.len() == 1).with_columns(pl.col("sex").list.first())
    table = studies.join(birth, on="subject", how="left", maintain_order="left")
    table = table.join(sex, on="subject", how="left", maintain_order="left")
    return table.select("study", age_years=in_units(pl.col("index") - pl.col("birth"), 365.25 * DAY_US), sex="sex")


def _odd_events(events: pl.DataFrame, rules: Rules) -> dict:
    """Events after death (none becomes a label) and before birth (kept as they are)."""
    code, start = pl.col("code"), pl.col("start")
    marks = events.filter(code.is_in([rules.death, rules.birth])).group_by("subject")
    ends = marks.agg(death=start.filter(code == rules.death).min(), birth=start.filter(code == rules.birth).min())
    odd = events.join(ends, on="subject").select(
        after_death=(start > pl.col("death")).sum(), before_birth=(start < pl.col("birth")).sum()
    )
    return odd.row(0, named=True)
