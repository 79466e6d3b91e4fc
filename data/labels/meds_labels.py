"""Phenotypes as MEDS label files: `labels_meds/<phenotype>/<horizon>d.parquet`, a diagnosis in `diagnosis.parquet`.

subject_id i64, prediction_time timestamp[us] (t0), boolean_value bool. Censored studies are left out.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import polars as pl

from data.parquet_files import write_parquet
from data.prepared.schema import MEDS_LABELS

FOLDER = "labels_meds"


def write_meds_labels(folder: Path, phenotypes: pl.DataFrame, studies: pl.DataFrame) -> list[str]:
    """Replace all label files below `folder`; returns their names, relative to it.

    studies: study_id, subject_id, study_time of every study of `phenotypes`; a diagnosis may be of one without labels.
    """
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
    binary = phenotypes.filter((pl.col("kind") == "diagnosis") | pl.col("horizon_days").is_not_null())
    rows = (
        binary.join(studies, on="study_id", maintain_order="left")
        .select("phenotype", "horizon_days", "subject_id", prediction_time="study_time", boolean_value="label")
        .sort("phenotype", "horizon_days", "subject_id", "prediction_time", maintain_order=True)
    )
    names = []
    for (phenotype, horizon), part in rows.partition_by(
        "phenotype", "horizon_days", as_dict=True, include_key=False
    ).items():
        stem = "diagnosis" if horizon is None else f"{str(horizon).removesuffix('.0')}d"
        names.append(f"{FOLDER}/{phenotype}/{stem}.parquet")
        (folder / FOLDER / phenotype).mkdir(parents=True, exist_ok=True)
        write_parquet(part.drop_nulls("boolean_value"), folder / names[-1], check=MEDS_LABELS.check)
    return sorted(names)
