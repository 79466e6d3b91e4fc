"""Refuses an evaluation whose held-out subjects an encoder, or its tasks, may have seen (exit 7)."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from ttepretrain.errors import LeakageError
from ttepretrain.tasks import TaskSet


def check_leakage(prepared: Path, pretrained: Path) -> None:
    """Compare `subjects.parquet` and the exported tasks of a pretraining run with a prepared folder.

    Raises LeakageError for a subject in two splits, for a held-out subject in pretraining, and where the two folders
    cannot be compared (other salt, other train subjects): nothing could then be said about overlap.
    """
    keys = pl.read_parquet(prepared / "keys.parquet", columns=["subject_key", "split"]).unique()
    twice = keys["subject_key"].len() - keys["subject_key"].n_unique()
    if twice:
        raise LeakageError(f"{twice} subjects stand in more than one split of {prepared}; run jobs.prepare again")
    trained_on = set(pl.read_parquet(pretrained / "subjects.parquet")["subject_key"])
    if not trained_on & set(keys["subject_key"]):
        raise LeakageError(
            f"none of the {len(trained_on)} pretraining subjects of {pretrained} is known in {prepared}: its salt is "
            "another one, or its subjects are; overlap cannot be checked. Prepare with prepare.salt_file = the salt "
            "the encoder was trained under, or pretrain again"
        )
    overlap = trained_on & set(keys.filter(pl.col("split") == "held_out")["subject_key"])
    if overlap:
        raise LeakageError(
            f"{len(overlap)} held-out subjects of {prepared} were used in the pretraining of {pretrained}; "
            "pretrain again on the present splits"
        )
    ours, theirs = (TaskSet.load(path / "tasks.json").fitted_on for path in (prepared, pretrained / "export"))
    if ours != theirs:
        raise LeakageError(
            f"tasks, bins and rates of {pretrained} were fitted on {theirs['count']} train subjects that are not the "
            f"{ours['count']} of {prepared}; pretrain again on the present splits"
        )
