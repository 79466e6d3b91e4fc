"""What the label files of a run hold, in counts: the labels' part of `jobs.prepare --plan`."""

from __future__ import annotations

import numpy as np
import polars as pl

from data.labels.label_files import COVARIATES
from data.labels.stage import LabelStage
from ttepretrain.splits import SPLITS
from ttepretrain.tasks import TaskSet

YEAR_DAYS = 365.25
COLUMNS = ["study_id", "split", "censor_days", "event_days"]


def label_plan(stage: LabelStage) -> dict:
    """Studies by what becomes of them, follow-up, tasks and events of the label files."""
    labels = pl.read_parquet(stage.folder / "labels.parquet", columns=COLUMNS)
    tasks = TaskSet.load(stage.folder / "tasks.json")
    counts = stage.counts["studies"]
    return {
        "left_out": {reason: counts[reason] for reason in ("NO_SUBJECT", "OUTSIDE_OBSERVATION", "NO_FOLLOW_UP")},
        "labelled": {split: labels.filter(split=split).height for split in SPLITS},
        "follow_up_days": quartiles(labels["censor_days"]),
        "followed_over_a_year": float(np.mean(labels["censor_days"].to_numpy() > YEAR_DAYS)),
        "tasks": tasks.num_tasks,
        "train_events_per_task": quartiles(pl.Series([task.events for task in tasks.tasks])),
        "events": int(labels["event_days"].list.len().sum()),
        "phenotypes": answers(pl.read_parquet(stage.folder / "phenotypes.parquet"), labels),
        # covariates.parquet is written once more, with the scanner's half
        "bytes": sum((stage.folder / name).stat().st_size for name in (*stage.files, COVARIATES)),
        "scratch_bytes": stage.counts["scratch_bytes"],
    }


def answers(phenotypes: pl.DataFrame, labels: pl.DataFrame) -> list[dict]:
    """Known and positive answers of labelled studies, one entry per phenotype and horizon.

    horizon_days None: a diagnosis, or the time to event, where every study counts as known.
    """
    to_event = (pl.col("kind") == "prognosis") & pl.col("horizon_days").is_null()
    answer = pl.when(to_event).then("event").otherwise("label")
    rows = phenotypes.join(labels.select("study_id", "split"), on="study_id").with_columns(answer=answer)
    which = ["phenotype", "kind", "horizon_days"]
    counted = rows.group_by(*which, "split").agg(known=pl.col("answer").count(), positive=pl.col("answer").sum())
    table: dict[tuple, dict[str, dict[str, int]]] = {}
    for row in counted.sort(*which, nulls_last=True).iter_rows(named=True):
        splits = table.setdefault(tuple(row[name] for name in which), {})
        splits[row["split"]] = {name: row[name] for name in ("known", "positive")}
    nothing = {"known": 0, "positive": 0}
    return [
        dict(zip(which, key)) | {split: splits.get(split, nothing) for split in SPLITS} for key, splits in table.items()
    ]


def quartiles(values: pl.Series) -> dict[str, float]:
    return {name: _quantile(values, q) for name, q in (("p25", 0.25), ("p50", 0.5), ("p75", 0.75))}


def _quantile(values: pl.Series, q: float) -> float:
    value = values.quantile(q, "linear")
    assert value is not None  # there are studies and tasks, or no label files
    return value
