"""A small prepared/ of random studies, as jobs.prepare leaves it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from data.prepared import schema
from data.prepared.random_folder import random_tables
from data.prepared.write import write_prepared as write_folder
from ttepretrain.labels import LabelTable
from ttepretrain.volume.spec import LUNG, VolumeSpec

SPEC = VolumeSpec((15.0, 14.0, 13.0), (20, 22, 24), (-1024, 3071), (LUNG,))
NUM_TRAIN, NUM_TUNING = 17, 3


def write_prepared(folder: Path) -> None:
    """Labels, outcomes and volumes of noise; two studies are of one subject, and those of `tuning` come last."""
    rng = np.random.default_rng(6)
    splits = ["train"] * NUM_TRAIN + ["tuning"] * NUM_TUNING
    hu_NDHW = rng.integers(-1024, 1500, (len(splits), *SPEC.shape_DHW)).astype(np.int16)
    tables, labels = random_tables(folder, splits, SPEC, lambda n: hu_NDHW[n])
    tables[schema.PHENOTYPES] = phenotypes(tables[schema.KEYS]["study_id"], labels)
    write_folder(folder, tables, ["tasks.json"], SPEC)


def phenotypes(study_id: pl.Series, labels: LabelTable) -> pl.DataFrame:
    """One phenotype, within 30 days and as time to event; a fifth of the answers is unknown."""
    num = len(labels)
    happened = [n % 3 == 0 for n in range(num)]
    days = [1 + (days - 1) / 2 if h else days for days, h in zip(labels.censor_days, happened)]
    outcome = {
        "study_id": study_id,
        "phenotype": ["edema"] * num,
        "kind": ["prognosis"] * num,
        "horizon_days": [30.0] * num,
        "label": [None if n % 5 == 0 else n % 2 == 0 for n in range(num)],
        "event": happened,
        "competing": [False] * num,
        "time_days": days,
    }
    within = pl.DataFrame(outcome, schema=pl.Schema(schema.PHENOTYPES.schema))
    to_event = within.with_columns(horizon_days=pl.lit(None, pl.Float64))
    return pl.concat([within, to_event]).sort("study_id", maintain_order=True)
