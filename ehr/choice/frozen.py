"""A frozen task set (`ehr.tasks`): tasks, bins and rates as they are, for the new studies of a growing archive."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from ehr.codes.codes import CodeIndex
from ehr.config import EhrConfig, require_plain
from ttepretrain.errors import ConfigError
from ttepretrain.log import log
from ttepretrain.tasks import TaskSet


def frozen_tasks(config: EhrConfig) -> TaskSet | None:
    """The task set of `ehr.tasks`; ConfigError where it was made under another blackout or recurrence."""
    if config.tasks is None:
        return None
    frozen = TaskSet.load(Path(config.tasks))
    for key in ("blackout_days", "recurrence"):
        theirs, ours = getattr(frozen, key), getattr(config, key)
        if theirs != ours:
            raise ConfigError(
                f"ehr.{key} is {ours}, but the tasks of ehr.tasks were fitted with {theirs}; set ehr.{key}={theirs}"
            )
    require_plain("ehr.tasks", frozen.codes)
    return frozen


def frozen_choice(frozen: TaskSet, index: CodeIndex, excluded: pl.Series) -> tuple[pl.DataFrame, dict]:
    """Column `code` of the frozen tasks in their order, and counts for summary.json. All of them are in the index.

    excluded: codes that the run would leave out of its tasks; frozen ones stay, with a warning.
    """
    chosen = pl.DataFrame({"name": frozen.codes}).join(index.names, on="name", maintain_order="left").select("code")
    held = index.closure.filter(pl.col("code").is_in(index.seen.implode()))["ancestor"].unique()
    absent = len(chosen) - chosen["code"].is_in(held.implode()).sum()
    ranked = chosen if frozen.death_task is None else chosen.filter(pl.int_range(pl.len()) != frozen.death_task)
    barred = ranked["code"].is_in(excluded.implode()).sum()
    if barred:
        log.warning(
            f"ehr.tasks: {barred} of its tasks are codes of ehr.exclude or of the phenotypes, which would not be chosen"
            " now; what is pretrained on them has seen the outcomes of the train studies"
        )
    return chosen, {
        "frozen": len(chosen),
        "not_in_the_data": absent,
        "would_be_excluded": barred,
        "tasks": len(chosen),
    }
