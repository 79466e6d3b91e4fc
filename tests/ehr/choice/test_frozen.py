"""A frozen task set: the same tasks and bins for other studies, and what must not be mixed with it."""

import dataclasses
from datetime import datetime, timedelta

import polars as pl
import pytest

from ehr.config import EhrConfig
from ttepretrain.errors import ConfigError, IntegrityError

T0, DAY = datetime(2150, 1, 1, 9), timedelta(days=1)


@pytest.fixture
def archive(tmp_path, meds, label):
    """(folder, studies, result fitted on them, its tasks.json)."""
    rows, studies, parents = meds.random(11)
    folder = meds.write(tmp_path / "ehr", [rows], parents)
    fitted = label(folder, studies, num_tasks=9)
    fitted.tasks.save(tmp_path / "tasks.json")
    return folder, studies, fitted, tmp_path / "tasks.json"


def test_labels_under_the_frozen_tasks_are_those_they_were_fitted_with(archive, label, meds):
    """Whatever the fitting keys say now; fitted_on stays as it was."""
    folder, studies, fitted, path = archive
    again = label(folder, studies, tasks=str(path), num_tasks=2, num_bins=3, min_events=5, min_patients=5)
    assert meds.same(again, fitted)
    assert again.tasks.fitted_on == fitted.tasks.fitted_on
    assert again.counts["tasks"] == {
        "frozen": fitted.tasks.num_tasks, "not_in_the_data": 0, "would_be_excluded": 0,
        "tasks": fitted.tasks.num_tasks,
    }  # fmt: skip


@pytest.mark.parametrize("parts", [2, 5])
def test_a_study_table_in_parts_gives_the_labels_of_the_whole(archive, label, parts):
    """New studies join an archive: nothing of theirs depends on who else is in the table. Some parts hold no train."""
    folder, studies, fitted, path = archive
    cut = [studies[n::parts] for n in range(parts)]
    results = [label(folder, part, tasks=str(path)) for part in cut]

    def written(result, name):
        """As in the file: the categories of the codes are those of a run."""
        frame = getattr(result, name)
        return frame.cast({"past_codes": pl.List(pl.String)}) if name == "covariates" else frame

    for name, key in (("labels", "study_id"), ("covariates", "study_id"), ("phenotypes", ["study_id", "phenotype"])):
        together = pl.concat([written(result, name) for result in results]).sort(key, maintain_order=True)
        assert together.equals(written(fitted, name).sort(key, maintain_order=True)), name
    assert all(result.tasks.codes == fitted.tasks.codes for result in results)


def test_splits_of_the_new_studies_change_nothing(archive, label):
    """Not even without a train study."""
    folder, studies, fitted, path = archive
    result = label(folder, studies.with_columns(split=pl.lit("held_out")), tasks=str(path))
    assert result.labels.drop("split").equals(fitted.labels.drop("split"))
    assert result.tasks.bin_edges_days == fitted.tasks.bin_edges_days


def test_codes_that_the_data_do_not_hold_are_counted_and_a_descendant_holds_its_ancestor(tmp_path, meds, label):
    """Fitted where V/x, V/y and V/a exist; the new extract has only V/a1 below V/a, and no death."""
    first = [(s, T0 + (5 + s) * DAY, f"V/{c}") for s, c in ((1, "x"), (2, "y"), (3, "a"), (3, "x"))]
    first += [(s, T0 + 90 * DAY, "V/end") for s in (1, 2, 3)] + [(1, T0 + 95 * DAY, "MEDS_DEATH")]
    studies = meds.studies([(s, T0, "train") for s in (1, 2, 3)])
    nothing = {"p": {"codes": ["V/none"]}}
    fitted = label(meds.write(tmp_path / "first", [first]), studies, nothing, exclude=["V/end"])
    fitted.tasks.save(tmp_path / "tasks.json")
    assert set(fitted.tasks.codes) == {"MEDS_DEATH", "V/x", "V/y", "V/a"}

    second = [(8, T0 + 7 * DAY, "V/a1"), (8, T0 + 30 * DAY, "V/end")]
    folder = meds.write(tmp_path / "second", [second], {"V/a1": ["V/a"]})
    result = label(folder, meds.studies([(8, T0, "held_out")]), nothing, tasks=str(tmp_path / "tasks.json"))
    assert result.counts["tasks"]["not_in_the_data"] == 3
    row = result.labels.row(0, named=True)
    assert dict(zip(row["task_index"], row["event_days"])) == {fitted.tasks.codes.index("V/a"): 7.0}
    assert result.tasks.codes == fitted.tasks.codes
    assert result.tasks.death_task == 0


def test_tasks_that_the_run_would_exclude_stay_with_a_warning(archive, label, caplog):
    folder, studies, fitted, path = archive
    told = fitted.tasks.codes[-1]
    result = label(folder, studies, {"p": {"codes": [told, "MEDS_DEATH"]}}, tasks=str(path))
    assert result.tasks.codes == fitted.tasks.codes
    assert result.counts["tasks"]["would_be_excluded"] >= 1
    assert "ehr.tasks:" in caplog.text
    assert "would not be chosen now" in caplog.text


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"blackout_days": 2.0}, r"ehr\.blackout_days is 2\.0, but .* fitted with 1\.0; set ehr\.blackout_days=1\.0"),
        ({"recurrence": "incident"}, r"ehr\.recurrence is incident, but .* set ehr\.recurrence=all"),
    ],
)
def test_a_conflict_with_what_the_set_was_fitted_under_is_named(archive, label, config, message):
    folder, studies, _, path = archive
    with pytest.raises(ConfigError, match=message):
        label(folder, studies, tasks=str(path), **config)


def test_a_kind_of_death_is_no_frozen_task(archive, label, tmp_path):
    """MEDS_DEATH//x is read as MEDS_DEATH: a task of that name would never have an event."""
    folder, studies, fitted, _ = archive
    first, *others = fitted.tasks.tasks
    tasks = (dataclasses.replace(first, code="MEDS_DEATH//hospice"), *others)
    dataclasses.replace(fitted.tasks, tasks=tasks, death_task=None).save(tmp_path / "kinds.json")
    with pytest.raises(ConfigError, match=r"ehr\.tasks has no events of its own: every MEDS_DEATH//\.\.\. is read as"):
        label(folder, studies, tasks=str(tmp_path / "kinds.json"))


@pytest.mark.parametrize("recurrence", ["all", "incident"])
def test_a_death_without_a_date_is_no_event_of_a_frozen_death_task(tmp_path, meds, label, recurrence):
    """Follow-up ends with the last record, also where the rule goes on; others die as before."""
    rows = [(s, T0 + (5 + s + 10 * k) * DAY, f"Q/{k % (s % 2 + 1)}") for s in range(1, 9) for k in range(3)]
    dated = [(s, T0 + 50 * DAY, "MEDS_DEATH") for s in (1, 2)]
    studies = meds.studies([(s, T0, "train") for s in range(1, 9)])
    rules = {"recurrence": recurrence, "followup": "death", "min_events": 1, "min_patients": 1}
    fitted = label(meds.write(tmp_path / "one", [rows + dated]), studies, **rules)
    fitted.tasks.save(tmp_path / "tasks.json")
    undated = [(1, None, "MEDS_DEATH"), dated[1]]
    found = label(meds.write(tmp_path / "two", [rows + undated]), studies, tasks=str(tmp_path / "tasks.json"), **rules)
    death = fitted.tasks.death_task
    died = {row["subject_id"]: death in row["task_index"] for row in found.labels.iter_rows(named=True)}
    assert died == {subject: subject == 2 for subject in range(1, 9)}
    assert dict(found.labels.select("subject_id", "censor_days").rows())[1] == 26
    assert found.counts["subjects"]["undated_deaths"] == 1


def test_pruning_has_no_place_beside_a_frozen_set():
    with pytest.raises(ConfigError, match=r"ehr\.max_task_overlap has no use beside ehr\.tasks"):
        EhrConfig(tasks="tasks.json", max_task_overlap=0.9)


def test_a_damaged_set_is_an_integrity_error(archive, label):
    folder, studies, _, path = archive
    path.write_text(path.read_text()[:-9])
    with pytest.raises(IntegrityError, match="not a task set"):
        label(folder, studies, tasks=str(path))
