"""Prepared folders of random studies, for tests and benchmarks: the tables that jobs.prepare would write."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl

from data.prepared import schema
from data.prepared.write import volume_table
from data.subjects.keys import key_table
from data.volumes.cache import VolumeRecord, hash_voxels, write_volume
from data.volumes.prepare_study import PreparedVolume
from ttepretrain.labels import LabelTable
from ttepretrain.testing import random_labels, random_task_set
from ttepretrain.volume.spec import VolumeSpec

INDEX_TIME = datetime(2020, 1, 1, 10, 30)
SALT = bytes(32)


def random_tables(
    folder: Path,
    splits: Sequence[str],
    spec: VolumeSpec,
    voxels: Callable[[int], np.ndarray],
    num_tasks: int = 5,
    unlabelled: Sequence[int] = (),
    without_volume: Sequence[int] = (),
) -> tuple[dict[schema.Table, pl.DataFrame], LabelTable]:
    """Keys, labels and volumes of one study per split named (ct-00, ct-01, ...), and the labels of all of them.

    The first two studies are of one subject. Writes tasks.json and the volumes to the folder; `write_prepared` then
    makes it a prepared one. voxels: int16 HU [D, H, W] of a study by its number.
    """
    rng = np.random.default_rng(5)
    num = len(splits)
    ids = [f"ct-{n:02d}" for n in range(num)]
    studies = pl.DataFrame({"study_id": ids, "subject_id": [0, *range(num - 1)], "split": list(splits)})
    folder.mkdir(parents=True)
    tasks = random_task_set(rng, num_tasks)
    tasks.save(folder / "tasks.json")
    labels = random_labels(rng, num, tasks)
    volumes = [cached_volume(folder, ids[n], voxels(n), spec) for n in range(num) if n not in without_volume]
    tables = {
        schema.KEYS: key_table(SALT, studies),
        schema.LABELS: label_table(studies, labels)[[n for n in range(num) if n not in unlabelled]],
        schema.VOLUMES: volume_table(volumes, set()),
    }
    return tables, labels


def label_table(studies: pl.DataFrame, labels: LabelTable) -> pl.DataFrame:
    """Table `labels.parquet` of the studies (study_id, subject_id, split), row for row."""
    rows = [labels.take(np.array([row])) for row in range(len(labels))]
    columns = studies.select("study_id", "subject_id", "split").to_dict(as_series=False)
    columns |= {
        "index_time": [INDEX_TIME] * len(rows),
        "censor_days": labels.censor_days.tolist(),
        "task_index": [row.events.index.tolist() for row in rows],
        "event_days": [row.event_days.tolist() for row in rows],
        "history_index": [row.history.index.tolist() for row in rows],
        "visit_index": [row.visit.index.tolist() for row in rows],
    }
    return pl.DataFrame(columns, schema=pl.Schema(schema.LABELS.schema))


def cached_volume(folder: Path, study_id: str, hu_DHW: np.ndarray, spec: VolumeSpec) -> PreparedVolume:
    """Writes these voxels to the cache of a prepared folder, under a name made of the study's id."""
    name = hashlib.sha256(study_id.encode()).hexdigest()[:40]
    record = VolumeRecord(
        shape=list(spec.shape_DHW),
        spacing_mm=list(spec.spacing_mm),
        affine=[0.0] * 16,
        flags=[],
        acquisition={},
        source_spacing_mm=[1.0] * 3,
        source_hash=name,
        voxel_hash=hash_voxels(hu_DHW),
    )
    (folder / "volumes").mkdir(parents=True, exist_ok=True)
    checksum = write_volume(folder / "volumes" / f"{name}.b2nd", hu_DHW, record)
    return PreparedVolume(study_id, name, checksum, record, reused=False)
