"""Files of the label stage for people and for other programs: task list, picture, MEDS label files."""

import csv
import dataclasses
import io
import sys

import numpy as np
import polars as pl
import pyarrow.parquet as parquet
import pytest
from meds import LabelSchema

from data.labels.label_files import task_csv
from data.labels.meds_labels import write_meds_labels
from data.labels.task_figure import draw_tasks
from ehr.choice.bins import EventTimes
from ehr.schema import PHENOTYPES
from ttepretrain.tasks import Task, TaskSet

TASKS = TaskSet(
    tasks=(
        Task("MEDS_DEATH", "", 0.2, np.nan, 30, 31, 0.0001),
        Task("V/b", 'said "b",\nthen more', 0.5, -0.69, 90, 120, 0.002),
        Task("V/a", "a", 0.1, -0.325, 11, 20, 1 / 3),
    ),
    bin_edges_days=(0.0, 10.0, 90.5, np.inf),
    blackout_days=1.0,
    recurrence="all",
    death_task=0,
    fitted_on={"hash": "", "count": 100},
)


def test_tasks_csv_is_one_line_per_task_in_task_order_and_loses_no_digit():
    rows = list(csv.DictReader(io.StringIO(task_csv(TASKS))))
    assert list(rows[0]) == ["code", "description", "prevalence", "score", "events", "patients", "rate_per_day"]
    assert [row["code"] for row in rows] == ["MEDS_DEATH", "V/b", "V/a"]
    assert [row["score"] for row in rows] == ["", "-0.69", "-0.325"]
    assert rows[1]["description"] == 'said "b",\nthen more'
    assert float(rows[2]["rate_per_day"]) == 1 / 3
    assert (rows[1]["events"], rows[1]["patients"]) == ("120", "90")


def test_the_picture_is_a_png_and_the_same_twice():
    times = EventTimes([np.random.default_rng(0).exponential(100, 500) + 1])
    picture = draw_tasks(TASKS, times)
    assert picture.startswith(b"\x89PNG")
    assert picture == draw_tasks(TASKS, times)


def test_the_picture_of_a_frozen_set_says_that_it_was_fitted_elsewhere():
    times = EventTimes([np.array([7.0, 30.0])])
    assert draw_tasks(TASKS, times, frozen=True) != draw_tasks(TASKS, times)


@pytest.mark.parametrize("days", [np.array([]), np.array([7.0])])
def test_few_tasks_and_few_events_are_drawn_too(days):
    death = dataclasses.replace(TASKS, tasks=TASKS.tasks[:1], bin_edges_days=(0.0, np.inf))
    assert draw_tasks(death, EventTimes([days])).startswith(b"\x89PNG")


def test_without_matplotlib_there_is_no_picture(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert draw_tasks(TASKS, EventTimes([np.array([7.0])])) is None


@pytest.fixture
def labelled():
    """Phenotypes of four studies of three subjects, and the studies; d has no labels, a diagnosis alone."""
    phenotypes = [
        ("a", "edema", "prognosis", 30.0, False, True, False, 40.0),
        ("b", "edema", "prognosis", 30.0, None, False, False, 9.0),  # censored
        ("c", "edema", "prognosis", 30.0, True, True, False, 2.0),
        ("a", "edema", "prognosis", 0.5, False, True, False, 40.0),
        ("a", "edema", "prognosis", None, True, True, False, 40.0),
        ("a", "embolism", "diagnosis", None, True, True, False, None),
        ("d", "embolism", "diagnosis", None, False, False, False, None),
        ("b", "stroke", "prognosis", 365.0, None, False, False, 9.0),
    ]
    studies = pl.DataFrame({"study_id": ["a", "b", "c", "d"], "subject_id": [1, 1, 2, 3]}).with_columns(
        study_time=pl.datetime(2150, 1, pl.int_range(1, pl.len() + 1), 9, 30).cast(pl.Datetime("us"))
    )
    return pl.DataFrame(phenotypes, schema=PHENOTYPES, orient="row"), studies


def test_meds_label_files_follow_the_schema_and_leave_censored_studies_out(tmp_path, labelled):
    names = write_meds_labels(tmp_path, *labelled)
    assert names == [
        "labels_meds/edema/0.5d.parquet", "labels_meds/edema/30d.parquet", "labels_meds/embolism/diagnosis.parquet",
        "labels_meds/stroke/365d.parquet",
    ]  # fmt: skip
    tables = {name: parquet.read_table(tmp_path / name) for name in names}
    for table in tables.values():
        LabelSchema.validate(table)
    edema = tables["labels_meds/edema/30d.parquet"].to_pydict()
    assert (edema["subject_id"], edema["boolean_value"]) == ([1, 2], [False, True])
    assert [time.isoformat() for time in edema["prediction_time"]] == ["2150-01-01T09:30:00", "2150-01-03T09:30:00"]
    assert tables["labels_meds/embolism/diagnosis.parquet"].to_pydict()["boolean_value"] == [True, False]
    assert len(tables["labels_meds/stroke/365d.parquet"]) == 0  # all censored


def test_label_files_of_an_earlier_run_do_not_stay(tmp_path, labelled):
    phenotypes, studies = labelled
    write_meds_labels(tmp_path, phenotypes, studies)
    names = write_meds_labels(tmp_path, phenotypes.filter(phenotype="embolism"), studies)
    found = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.parquet")]
    assert found == names == ["labels_meds/embolism/diagnosis.parquet"]
