"""Timelines of the synthetic subjects, in the columns of MEDS.

    birth        history (rate x HISTORY_RATE)     CT 1    CT 2            end of follow-up or death
      |--- ... -----|--x----x--------x--------x------|--x----|---x--x----x----|
                 record starts                     t0 = 0

Every code is a Poisson process of constant rate after the first CT.
N subjects, C codes, L latents, S studies, E events.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from data.cohort import exam
from data.cohort.exam import PHENOTYPES, Latents, Size, weight_vector
from data.cohort.timelines.catalogue import CHEST_CT, Catalogue
from data.cohort.timelines.families import FAMILIES

DAY_US = 86_400_000_000
YEAR_DAYS = 365.25
MEDS_SCHEMA = pl.Schema(
    {"subject_id": pl.Int64(), "time": pl.Datetime("us"), "code": pl.String(), "numeric_value": pl.Float32()}
)


@dataclass(frozen=True)
class Course:
    """When things happen to each subject, in days from the first CT."""

    subject_id_N: np.ndarray
    split_N: np.ndarray  # str
    t0_us_N: np.ndarray  # int64, microseconds since 1970
    start_N: np.ndarray  # < 0: the record begins
    end_N: np.ndarray  # > 0: last day of follow-up
    died_N: np.ndarray  # bool: at `end`


@dataclass(frozen=True)
class Studies:
    """One row per CT, ordered by study_id."""

    study_id_S: np.ndarray
    subject_S: np.ndarray  # row of the subject
    day_S: np.ndarray  # days after the subject's first CT
    stay_S2: np.ndarray  # admission and discharge of the CT's own stay in days; nan: outpatient


def draw_course(rng: np.random.Generator, size: Size, latents: Latents) -> Course:
    """Splits, calendar, death and loss to follow-up. Death's hazard is log-linear in the latents, like every code's."""
    num = size.subjects
    split_N = np.empty(num, object)
    first = 0
    for position, (name, share) in enumerate(exam.SPLIT_SHARES):
        last = num if position == len(exam.SPLIT_SHARES) - 1 else first + round(share * num)
        split_N[first:last] = name
        first = last
    split_N = split_N[rng.permutation(num)]
    date, days = exam.FIRST_SCAN_DAY
    midnight_us = int(np.datetime64(date, "us").astype(np.int64)) + rng.integers(days, size=num) * DAY_US
    t0_us_N = midnight_us + rng.integers(int(6.5 * 3600), 22 * 3600, num) * 1_000_000 + rng.integers(10**6, size=num)
    start_N = -YEAR_DAYS * rng.uniform(*exam.HISTORY_YEARS, num)
    median, sigma, lowest, highest = exam.FOLLOWUP_YEARS
    lost_N = YEAR_DAYS * np.clip(median * np.exp(sigma * rng.standard_normal(num)), lowest, highest)
    death = PHENOTYPES[0]
    rate_N = death.per_year * np.exp(latents.scores_NL @ weight_vector(death.weights)) / YEAR_DAYS
    death_N = rng.exponential(1, num) / rate_N
    serial = rng.permutation(num * 9)[:num]
    return Course(
        subject_id_N=10_000_000 + np.sort(serial) * 7,
        split_N=split_N,
        t0_us_N=t0_us_N,
        start_N=start_N,
        end_N=np.minimum(death_N, lost_N),
        died_N=death_N <= lost_N,
    )


def draw_studies(rng: np.random.Generator, size: Size, course: Course) -> Studies:
    """First CTs, and second ones for a fixed share of every split among the subjects followed long enough."""
    first = np.arange(size.subjects)
    low, high = exam.RESCAN_DAYS
    again_days = rng.uniform(low, high, size.subjects)
    able = course.end_N > again_days + 30
    chosen = []
    for name, _ in exam.SPLIT_SHARES:
        members = np.flatnonzero(course.split_N == name)
        wanted = round(size.rescanned * len(members))
        chosen.append(rng.permutation(members[able[members]])[:wanted])
    again = np.sort(np.concatenate(chosen))
    subject_S = np.concatenate([first, again])
    day_S = np.concatenate([np.zeros(len(first)), again_days[again]])
    order = np.lexsort((day_S, subject_S))
    subject_S, day_S = subject_S[order], day_S[order]
    num = len(order)
    inpatient_S = rng.random(num) < exam.INPATIENT
    admitted_S = day_S - rng.uniform(0.1, 2.5, num)
    discharged_S = np.minimum(day_S + rng.uniform(0.4, 5.0, num), course.end_N[subject_S])
    stay_S2 = np.where(inpatient_S[:, None], np.column_stack([admitted_S, discharged_S]), np.nan)
    names = rng.permutation(90_000)[:num] + 10_000
    names.sort()
    return Studies(np.array([f"ct{n}" for n in names]), subject_S, day_S, stay_S2)


def draw_events(
    rng: np.random.Generator, size: Size, latents: Latents, catalogue: Catalogue, course: Course, studies: Studies
) -> pl.DataFrame:
    """All events of all subjects in MEDS' columns, ordered by subject and time, static rows first."""
    parts = [
        _coded(rng, size, latents, catalogue, course),
        _stays(rng, latents, course, studies),
        _scan_visits(rng, latents, catalogue, course, studies),
        _life(rng, latents, course),
    ]
    events = pl.concat([pl.DataFrame(part, schema=_PART) for part in parts])
    moment = pl.lit(pl.Series(course.t0_us_N)).gather(pl.col("row")) + (pl.col("day") * DAY_US).round().cast(pl.Int64)
    moment = pl.when(pl.col("date_only")).then(moment - moment % DAY_US).otherwise(moment)
    return (
        events.with_columns(time=moment.cast(pl.Datetime("us")))
        .with_columns(subject_id=pl.lit(pl.Series(course.subject_id_N)).gather(pl.col("row")))
        .select(*MEDS_SCHEMA)
        .cast(MEDS_SCHEMA)
        .sort("subject_id", "time", "code", "numeric_value", nulls_last=False)
    )


Part = dict[str, np.ndarray | pl.Series]  # columns of a block of events
_PART = {"row": pl.Int64, "day": pl.Float64, "code": pl.String, "numeric_value": pl.Float64, "date_only": pl.Boolean}


def _part(
    row: np.ndarray,
    day: np.ndarray,
    code: np.ndarray,
    value: np.ndarray | None = None,
    date_only: np.ndarray | None = None,
) -> Part:
    """One block of events; a day of nan is a static event."""
    num = len(row)
    return {
        "row": np.asarray(row, np.int64),
        "day": pl.Series(np.asarray(day, float)).fill_nan(None),
        "code": pl.Series(code, dtype=pl.String),
        "numeric_value": pl.Series(np.full(num, np.nan) if value is None else value).fill_nan(None),
        "date_only": np.zeros(num, bool) if date_only is None else date_only,
    }


def _coded(rng: np.random.Generator, size: Size, latents: Latents, catalogue: Catalogue, course: Course) -> Part:
    """Events of every code with a rate, before the first CT (slower) and after it."""
    used = np.flatnonzero(catalogue.per_year_C > 0)
    per_day_C = size.rate * catalogue.per_year_C[used] / YEAR_DAYS
    scores_NL = latents.scores_NL
    rate_NC = per_day_C * np.exp(scores_NL @ catalogue.weights_CL[used].T)
    rows, days, codes = [], [], []
    for length_N, first_N, factor in (
        (-course.start_N, course.start_N, exam.HISTORY_RATE),
        (course.end_N, np.zeros(size.subjects), 1.0),
    ):
        count_NC = rng.poisson(rate_NC * (factor * length_N)[:, None])
        row, column = np.nonzero(count_NC)
        times = count_NC[row, column]
        row, column = np.repeat(row, times), np.repeat(column, times)
        rows.append(row)
        codes.append(column)
        days.append(first_N[row] + length_N[row] * rng.random(len(row)))
    row, day, column = np.concatenate(rows), np.concatenate(days), np.concatenate(codes)
    names = np.array(catalogue.codes, object)[used]
    numeric_E = catalogue.numeric_C[used][column]
    # A laboratory value moves with the same linear predictor as the rate at which it is measured.
    level_E = np.einsum("el,el->e", scores_NL[row], catalogue.weights_CL[used][column])
    value_E = np.where(numeric_E, np.round(100 + 12 * level_E + 10 * rng.standard_normal(len(row)), 1), np.nan)
    icd = np.array([name.startswith("ICD10CM/") for name in names])
    return _part(row, day, names[column], value_E, icd[column])  # billing knows the date alone


def _stays(rng: np.random.Generator, latents: Latents, course: Course, studies: Studies) -> Part:
    """Hospital stays: a Poisson process of admissions, none during another stay or the CT's own."""
    readmission = PHENOTYPES[1]
    rate_N = readmission.per_year * np.exp(latents.scores_NL @ weight_vector(readmission.weights)) / YEAR_DAYS
    rows, starts = [], []
    for length_N, first_N, factor in (
        (-course.start_N, course.start_N, exam.HISTORY_RATE),
        (course.end_N, np.zeros(len(rate_N)), 1.0),
    ):
        row = np.repeat(np.arange(len(rate_N)), rng.poisson(rate_N * length_N * factor))
        rows.append(row)
        starts.append(first_N[row] + length_N[row] * rng.random(len(row)))
    row, start = np.concatenate(rows), np.concatenate(starts)
    mean, cap = exam.STAY_DAYS
    stop = start + np.minimum(0.3 + rng.exponential(mean, len(row)), cap)
    own = np.flatnonzero(np.isfinite(studies.stay_S2[:, 0]))
    row = np.concatenate([studies.subject_S[own], row])
    start = np.concatenate([studies.stay_S2[own, 0], start])
    stop = np.minimum(np.concatenate([studies.stay_S2[own, 1], stop]), course.end_N[row])
    is_own = np.arange(len(row)) < len(own)
    kept = is_own | ~_overlaps(row, start, stop, is_own)
    row, start, stop = row[kept], start[kept], stop[kept]
    codes = np.repeat(["HOSPITAL_ADMISSION", "HOSPITAL_DISCHARGE"], len(row))
    return _part(np.tile(row, 2), np.concatenate([start, stop]), codes)


def _overlaps(row: np.ndarray, start: np.ndarray, stop: np.ndarray, is_own: np.ndarray) -> np.ndarray:
    """Stays that touch the previous stay of the subject, or a CT's own one that begins before they end."""
    order = np.lexsort((start, row))
    same = row[order][1:] == row[order][:-1]
    touches = np.zeros(len(row), bool)
    close = same & (start[order][1:] <= stop[order][:-1])
    touches[order[1:]] |= close
    touches[order[:-1]] |= close & is_own[order][1:]
    return touches


def _scan_visits(
    rng: np.random.Generator, latents: Latents, catalogue: Catalogue, course: Course, studies: Studies
) -> Part:
    """The CT itself, and what its own visit documents: each present condition with its fixed sensitivity."""
    scores_SL = latents.scores_NL[studies.subject_S][:, exam.VISIBLE]
    conditions = [(p.weights, p.sensitivity, _members(catalogue, p.code)) for p in PHENOTYPES if p.sensitivity]
    conditions += [
        (f.weights, f.sensitivity, np.flatnonzero(catalogue.disorder_family_C == index))
        for index, f in enumerate(FAMILIES)
        if f.sensitivity
    ]
    rows, days, codes = [studies.subject_S], [studies.day_S], [np.full(len(studies.day_S), CHEST_CT, object)]
    names = np.array(catalogue.codes, object)
    longest_S = np.maximum(course.end_N[studies.subject_S] - studies.day_S, 0)
    for weights, sensitivity, members in conditions:
        visible_L = weight_vector(weights)[exam.VISIBLE]
        present_S = scores_SL @ visible_L > exam.PRESENT * np.linalg.norm(visible_L)
        coded = np.flatnonzero(present_S & (rng.random(len(present_S)) < sensitivity))
        rows.append(studies.subject_S[coded])
        days.append(studies.day_S[coded] + np.minimum(rng.uniform(0.02, 0.5, len(coded)), longest_S[coded]))
        codes.append(names[rng.choice(members, len(coded))])
    return _part(np.concatenate(rows), np.concatenate(days), np.concatenate(codes))


def _members(catalogue: Catalogue, code: str) -> np.ndarray:
    return np.array([i for i, (c, up) in enumerate(zip(catalogue.codes, catalogue.parents)) if c == code or code in up])


def _life(rng: np.random.Generator, latents: Latents, course: Course) -> Part:
    """Birth, death (every third known by its date alone) and sex."""
    everyone = np.arange(len(course.end_N))
    dead = np.flatnonzero(course.died_N)
    sex = np.where(latents.female_N, "GENDER//F", "GENDER//M").astype(object)
    birth = -latents.age_years_N * YEAR_DAYS
    codes = np.concatenate(
        [np.full(len(everyone), "MEDS_BIRTH", object), sex, np.full(len(dead), "MEDS_DEATH", object)]
    )
    days = np.concatenate([birth, np.full(len(everyone), np.nan), course.end_N[dead]])
    date_only = np.concatenate(
        [np.ones(len(everyone), bool), np.zeros(len(everyone), bool), rng.random(len(dead)) < 1 / 3]
    )
    return _part(np.concatenate([everyone, everyone, dead]), days, codes, date_only=date_only)
