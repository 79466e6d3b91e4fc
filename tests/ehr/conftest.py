"""Small MEDS data sets, and the plain-loop oracle."""

from __future__ import annotations

import dataclasses
import math
import random
import resource
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
import yaml

from data.testing import load_module
from ehr.build import LabelResult, build_labels
from ehr.config import EhrConfig
from ehr.schema import EVENTS, METADATA

PHENOTYPES = {
    "mortality": {"codes": ["MEDS_DEATH"], "horizons_days": [30, 365]},
    "readmission": {"codes": ["HOSPITAL_ADMISSION*"], "after_stay": True, "horizons_days": [30, 365]},
    "late": {"codes": ["V/b"], "start_days": 10, "horizons_days": [40]},
    "first": {"codes": ["V/a1"], "prevalent": "exclude", "death_before_horizon": "censored", "horizons_days": [90]},
    "any": {"codes": ["V/b"], "prevalent": "keep", "death_before_horizon": "negative", "horizons_days": [90]},
    "sign": {"codes": ["V/a1", "NOWHERE/1"], "kind": "diagnosis", "window_days": [-1, 1]},
}


def write_meds(folder: Path, shards: list[list[tuple]], parents: dict[str, list[str]] | None = None) -> Path:
    """A MEDS data set; a shard is a list of (subject, time or None, code)."""
    (folder / "data").mkdir(parents=True)
    for number, rows in enumerate(shards):
        pl.DataFrame(rows, schema=EVENTS, orient="row").write_parquet(folder / "data" / f"{number}.parquet")
    if parents is not None:
        (folder / "metadata").mkdir()
        rows = [(code, f"about {code}", above) for code, above in parents.items()]
        pl.DataFrame(rows, schema=METADATA, orient="row").write_parquet(folder / "metadata" / "codes.parquet")
    return folder


def studies_frame(rows: list[tuple]) -> pl.DataFrame:
    """Rows are (subject, time, split) or (subject, time, split, date_only); ids count up from s00."""
    return pl.DataFrame(
        [(f"s{i:02d}", row[0], row[1], row[3] if len(row) > 3 else False, row[2]) for i, row in enumerate(rows)],
        schema={
            "study_id": pl.String,
            "subject_id": pl.Int64,
            "study_time": pl.Datetime("us"),
            "date_only": pl.Boolean,
            "split": pl.String,
        },
        orient="row",
    )


@pytest.fixture
def label(tmp_path):
    """Function: (folder, studies, phenotypes, **EhrConfig fields) -> LabelResult, on the calling process alone."""

    def run(folder: Path, studies: pl.DataFrame, phenotypes: dict | None = None, **config) -> LabelResult:
        path = tmp_path / "phenotypes.yaml"
        path.write_text(yaml.safe_dump({"phenotypes": phenotypes or PHENOTYPES}))
        config = {"min_events": 1, "min_patients": 1, "phenotypes": str(path), **config}
        return build_labels(
            folder, None, studies, EhrConfig(**config), lambda f, xs: [f(x) for x in xs], {"hash": "", "count": 0}
        )

    return run


@pytest.fixture
def same_as_oracle():
    """Function: asserts that a LabelResult equals the plain loops on every study, task and phenotype."""
    oracle = load_module(Path(__file__).with_name("slow_labels.py"))

    def check(result: LabelResult, folder: Path, studies: pl.DataFrame, phenotypes: dict, **config) -> None:
        settings = dataclasses.asdict(EhrConfig(**config))
        compare_all(result, oracle.slow_labels(folder, studies.to_dicts(), phenotypes, settings), studies)

    return check


def compare_all(result: LabelResult, expected: dict, studies: pl.DataFrame) -> None:
    """Asserts that every study, task and phenotype is as the oracle says."""
    compare_tasks(result, expected)
    codes = result.tasks.codes
    assert result.labels["study_id"].to_list() == [i for i in studies["study_id"] if i in expected["rows"]]
    for row in result.labels.iter_rows(named=True):
        slow = expected["rows"][row["study_id"]]
        assert row["censor_days"] == slow["censor"]
        events = dict(zip((codes[k] for k in row["task_index"]), row["event_days"]))
        assert events == {code: days for code, days in slow["events"].items() if code in codes}
        assert row["history_index"] == [k for k, code in enumerate(codes) if code in slow["history"]]
        assert row["visit_index"] == [k for k, code in enumerate(codes) if code in slow["visit"]]
        assert row["task_index"] == sorted(row["task_index"])
    for row in result.covariates.iter_rows(named=True):
        assert row["past_codes"] == sorted(expected["rows"][row["study_id"]]["past"])
        assert {"age": row["age_years"], "sex": row["sex"]} == expected["people"][row["study_id"]]
    compare_phenotypes(result, expected["phenotypes"])


def compare_tasks(result: LabelResult, expected: dict) -> None:
    assert list(result.tasks.codes) == [task["code"] for task in expected["tasks"]]
    assert result.tasks.bin_edges_days == pytest.approx(tuple(expected["edges"]), rel=1e-12)
    for task, slow in zip(result.tasks.tasks, expected["tasks"]):
        assert (task.events, task.patients) == (slow["events"], slow["patients"])
        assert task.prevalence == pytest.approx(slow["prevalence"], rel=1e-12)
        assert task.rate_per_day == pytest.approx(slow["rate"], rel=1e-9)
        if task.code != "MEDS_DEATH":
            assert task.score == pytest.approx(slow["score"], abs=1e-11)
    death = [k for k, code in enumerate(result.tasks.codes) if code == "MEDS_DEATH"]
    assert result.tasks.death_task == (death[0] if death else None)


def compare_phenotypes(result: LabelResult, expected: dict) -> None:
    keys = result.phenotypes.select("study_id", "phenotype", "horizon_days").rows()
    assert len(set(keys)) == len(keys)
    assert set(keys) == set(expected)
    for key, row in zip(keys, result.phenotypes.iter_rows(named=True)):
        slow = expected[key]
        assert (row["kind"], row["event"], row["competing"], row["time_days"], row["label"]) == (
            slow["kind"], slow["event"], slow["competing"], slow["time"], slow["label"],
        ), key  # fmt: skip


PARENTS = {
    "V/a": ["V/root"], "V/a1": ["V/a"], "V/a2": ["V/a", "ATC/x"], "V/b": ["V/root"], "V/b1": ["V/b"],
    "ATC/x": ["ATC/y"], "ATC/y": ["V/top"], "V/root": ["V/top"],
    "V/loop1": ["V/loop2"], "V/loop2": ["V/loop1", "V/b"],
}  # fmt: skip
CODES = ["V/a1", "V/a2", "V/b", "V/b1", "V/loop1", "ATC/x", "LAB//7//mg", "LAB//8"]


def random_subject(rng: random.Random, subject: int) -> tuple[list[tuple], list[tuple]]:
    """Events and scans made to collide: bare dates, ties with t0 and its blackout, deaths, stays, copies."""
    pick, day0 = rng.choice, datetime(2150, 1, 1) + timedelta(days=rng.randrange(300))

    def moment(days: int, **rest: int) -> datetime:
        return day0 + timedelta(days=days, **rest)

    scans = [moment(rng.randrange(60), minutes=pick([0, 0, 601, 1439])) for _ in range(pick([1, 1, 3]))]
    rows = [
        (subject, moment(-rng.randrange(9000, 30000)), "MEDS_BIRTH"),
        (subject, None, pick(["GENDER//F", "SEX//MALE"])),
    ]
    times = [moment(rng.randrange(-200, 400), seconds=pick([0, 0, 36060])) for _ in range(rng.randrange(40))]
    near = [timedelta(days=pick([-1, 0, 1, 2]), microseconds=pick([-1, 0, 0, 1])) for _ in range(8)]
    times += [pick(scans) + delta for delta in near]
    rows += [(subject, time, pick(CODES)) for time in times]
    for scan in scans[:2]:
        entry = scan - timedelta(hours=pick([1, 30, 500]))
        rows.append((subject, entry, "HOSPITAL_ADMISSION//EW//ER"))
        if rng.random() < 0.8:
            rows.append((subject, entry + timedelta(days=pick([0, 1, 4, 40])), "HOSPITAL_DISCHARGE//HOME"))
    if rng.random() < 0.5:
        death = moment(pick([0, 30, 61, 200]), hours=pick([0, 0, 5]))
        rows += [(subject, death, "MEDS_DEATH"), (subject, death + timedelta(days=pick([0, 1, 9])), pick(CODES))]
    split = pick(["train", "train", "tuning", "held_out"])
    studies = [(subject, scan, split, scan.time() == datetime.min.time() and rng.random() < 0.7) for scan in scans]
    return rows + rng.sample(rows, min(len(rows), 5)), studies


def random_records(seed: int, num_subjects: int = 14) -> tuple[list[tuple], pl.DataFrame, dict[str, list[str]]]:
    """Events, studies and parents; the last subject has studies and no record."""
    rng = random.Random(seed)
    people = [random_subject(rng, subject) for subject in range(1, num_subjects + 1)]
    rows = [row for events, _ in people[:-1] for row in events]
    rng.shuffle(rows)
    return rows, studies_frame([study for _, studies in people for study in studies]), PARENTS


def equal_results(one: LabelResult, other: LabelResult) -> bool:
    """Same tasks, labels, covariates and phenotypes, to the last bit."""
    frames = all(getattr(one, n).equals(getattr(other, n)) for n in ("labels", "covariates", "phenotypes"))
    one_tasks, other_tasks = ([dataclasses.astuple(t) for t in r.tasks.tasks] for r in (one, other))
    same = [tuple(None if isinstance(v, float) and math.isnan(v) else v for v in t) for t in one_tasks] == [
        tuple(None if isinstance(v, float) and math.isnan(v) else v for v in t) for t in other_tasks
    ]
    return frames and same and one.tasks.bin_edges_days == other.tasks.bin_edges_days


@pytest.fixture
def meds():
    """The helpers above, for test modules that cannot import a conftest."""

    class Helpers:
        write = staticmethod(write_meds)
        studies = staticmethod(studies_frame)
        random = staticmethod(random_records)
        same = staticmethod(equal_results)
        phenotypes = PHENOTYPES
        oracle = load_module(Path(__file__).with_name("slow_labels.py"))

    return Helpers


@pytest.fixture
def full_disk():
    """full_disk(n): no file of this process can grow beyond n bytes, as on a full disk, until the test ends."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
