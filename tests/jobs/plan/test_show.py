"""jobs.prepare --plan: the numbers that the run then has, small cells hidden, nothing left behind."""

import json
import logging
from contextlib import redirect_stdout
from dataclasses import replace
from datetime import timedelta
from io import StringIO
from pathlib import Path

import numpy as np
import polars as pl
import pydicom
import pytest

from data.testing import settings, write_hospital
from jobs.plan.plan_table import publishable, table
from jobs.plan.show import disk_plan, least_count, require_room
from jobs.prepare import main
from ttepretrain.errors import ConfigError, ResourceError
from ttepretrain.log import log
from ttepretrain.splits import SPLITS
from ttepretrain.tasks import TaskSet
from ttepretrain.testing import random_task_set

LATE = timedelta(days=3, hours=1)
LEAST = 11
PHENOTYPES = "phenotypes:\n  finding: {codes: [TEST/A], horizons_days: [180]}\n"


@pytest.fixture(scope="module")
def hospital(tmp_path_factory):
    """Sixty studies: a subject without a record, an image that is not there, a row without a time; DICOM is late."""
    folder = tmp_path_factory.mktemp("hospital")
    studies = write_hospital(folder, 60)
    for image, time in studies.filter(~pl.col("image").str.ends_with(".nii.gz")).select("image", "study_time").rows():
        for file in (folder / image).iterdir():
            data = pydicom.dcmread(file)
            data.AcquisitionDateTime = f"{time + LATE:%Y%m%d%H%M%S}"
            data.save_as(file)
    (folder / "images" / "08.nii.gz").unlink()
    studies.with_columns(
        subject_id=pl.when(pl.col("study_id") == "ct-01").then(9).otherwise("subject_id"),
        study_time=pl.when(pl.col("study_id") != "ct-03").then("study_time"),
    ).write_parquet(folder / "studies.parquet")
    (folder / "run.yaml").write_text("name: run\n")
    (folder / "phenotypes.yaml").write_text(PHENOTYPES)
    return folder


def arguments(hospital, *more):
    phenotypes = f"ehr.phenotypes={hospital}/phenotypes.yaml"
    return [f"{hospital}/run.yaml", *more, *settings(hospital, phenotypes, f"ehr.min_patients={LEAST}")]


@pytest.fixture(scope="module")
def outcome(hospital, tmp_path_factory):
    """(numbers of the plan, what it printed, what the run after it logged, prepared folder)."""
    where, printed = tmp_path_factory.mktemp("where"), []
    for more in (("--plan", "--scans", "20", "--json", f"{where}/plan.json"), ()):
        with redirect_stdout(StringIO()) as out:
            handler = logging.StreamHandler(out)
            log.addHandler(handler)
            main([*arguments(hospital, *more), f"paths.root={where}/runs"])
            log.removeHandler(handler)
        printed.append(out.getvalue())
        if more:
            assert [path.name for path in where.iterdir()] == ["plan.json"]
    return json.loads((where / "plan.json").read_text()), *printed, where / "runs" / "run" / "prepared"


@pytest.mark.slow
def test_the_run_after_the_plan_has_its_numbers(outcome):
    plan, printed, _, prepared = outcome
    labels = pl.read_parquet(prepared / "labels.parquet")
    tasks = TaskSet.load(prepared / "tasks.json")
    assert plan["labels"]["tasks"] == tasks.num_tasks
    assert plan["labels"]["train_events_per_task"]["p50"] == pl.Series([t.events for t in tasks.tasks]).median()
    assert plan["labels"]["events"] == labels["event_days"].list.len().sum()
    assert plan["labels"]["follow_up_days"]["p50"] == labels["censor_days"].median()
    # one row has no time and one study no record, too few to show: they stand with the smallest split
    assert plan["rows"] == {"usable with BAD_ROW": 60}
    assert plan["images"] == {"found with NOT_FOUND with BAD_ROW": 60}
    labelled = {split: labels.filter(split=split).height for split in SPLITS}
    together = {"tuning with no record in the EHR with BAD_ROW": labelled.pop("tuning") + 2}
    assert plan["labels"]["studies"] == labelled | together
    rows = pl.read_parquet(prepared / "phenotypes.parquet").join(labels.select("study_id", "split"), on="study_id")
    half_a_year = next(row for row in plan["labels"]["phenotypes"] if row["horizon_days"] == 180)
    known = rows.filter(pl.col("horizon_days") == 180, pl.col("label").is_not_null(), split="train")
    share = pytest.approx(known.height / (36 - 1), abs=0.005)
    assert half_a_year["train"] == {"positive": known["label"].sum(), "known_share": share}

    cached = [prepared / path for path in pl.read_parquet(prepared / "volumes.parquet")["path"]]
    assert plan["volumes"]["images"] == 66  # the next multiple of 11 after 59
    assert plan["volumes"]["bytes"] == pytest.approx(sum(path.stat().st_size for path in cached), rel=0.2)
    others = sum(path.stat().st_size for path in prepared.iterdir() if path.is_file())
    assert others / 2 < plan["labels"]["bytes"] < 2 * others
    for line in (f"tasks      {tasks.num_tasks} of ", "20 of 20 scans usable", "more than a year", " at its peak, "):
        assert line in printed


@pytest.mark.slow
def test_scans_made_days_after_the_table_says_are_reported_and_their_times_kept_inside(outcome):
    """The twelve DICOM studies; NIfTI does not say when it was acquired."""
    _, _, printed, prepared = outcome
    assert "study_time is not when the scans were made: 100% of them more than a day off" in printed
    audit = json.loads((prepared / "summary.json").read_text())["acquisition_times"]
    assert (audit["studies"], audit["without_time"], audit["verdict"]) == (58, 46, "differ")
    assert audit["after_blackout"] == audit["over_a_day_later"] == 12
    times = pl.read_parquet(prepared / "acquisition_times.parquet").drop_nulls("acquired")
    assert times["offset_days"].to_list() == pytest.approx([LATE / timedelta(days=1)] * 12)
    assert "acquisition_times.parquet" in json.loads((prepared / "manifest.json").read_text())["files"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--plan", "--scans", "0"), "--scans must be at least 1; got 0"),
        (("--plan", "--json", "/nowhere/plan.json"), "--json: the folder /nowhere does not exist"),
        (("--plan", "paths.root=/dev/null"), "cannot be used"),
    ],
)
def test_a_wrong_option_is_named_before_anything_is_read(hospital, tmp_path, monkeypatch, more, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        main(arguments(hospital, *more))
    assert not list(tmp_path.iterdir())


def test_json_without_plan_is_a_usage_error(hospital, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments(hospital, "--json", "plan.json"))
    assert "--json belongs to --plan" in capsys.readouterr().err


def document(**labels):
    answer = {"known": 90, "positive": 40}
    row = {"phenotype": "p", "kind": "prognosis", "horizon_days": 30.0} | dict.fromkeys(SPLITS, answer)
    whole = {
        "left_out": {"NO_SUBJECT": 3, "OUTSIDE_OBSERVATION": 0, "NO_FOLLOW_UP": 0},
        "labelled": {"train": 500, "tuning": 90, "held_out": 200},
        "follow_up_days": {"p25": 1.0, "p50": 2.0, "p75": 3.0},
        "followed_over_a_year": 0.5,
        "tasks": 70,
        "train_events_per_task": {"p25": 20.0, "p50": 30.0, "p75": 40.0},
        "events": 10_000,
        "phenotypes": [row],
        "bytes": 10**6,
        "scratch_bytes": 10**7,
        "seconds": 1.0,
    }
    return {"rows": {"usable": 793, "repeated": 0}, "splits": {"train": 501}, "labels": whole | labels}


def test_few_people_are_neither_counted_nor_recoverable_by_a_difference():
    shown = publishable(document(), LEAST)["labels"]
    assert shown["studies"] == {"train": 500, "held_out": 200, "tuning with no record in the EHR": 93}
    left_out = {"NO_SUBJECT": 7, "NO_FOLLOW_UP": 8}
    shown = publishable(document(left_out=left_out), LEAST)["labels"]
    together = "tuning with no record in the EHR with no follow-up after the blackout"
    assert shown["studies"] == {"train": 500, "held_out": 200, together: 105}
    assert shown["phenotypes"][0]["train"] == {"positive": 40, "known_share": 0.18}
    nobody = {"train": 4, "tuning": 2, "held_out": 3}
    shown = publishable(document(labelled=nobody), LEAST)["labels"]
    assert set(shown["studies"].values()) == {12}
    assert shown["follow_up_days"] is None
    for positive, known in ((3, 90), (85, 90), (5, 8)):
        row = document()["labels"]["phenotypes"][0] | {"tuning": {"known": known, "positive": positive}}
        hidden = publishable(document(phenotypes=[row]), LEAST)
        assert hidden["labels"]["phenotypes"][0]["tuning"]["positive"] is None
        lines = "\n".join(table(hidden | {"disk": {"needed_bytes": 1, "free_bytes": 2}}, LEAST))
        assert "40, 18% known" in lines
        assert " < 11" in lines
    none = document()["labels"]["phenotypes"][0] | {"tuning": {"known": 90, "positive": 0}}
    assert publishable(document(phenotypes=[none]), LEAST)["labels"]["phenotypes"][0]["tuning"]["positive"] == 0


def test_few_unknown_answers_and_few_long_followed_are_not_shown_as_shares():
    row = document()["labels"]["phenotypes"][0] | {"train": {"known": 495, "positive": 40}}
    shown = publishable(document(phenotypes=[row], followed_over_a_year=4 / 790), LEAST)["labels"]
    assert shown["phenotypes"][0]["train"] == {"positive": 40, "known_share": None}
    assert shown["followed_over_a_year"] is None
    assert publishable(document(followed_over_a_year=395 / 790), LEAST)["labels"]["followed_over_a_year"] == 0.5


def test_few_rows_that_are_not_usable_stay_a_part_of_every_division():
    """Else the total of one would give them away: 793 usable of 796 rows."""
    rows = {"usable": 793, "repeated": 0, "BAD_ROW": 3}
    volumes = {"images": 791, "hours": 2.0, "bytes": 791_000}
    images = {"found": 780, "no image": 2, "NOT_FOUND": 11}
    shown = publishable(document() | {"rows": rows, "images": images, "volumes": volumes}, LEAST)
    assert shown["rows"] == {"usable with BAD_ROW": 796}
    for division in (shown["labels"]["studies"], shown["images"]):
        assert sum(division.values()) == 796
        assert any("BAD_ROW" in name and " with " in name for name in division)
    # neither the number of images nor what is computed from it
    assert shown["volumes"]["images"] == 792
    assert shown["volumes"]["hours"] == pytest.approx(2.0 * 792 / 791)
    assert disk_plan(shown, Path("nowhere"))["needed_bytes"] == 10**6 + 10**7


def test_the_threshold_is_never_below_that_of_an_earlier_task_set(tmp_path):
    tasks = random_task_set(np.random.default_rng(0), 3)
    replace(tasks, min_patients=20).save(tmp_path / "tasks.json")
    assert least_count(11, tmp_path, tmp_path / "nowhere") == 20
    assert least_count(30, tmp_path) == 30
    assert least_count(11) == 11


def test_a_file_system_without_room_is_exit_5_with_both_numbers(tmp_path):
    """Scratch and cache do not stand there at one time; what is in the folder already is replaced."""
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared" / "old").write_bytes(bytes(1000))
    small = disk_plan(document() | {"volumes": {"bytes": 3 * 10**7}}, tmp_path / "prepared")
    assert small["needed_bytes"] == 10**6 + 3 * 10**7
    require_room(small, tmp_path)
    large = disk_plan(document() | {"volumes": {"bytes": 2**60}}, tmp_path / "prepared")
    with pytest.raises(ResourceError, match=r"1,073,741,824.0 GiB are needed, [\d,.]+ GiB are free") as raised:
        require_room(large, tmp_path)
    assert raised.value.exit_code == 5


def test_a_small_difference_between_horizons_is_not_shown():
    """15 within 180 days and 20 within 365: five people had the event between them."""
    row = document()["labels"]["phenotypes"][0]
    rows = [
        row | {"horizon_days": days, "train": {"known": 500, "positive": positive}}
        for days, positive in ((30.0, 15), (180.0, 20), (365.0, 26), (None, 60))
    ]
    shown = publishable(document(phenotypes=rows), LEAST)["labels"]["phenotypes"]
    assert [answer["train"]["positive"] for answer in shown] == [15, None, 26, 60]
