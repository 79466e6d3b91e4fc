"""Frozen tasks must not have been fitted on subjects that are held out now."""

import dataclasses

import numpy as np
import polars as pl
import pytest

from data.subjects.keys import fitted_on, key_table
from data.subjects.leakage import check_frozen_tasks, check_leakage
from ttepretrain.errors import LeakageError
from ttepretrain.tasks import Task, TaskSet

OLD_SALT, NEW_SALT = bytes(32), bytes(range(32))
TASKS = TaskSet((Task("V/a", "", 0.5, -0.6, 20, 20, 0.1),), (0.0, np.inf), 1.0, "all", None, {})


def write_prepared(folder, salt, **splits: list[int]):
    """keys.parquet and salt of a prepared folder; returns what fits to its train subjects."""
    folder.mkdir(parents=True)
    rows = [(f"{split}{s}", s, split) for split, subjects in splits.items() for s in subjects]
    keys = key_table(salt, pl.DataFrame(rows, schema=["study_id", "subject_id", "split"], orient="row"))
    keys.write_parquet(folder / "keys.parquet")
    (folder / "salt").write_bytes(salt)
    return fitted_on(salt, splits["train"])


@pytest.fixture
def old(tmp_path):
    """prepared/ of the first studies, with the tasks fitted on its train subjects 1, 2, 3."""
    fit = write_prepared(tmp_path / "old", OLD_SALT, train=[1, 2, 3], held_out=[4])
    dataclasses.replace(TASKS, fitted_on=fit).save(tmp_path / "old" / "tasks.json")
    return tmp_path / "old" / "tasks.json"


def write_run(folder, tasks, salt, train: list[int]):
    """A pretraining run: its subjects and its export's task set."""
    (folder / "export").mkdir(parents=True)
    table = pl.DataFrame({"study_id": [str(s) for s in train], "subject_id": train, "split": "train"})
    key_table(salt, table).select("subject_key", "split").write_parquet(folder / "subjects.parquet")
    (folder / "export" / "tasks.json").write_bytes(tasks.read_bytes())
    return folder / "export" / "tasks.json"


def test_more_studies_of_the_archive_may_join_every_split(tmp_path, old):
    """Another salt does not matter: both folders hold the ids."""
    now = write_prepared(tmp_path / "new", NEW_SALT, train=[1, 2, 3, 5], tuning=[6], held_out=[4, 7])
    assert check_frozen_tasks(tmp_path / "new", old, now) == "checked"


def test_the_same_train_subjects_need_no_other_file(tmp_path, old):
    now = write_prepared(tmp_path / "new", OLD_SALT, train=[3, 2, 1], held_out=[7])
    (old.parent / "keys.parquet").unlink()
    assert check_frozen_tasks(tmp_path / "new", old, now) == "same"


def test_a_held_out_subject_that_the_tasks_were_fitted_on_is_refused(tmp_path, old):
    now = write_prepared(tmp_path / "new", NEW_SALT, train=[1, 5], held_out=[2, 3, 4])
    with pytest.raises(LeakageError, match=r"ehr\.tasks: 2 held-out subjects are among those its tasks") as raised:
        check_frozen_tasks(tmp_path / "new", old, now)
    assert raised.value.exit_code == 7


@pytest.mark.parametrize(("held_out", "refused"), [([4, 7], False), ([3], True)])
def test_an_export_is_checked_by_the_subjects_of_its_run(tmp_path, old, held_out, refused):
    now = write_prepared(tmp_path / "new", OLD_SALT, train=[1, 2], held_out=held_out)
    tasks = write_run(tmp_path / "run", old, OLD_SALT, [1, 2, 3])
    if refused:
        with pytest.raises(LeakageError, match="1 held-out subjects"):
            check_frozen_tasks(tmp_path / "new", tasks, now)
    else:
        assert check_frozen_tasks(tmp_path / "new", tasks, now) == "checked"


def test_what_cannot_be_compared_is_unknown(tmp_path, old):
    """A lone file; a run under another salt; a run that trained on fewer; a folder whose tasks came from elsewhere."""
    now = write_prepared(tmp_path / "new", NEW_SALT, train=[1, 2], held_out=[7])
    lone = tmp_path / "lone" / "deep" / "tasks.json"
    lone.parent.mkdir(parents=True)
    lone.write_bytes(old.read_bytes())
    assert check_frozen_tasks(tmp_path / "new", lone, now) == "unknown"
    assert check_frozen_tasks(tmp_path / "new", write_run(tmp_path / "a", old, OLD_SALT, [1, 2, 3]), now) == "unknown"
    assert check_frozen_tasks(tmp_path / "new", write_run(tmp_path / "b", old, NEW_SALT, [1, 2]), now) == "unknown"
    write_prepared(tmp_path / "second", OLD_SALT, train=[1, 7], held_out=[9])  # 7 was not fitted on there either
    (tmp_path / "second" / "tasks.json").write_bytes(old.read_bytes())
    assert check_frozen_tasks(tmp_path / "new", tmp_path / "second" / "tasks.json", now) == "unknown"


def test_an_evaluation_of_new_studies_under_frozen_tasks_still_refuses_overlap(tmp_path, old):
    """The encoder was trained on 1, 2, 3 under the old folder's salt."""
    run = write_run(tmp_path / "run", old, OLD_SALT, [1, 2, 3]).parents[1]
    for name, held_out in (("apart", [7]), ("overlapping", [2, 7])):
        write_prepared(tmp_path / name, OLD_SALT, train=[1, 5], held_out=held_out)
        (tmp_path / name / "tasks.json").write_bytes(old.read_bytes())
    check_leakage(tmp_path / "apart", run)
    with pytest.raises(LeakageError, match=r"1 held-out subjects of .* were used in the pretraining"):
        check_leakage(tmp_path / "overlapping", run)
