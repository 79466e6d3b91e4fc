"""TaskSet: exact JSON round trip, and what it refuses."""

import dataclasses
import hashlib
import json
import math

import numpy as np
import pytest

from ttepretrain.errors import IntegrityError
from ttepretrain.tasks import TaskSet
from ttepretrain.testing import random_task_set


@pytest.fixture
def tasks() -> TaskSet:
    tasks = random_task_set(np.random.default_rng(0), 4, (0.0, 12.3456789012345, math.inf), 0.1 + 0.2, "incident")
    pinned = dataclasses.replace(tasks.tasks[3], score=math.nan, description="décès & ß")
    return dataclasses.replace(tasks, tasks=(*tasks.tasks[:3], pinned), min_patients=11)


def test_a_saved_task_set_loads_equal_to_the_last_bit(tasks, tmp_path):
    tasks.save(tmp_path / "tasks.json")
    again = TaskSet.load(tmp_path / "tasks.json")
    assert again.bin_edges_days == tasks.bin_edges_days
    assert again.blackout_days == 0.1 + 0.2
    assert (again.recurrence, again.death_task, again.fitted_on) == ("incident", 3, tasks.fitted_on)
    assert again.min_patients == 11
    assert again.tasks[:3] == tasks.tasks[:3]
    assert math.isnan(again.tasks[3].score)
    assert dataclasses.replace(again.tasks[3], score=0) == dataclasses.replace(tasks.tasks[3], score=0)
    again.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "tasks.json").read_bytes()


def test_the_file_is_plain_json_with_days_and_null_for_infinity(tasks, tmp_path):
    tasks.save(tmp_path / "tasks.json")
    document = json.loads((tmp_path / "tasks.json").read_text(), parse_constant=pytest.fail)
    assert list(document) == [
        "schema_version", "time_unit", "bin_edges_days", "blackout_days", "recurrence", "death_task", "tasks",
        "min_patients", "fitted_on",
    ]  # fmt: skip
    assert document["time_unit"] == "day"
    assert document["bin_edges_days"] == [0.0, 12.3456789012345, None]
    assert set(document["tasks"][0]) == {
        "code", "description", "prevalence", "score", "patients", "events", "rate_per_day"
    }  # fmt: skip
    assert document["tasks"][3]["score"] is None


def test_sizes_count_tasks_and_bins(tasks):
    assert (tasks.num_tasks, tasks.num_bins) == (4, 2)
    assert tasks.codes == ("TEST/0", "TEST/1", "TEST/2", "MEDS_DEATH")


@pytest.mark.parametrize(
    "edges", [(0.0,), (1.0, math.inf), (0.0, 5.0), (0.0, 5.0, 5.0, math.inf), (0.0, 9.0, 5.0, math.inf)]
)
def test_edges_must_increase_from_zero_to_infinity(tasks, edges):
    with pytest.raises(ValueError, match="bin_edges_days must increase from 0 to infinity; got"):
        dataclasses.replace(tasks, bin_edges_days=edges)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("recurrence", "first"),
        ("death_task", 4),
        ("death_task", -1),
        ("blackout_days", -5.0),
        ("blackout_days", math.nan),
        ("min_patients", 0),
    ],
)
def test_unknown_recurrence_a_death_task_outside_the_list_and_a_blackout_that_is_none_are_refused(tasks, field, value):
    with pytest.raises(ValueError, match=f"{field} must be .*; got '?{value}"):
        dataclasses.replace(tasks, **{field: value})


def test_a_file_from_before_the_threshold_was_stored_loads_without_one(tasks, tmp_path):
    tasks.save(tmp_path / "tasks.json")
    document = json.loads((tmp_path / "tasks.json").read_text())
    del document["min_patients"]
    (tmp_path / "tasks.json").write_text(json.dumps(document))
    assert TaskSet.load(tmp_path / "tasks.json").min_patients is None


@pytest.mark.parametrize(("stored", "configured", "kept"), [(None, 5, 5), (11, 5, 11), (11, 20, 20), (11, 11, 11)])
def test_the_stricter_of_two_thresholds_is_kept(tasks, stored, configured, kept):
    assert dataclasses.replace(tasks, min_patients=stored).least_patients(configured) == kept


def test_another_schema_version_is_refused(tasks, tmp_path):
    tasks.save(tmp_path / "tasks.json")
    text = (tmp_path / "tasks.json").read_text().replace('"schema_version": 1', '"schema_version": 7')
    (tmp_path / "tasks.json").write_text(text)
    with pytest.raises(IntegrityError, match="schema_version 7, this release reads 1"):
        TaskSet.load(tmp_path / "tasks.json")


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"schema_version": 1}', "\x00", "[" * 100_000])
def test_a_malformed_file_is_an_integrity_error_with_the_remedy(tmp_path, text):
    (tmp_path / "tasks.json").write_text(text)
    with pytest.raises(IntegrityError, match=r"not a task set: .*; write it again with jobs.prepare"):
        TaskSet.load(tmp_path / "tasks.json")


def test_the_small_cell_threshold_does_not_change_what_a_run_is(tasks, tmp_path):
    """An old run resumes after its folder is prepared again: the digest is that of a file without the threshold."""
    assert dataclasses.replace(tasks, min_patients=None).digest == tasks.digest
    assert dataclasses.replace(tasks, recurrence="all").digest != tasks.digest
    tasks.save(tmp_path / "tasks.json")
    older = (tmp_path / "tasks.json").read_text().replace(' "min_patients": 11,\n', "")
    assert tasks.digest == hashlib.sha256(older.encode()).hexdigest()
