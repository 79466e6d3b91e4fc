"""A small prepared/ of random studies, as jobs.prepare leaves it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from data.parquet_files import write_parquet
from data.prepared.write import volume_table, write_manifest
from data.subjects.keys import key_table
from data.volumes.cache import VolumeRecord, hash_voxels, write_volume
from data.volumes.prepare_study import PreparedVolume
from ttepretrain.testing import random_labels, random_task_set
from ttepretrain.volume.spec import LUNG, VolumeSpec

SPEC = VolumeSpec((15.0, 14.0, 13.0), (20, 22, 24), (-1024, 3071), (LUNG,))
NUM_TRAIN, NUM_TUNING = 17, 3


def write_prepared(folder: Path) -> None:
    """Labels, outcomes and volumes of noise; the studies of `tuning` come last."""
    rng = np.random.default_rng(5)
    (folder / "volumes").mkdir(parents=True)
    num = NUM_TRAIN + NUM_TUNING
    ids, split = [f"ct-{n:02d}" for n in range(num)], ["train"] * NUM_TRAIN + ["tuning"] * NUM_TUNING
    # Two studies of subject 0.
    keys = key_table(bytes(32), pl.DataFrame({"study_id": ids, "subject_id": [0, *range(num - 1)], "split": split}))
    tasks = random_task_set(rng, 5)
    tasks.save(folder / "tasks.json")
    table = random_labels(rng, num, tasks)
    one = [table.take(np.array([n])) for n in range(num)]
    labels = {
        "study_id": ids,
        "subject_id": [0, *range(num - 1)],
        "split": split,
        "censor_days": table.censor_days,
        "task_index": pl.Series([row.events.index.tolist() for row in one], dtype=pl.List(pl.Int32)),
        "event_days": pl.Series([row.event_days.tolist() for row in one], dtype=pl.List(pl.Float64)),
        "history_index": pl.Series([row.history.index.tolist() for row in one], dtype=pl.List(pl.Int32)),
        "visit_index": pl.Series([row.visit.index.tolist() for row in one], dtype=pl.List(pl.Int32)),
    }
    write_parquet(pl.DataFrame(labels), folder / "labels.parquet")
    outcome = {"study_id": ids, "phenotype": "edema", "kind": "prognosis"}
    happened = [n % 3 == 0 for n in range(num)]
    days = [1 + (days - 1) / 2 if h else days for days, h in zip(table.censor_days, happened)]
    outcome |= {"label": [None if n % 5 == 0 else n % 2 == 0 for n in range(num)], "event": happened, "time_days": days}
    frame = pl.DataFrame(outcome)
    horizons = [frame.with_columns(horizon_days=pl.lit(h, pl.Float64)) for h in (30.0, None)]
    write_parquet(pl.concat(horizons), folder / "phenotypes.parquet")
    volumes = []
    for n in range(num):
        hu_DHW = rng.integers(-1024, 1500, SPEC.shape_DHW).astype(np.int16)
        record = VolumeRecord(
            list(SPEC.shape_DHW), list(SPEC.spacing_mm), [0.0] * 16, [], {}, [1.0] * 3, f"{n}", hash_voxels(hu_DHW)
        )
        checksum = write_volume(folder / "volumes" / f"{n}.b2nd", hu_DHW, record)
        volumes.append(PreparedVolume(ids[n], f"{n}", checksum, record, False))
    for name, frame in (("volumes", volume_table(volumes, set())), ("keys", keys)):
        write_parquet(frame, folder / f"{name}.parquet")
    names = ["tasks.json", "labels.parquet", "volumes.parquet", "keys.parquet", "phenotypes.parquet"]
    write_manifest(folder, names, volume_table(volumes, set()), SPEC)
