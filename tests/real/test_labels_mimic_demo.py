"""Labels of the MIMIC-IV demo (MEDS 0.3) against plain loops.

The demo has no scans: study times are taken from the records, five hours into every admission, and for every third
admission the bare date of the admission.
"""

from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest
import yaml

from data.testing import load_module
from ehr.build import build_labels
from ehr.config import EhrConfig


@pytest.fixture(scope="module")
def demo(fixtures) -> Path:
    folder = fixtures / "ehr_meds_mimic4demo" / "MIMIC-IV-DEMO-MEDS"
    if not folder.is_dir():
        pytest.skip(f"no MIMIC-IV demo: {folder} does not exist")
    return folder


@pytest.fixture(scope="module")
def studies(demo) -> pl.DataFrame:
    events = pl.scan_parquet(demo / "data" / "**" / "*.parquet").select("subject_id", "time", "code").collect()
    entries = events.filter(pl.col("code").str.starts_with("HOSPITAL_ADMISSION")).unique().sort("subject_id", "time")
    splits = pl.read_parquet(demo / "metadata" / "subject_splits.parquet")
    table = entries.join(splits, on="subject_id", maintain_order="left")

    bare = pl.int_range(pl.len()) % 3 == 0
    time = pl.when(bare).then(pl.col("time").dt.truncate("1d")).otherwise(pl.col("time") + timedelta(hours=5))
    table = table.with_columns(study_time=time, date_only=bare).with_row_index("number")
    return table.select(pl.format("s{}", "number").alias("study_id"), "subject_id", "study_time", "date_only", "split")


@pytest.fixture(scope="module")
def oracle():
    return load_module(Path(__file__).parents[1] / "ehr" / "slow_labels.py")


@pytest.mark.parametrize("recurrence", ["all", "incident"])
def test_every_study_and_task_of_the_mimic_demo_equals_plain_loops(demo, studies, oracle, repository, recurrence):
    path = repository / "configs" / "phenotypes" / "icd_mimic.yaml"
    settings = {"recurrence": recurrence, "num_tasks": 800, "min_events": 5, "min_patients": 5}
    config = EhrConfig(phenotypes=str(path), **settings)
    result = build_labels(demo, None, studies, config, lambda f, xs: [f(x) for x in xs], {"hash": "", "count": 80})
    phenotypes = yaml.safe_load(path.read_text())["phenotypes"]
    slow = oracle.slow_labels(demo, studies.to_dicts(), phenotypes, vars(config))

    codes = result.tasks.codes
    assert list(codes) == [task["code"] for task in slow["tasks"]]
    assert len(codes) == 801
    for task, expected in zip(result.tasks.tasks[1:], slow["tasks"][1:]):
        assert task.score == pytest.approx(expected["score"], abs=1e-11)
        assert task.rate_per_day == pytest.approx(expected["rate"], rel=1e-9)

    assert result.tasks.bin_edges_days == pytest.approx(tuple(slow["edges"]), rel=1e-12)
    assert result.labels["study_id"].to_list() == [i for i in studies["study_id"] if i in slow["rows"]]
    for row, person in zip(result.labels.iter_rows(named=True), result.covariates.iter_rows(named=True)):
        expected = slow["rows"][row["study_id"]]
        assert row["censor_days"] == expected["censor"]
        events = dict(zip((codes[k] for k in row["task_index"]), row["event_days"]))
        assert events == {c: days for c, days in expected["events"].items() if c in set(codes)}
        assert row["history_index"] == [k for k, c in enumerate(codes) if c in expected["history"]]
        assert row["visit_index"] == [k for k, c in enumerate(codes) if c in expected["visit"]]
        assert person["past_codes"] == sorted(expected["past"])
    found = {(r["study_id"], r["phenotype"], r["horizon_days"]): r for r in result.phenotypes.iter_rows(named=True)}
    assert set(found) == set(slow["phenotypes"])
    for key, expected in slow["phenotypes"].items():
        got = found[key]
        assert (got["event"], got["competing"], got["time_days"], got["label"]) == (
            expected["event"], expected["competing"], expected["time"], expected["label"],
        )  # fmt: skip


def test_dirt_of_the_demo_is_counted(demo, studies, repository):
    """626 events after death, and the codes of the phenotype file that the demo does not hold."""
    config = EhrConfig(phenotypes=str(repository / "configs/phenotypes/icd_mimic.yaml"))
    result = build_labels(demo, None, studies, config, lambda f, xs: [f(x) for x in xs], {"hash": "", "count": 80})
    counts = result.counts
    stays = ("TRANSFER_TO//admit", "TRANSFER_TO//discharge", "DRG//", "HOSPITAL_")
    assert not [code for code in result.tasks.codes if code.startswith(stays)]

    assert counts["events"]["rows"] == 916_166
    assert counts["events"]["after_death"] == 626
    # every patient's dates are shifted: nothing lies after the extract's end
    assert counts["subjects"] == {
        "deaths": 31, "undated_deaths": 0, "several_deaths": 0, "several_births": 0, "death_before_birth": 0,
        "long_after_death": 0, "after_extract": 0,
    }  # fmt: skip
    assert (counts["studies"]["capped"], counts["studies"]["impossible_age"]) == (0, 0)
    assert counts["codes"]["undescribed"] == 4374
    assert counts["phenotypes_unmatched"] == {
        "cardiomegaly": ["DIAGNOSIS//ICD//10//I517"],
        "pleural_effusion": ["DIAGNOSIS//ICD//9//5111*"],
    }
