"""What a run of jobs.prepare would make and cost, by label files that were really made and a few scans really read."""

from __future__ import annotations

import itertools
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from data.given.study import Study, resolve_image
from data.labels.label_files import COVARIATES
from data.labels.stage import LabelStage
from data.quarantine import Quarantined
from data.volumes.prepare_study import prepare_study
from ttepretrain.errors import BadStudy
from ttepretrain.splits import SPLITS
from ttepretrain.tasks import TaskSet
from ttepretrain.volume.spec import VolumeSpec

YEAR_DAYS = 365.25
COLUMNS = ["study_id", "split", "censor_days", "event_days"]
SEED = 0  # of the sample of scans
_tried = itertools.count()  # by this worker


@dataclass(frozen=True)
class Trial:
    """One scan that was prepared."""

    seconds: float  # of one worker
    first: bool  # of its worker, which had to start
    num_bytes: int | None  # of the cached volume; None: refused
    code: str | None  # why


def absent_images(studies: pl.DataFrame, root: Path) -> dict[str, int]:
    """How many images are not where the table says, by reason code."""
    codes = {"OUTSIDE_ROOT": 0, "NOT_FOUND": 0}
    for image in studies["image"].drop_nulls():
        try:
            codes["NOT_FOUND"] += not resolve_image(root, image).exists()
        except BadStudy as refusal:
            codes[refusal.code] += 1
        except OSError:  # a name that no file can have
            codes["NOT_FOUND"] += 1
    return codes


def label_plan(stage: LabelStage) -> dict:
    """Studies by what becomes of them, follow-up, tasks and events of the label files."""
    labels = pl.read_parquet(stage.folder / "labels.parquet", columns=COLUMNS)
    tasks = TaskSet.load(stage.folder / "tasks.json")
    counts = stage.counts["studies"]
    return {
        "left_out": {reason: counts[reason] for reason in ("NO_SUBJECT", "OUTSIDE_OBSERVATION", "NO_FOLLOW_UP")},
        "labelled": {split: labels.filter(split=split).height for split in SPLITS},
        "follow_up_days": quartiles(labels["censor_days"]),
        "followed_over_a_year": float((labels["censor_days"] > YEAR_DAYS).mean()),
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
    table = {}
    for row in counted.sort(*which, nulls_last=True).iter_rows(named=True):
        splits = table.setdefault(tuple(row[name] for name in which), {})
        splits[row["split"]] = {name: row[name] for name in ("known", "positive")}
    nothing = {"known": 0, "positive": 0}
    return [
        dict(zip(which, key)) | {split: splits.get(split, nothing) for split in SPLITS} for key, splits in table.items()
    ]


def quartiles(values: pl.Series) -> dict[str, float]:
    return {name: float(values.quantile(q, "linear")) for name, q in (("p25", 0.25), ("p50", 0.5), ("p75", 0.75))}


def sample(images: Sequence[Study], count: int) -> list[Study]:
    """`count` of the studies with an image, or all; the same ones for the same table."""
    return random.Random(SEED).sample(images, min(count, len(images)))


def try_study(study: Study, root: Path, cache: Path, spec: VolumeSpec) -> Trial:
    """prepare_study, timed. What is paid once by every worker, its imports, is left out."""
    from ttepretrain.volume import nifti, preprocess  # noqa: F401
    from ttepretrain.volume.dicom import reader  # noqa: F401

    first, start = next(_tried) == 0, time.perf_counter()
    result = prepare_study(study, root, cache, spec)
    seconds = time.perf_counter() - start
    if isinstance(result, Quarantined):
        return Trial(seconds, first, None, result.code)
    return Trial(seconds, first, (cache / f"{result.content_key}.b2nd").stat().st_size, None)


def volume_plan(trials: Sequence[Trial], num_images: int, num_workers: int) -> dict:
    """Hours and bytes of all `num_images` scans, were they like those tried."""
    seconds = [trial.seconds for trial in trials if not trial.first] or [trial.seconds for trial in trials]
    sizes = [trial.num_bytes for trial in trials if trial.num_bytes is not None]
    return {
        "images": num_images,
        "sampled": len(trials),
        "usable": len(sizes),
        "refused": sorted({trial.code for trial in trials if trial.code is not None}),
        "seconds_per_scan": _spread(seconds),
        "bytes_per_volume": _spread(sizes) if sizes else None,
        "workers": num_workers,
        "hours": statistics.mean(seconds) * num_images / num_workers / 3600,
        "bytes": round(sum(sizes) / len(trials) * num_images),
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"lowest": min(values), "mean": statistics.mean(values), "highest": max(values)}
