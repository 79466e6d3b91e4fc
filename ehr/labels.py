"""One shard of timelines to label rows. Everything is vectorised over the shard's events, studies and tasks.

count_shard    events x studies  -->  codes x studies  -->  (codes and ancestors) x studies  -->  a file, and counts
label_shard    the file  -->  tasks x studies  -->  label rows

A task is a code or an ancestor, so its events are those of its column: the records are read once for both passes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa

from ehr.followup import outside, with_follow_up, with_visit
from ehr.grid import HISTORY, Cells, slices
from ehr.phenotypes import outcomes
from ehr.schema import DAY_US
from ehr.scratch import read_stash, write_stash
from ehr.shard import MAX_CELLS, Rules, Shard, Timelines, blocks, study_cells, timelines
from ehr.timeline import NEVER, in_units


@dataclass(frozen=True)
class ShardCounts:
    """Of the shard's train subjects int64 per code number, and all rows that do not depend on the choice of tasks."""

    subjects: np.ndarray  # with the code or a descendant at any time, static events included
    events: np.ndarray  # studies with an event in the risk set
    patients: np.ndarray  # subjects with such a study
    lost_us: np.ndarray  # of followed_us, not at risk of the code: after its event, or for its history (incident)
    followed_us: int  # from blackout to end of follow-up, all train studies together
    odd: dict  # events after death and before birth, all subjects
    people: pl.DataFrame  # study, censor_days, age_years, sex of the followed studies
    outcomes: pl.DataFrame  # phenotypes.outcomes


def count_shard(shard: Shard, rules: Rules) -> ShardCounts:
    """How many train subjects have each code, and how many of the train studies' risk sets an event of it.

    Leaves the cells of the followed studies in a file for `label_shard`.
    """
    events, studies = timelines(shard, rules)
    marks = events.marks(rules.special)
    timed = marks.drop_nulls("start")
    observed = ~studies.select(outside()).to_series()
    studies = with_follow_up(studies, timed, rules.death, rules.fixed_end_us, rules.blackout_us)
    studies = with_visit(studies, timed, rules.admissions, rules.discharges)
    # before any event where there is no follow-up: the risk set is empty then
    studies = studies.with_columns(risk_last=pl.when("followed").then("censor").fill_null(-NEVER))
    cells = _cells(events, studies, rules)
    write_stash(rules.scratch, shard.number, cells, studies)
    followed = studies.filter("followed")
    return ShardCounts(
        *_counts(cells, studies, rules),
        _odd_events(events, marks, rules),
        _people(marks, followed, rules),
        outcomes(timed, studies.filter(observed), rules.phenotypes),
    )


def _cells(events: Timelines, studies: pl.DataFrame, rules: Rules) -> Cells:
    """Of all studies and everything that their codes mean."""
    parts = []
    for begin, end in blocks(events, studies, len(rules.names)):
        own = study_cells(events, studies[begin:end], rules.blackout_us, len(rules.names))
        lifted = rules.closure.lift(own, end - begin)
        parts.append((lifted.row + np.int32(begin), lifted.code, lifted.first, lifted.level, lifted.visit))
    return Cells(*(np.concatenate(columns) for columns in zip(*parts)))


def _counts(cells: Cells, studies: pl.DataFrame, rules: Rules) -> tuple[np.ndarray, ...]:
    """subjects, events, patients, lost_us and followed_us of ShardCounts."""
    train, subject = studies["train"].to_numpy(), studies["subject"].to_numpy().astype(np.int64)
    num_codes = len(rules.names)
    first_study = np.zeros(len(studies), bool)  # of each train subject
    first_study[np.flatnonzero(train)[np.unique(subject[train], return_index=True)[1]]] = True
    counted = train & studies["followed"].to_numpy()
    censor = studies["risk_last"].to_numpy()
    followed = np.where(counted, censor - studies["index"].to_numpy() - rules.blackout_us, 0)
    hit, lost = counted.take(cells.row) & (cells.first != NEVER), np.zeros(num_codes, np.int64)
    if rules.incident:
        out = cells.level >= HISTORY
        np.add.at(lost, cells.code[out], followed[cells.row[out]])
        hit &= ~out
    hit = np.flatnonzero(hit)
    code, row = cells.code.take(hit), cells.row.take(hit)
    np.add.at(lost, code, censor.take(row) - cells.first.take(hit))
    having = cells.code[first_study.take(cells.row)]
    again = np.bincount(subject)[subject].take(row) > 1  # only a subject with several studies can be counted twice
    several, alone = np.flatnonzero(again), np.flatnonzero(~again)
    subjects, events, once = (np.bincount(c, minlength=num_codes) for c in (having, code, code.take(alone)))
    patients = once + _subjects_with(code[several], subject[row[several]], num_codes)
    return subjects, events, patients, lost, int(followed.sum())


def _subjects_with(code: np.ndarray, subject: np.ndarray, num_codes: int) -> np.ndarray:
    """int64 [C]: how many of the subjects (ascending) have each code. A few at a time; sorting the pairs is slower."""
    place = np.cumsum(subject[1:] != subject[:-1], dtype=np.int64)
    place = np.append(0, place)[: len(subject)]
    counts, step = np.zeros(num_codes, np.int64), max(1, MAX_CELLS // num_codes)
    for first in range(0, int(place.max(initial=-1)) + 1, step):
        some = slice(*np.searchsorted(place, (first, first + step)))
        table = np.zeros((step, num_codes), bool)
        table[place[some] - first, code[some]] = True
        counts += table.sum(axis=0)
    return counts


def label_shard(shard: Shard, rules: Rules, tasks: np.ndarray) -> pl.DataFrame:
    """study, the list columns of schema.LABELS and past_codes (numbers) of the shard's studies; empty lists where not
    followed.

    tasks: code of every task, in task order.
    """
    stash = read_stash(rules.scratch, shard.number)
    task_of = np.full(len(rules.names), -1, np.int32)
    task_of[tasks] = np.arange(len(tasks))
    task, row, rows = task_of.take(stash.code), stash.row, np.arange(len(shard.studies) + 1)
    cells = np.flatnonzero(task >= 0)
    # The codes are in string order, the tasks in that of their scores. Small integers: numpy sorts them by radix.
    small = np.min_scalar_type(max(len(tasks), len(rows)))
    cells = cells.take(np.lexsort((task.take(cells).astype(small), row.take(cells).astype(small))))

    def per_study(cells: np.ndarray, values: np.ndarray) -> pl.Series:
        return lists(np.diff(np.searchsorted(row.take(cells), rows)), pl.Series(values.take(cells)))

    events = cells[~np.isnan(stash.days.take(cells))]
    return shard.studies.select(
        "study",
        task_index=per_study(events, task),
        event_days=per_study(events, stash.days),
        history_index=per_study(cells[stash.history.take(cells)], task),
        visit_index=per_study(cells[stash.visit.take(cells)], task),
        past_codes=per_study(np.flatnonzero(stash.feature), stash.code),
    )


def lists(length: np.ndarray, values: pl.Series) -> pl.Series:
    """The values cut into lists of the given lengths."""
    offsets, flat = np.zeros(len(length) + 1, np.int64), values.to_arrow()
    np.cumsum(length, out=offsets[1:])
    # from_buffers: pa.array would import pandas, .7 s in every worker
    cut = pa.Array.from_buffers(pa.large_list(flat.type), len(length), [None, pa.py_buffer(offsets)], children=[flat])
    return pl.Series(pl.from_arrow(cut))


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
