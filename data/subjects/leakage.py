"""Refuses held-out subjects that an encoder, or its tasks, may have seen (exit 7)."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from data.subjects.keys import fitted_on
from ttepretrain.errors import LeakageError
from ttepretrain.tasks import TaskSet


def check_leakage(prepared: Path, pretrained: Path) -> None:
    """Compare `subjects.parquet` and the exported tasks of a pretraining run with a prepared folder.

    Raises LeakageError for a subject in two splits, for a held-out subject in pretraining, and where the two folders
    cannot be compared (other salt, other train subjects): overlap would then go unnoticed.
    """
    keys = pl.read_parquet(prepared / "keys.parquet", columns=["subject_key", "split"]).unique()
    twice = keys["subject_key"].len() - keys["subject_key"].n_unique()
    if twice:
        raise LeakageError(f"{twice} subjects are in more than one split of {prepared}; run jobs.prepare again")
    trained_on = set(pl.read_parquet(pretrained / "subjects.parquet")["subject_key"])
    if not trained_on & set(keys["subject_key"]):
        raise LeakageError(
            f"none of the {len(trained_on)} pretraining subjects of {pretrained} is known in {prepared}: its salt is "
            "another one, or its subjects are; overlap cannot be checked. Prepare with prepare.salt_file = the salt "
            "the encoder was trained under, or pretrain again"
        )
    refuse_overlap(prepared, pretrained)
    ours, theirs = (TaskSet.load(path / "tasks.json").fitted_on for path in (prepared, pretrained / "export"))
    if ours != theirs:
        raise LeakageError(
            f"tasks, bins and rates of {pretrained} were fitted on {theirs['count']} train subjects that are not the "
            f"{ours['count']} of {prepared}; pretrain again on the present splits"
        )


def refuse_overlap(prepared: Path, pretrained: Path) -> None:
    """Raise LeakageError for a held-out subject in that run's `subjects.parquet`; folders of other salts have none."""
    keys = pl.read_parquet(prepared / "keys.parquet").filter(pl.col("split") == "held_out")["subject_key"].unique()
    overlap = keys.is_in(pl.read_parquet(pretrained / "subjects.parquet")["subject_key"].implode()).sum()
    if overlap:
        raise LeakageError(
            f"{overlap} held-out subjects of {prepared} were used in the pretraining of {pretrained}; "
            "pretrain again on the present splits"
        )


def check_frozen_tasks(prepared: Path, tasks: Path, fitted_now: dict) -> str:
    """What is known of the subjects that a frozen task set was fitted on: same | checked | unknown.

    same: they are this folder's train subjects. checked: the folder or run that the file lies in lists them, and none
    is held out here. Raises LeakageError when one is.
    """
    frozen = TaskSet.load(tasks).fitted_on
    if frozen == fitted_now:
        return "same"
    ours = pl.read_parquet(prepared / "keys.parquet").filter(pl.col("split") == "held_out")
    beside, run = tasks.parent / "keys.parquet", tasks.parent.parent / "subjects.parquet"
    known, overlap = False, 0
    if beside.exists() and (salt := tasks.parent / "salt").exists():  # another prepared/
        train = pl.read_parquet(beside).filter(pl.col("split") == "train")["subject_id"].unique()
        # not if that folder's own tasks came frozen from elsewhere
        known = fitted_on(salt.read_bytes(), train) == frozen
        overlap = int(ours["subject_id"].unique().is_in(train.implode()).sum()) if known else 0
    elif run.exists():  # an export: the run's train subjects, under the run's salt
        subjects = pl.read_parquet(run)
        train = subjects.filter(pl.col("split") == "train")["subject_key"].unique()
        everyone = pl.read_parquet(prepared / "keys.parquet")["subject_key"]
        # a run trains on those with a volume; another salt makes every key another
        known = len(train) == frozen["count"] and everyone.is_in(subjects["subject_key"].implode()).any()
        overlap = int(ours["subject_key"].unique().is_in(train.implode()).sum())
    if overlap:
        raise LeakageError(
            f"ehr.tasks: {overlap} held-out subjects are among those its tasks, bins and rates were fitted on; "
            "keep them in train (input.splits), or leave ehr.tasks out"
        )
    return "checked" if known else "unknown"
