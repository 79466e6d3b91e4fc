"""The cohort's records on disk: a MEDS data set with the standard's own types."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from data.cohort.exam import SPLIT_SHARES, VERSION, Size
from data.cohort.timelines.catalogue import Catalogue
from data.cohort.timelines.histories import Course

if TYPE_CHECKING:
    from meds import CodeMetadataSchema, DataSchema, SubjectSplitSchema


def write_meds(folder: Path, events: pl.DataFrame, course: Course, catalogue: Catalogue, size: Size) -> None:
    """MEDS data set: data/<split>/N.parquet, metadata/{dataset.json,codes.parquet,subject_splits.parquet}."""
    from meds import CodeMetadataSchema, DataSchema, SubjectSplitSchema

    for (name, _), shards in zip(SPLIT_SHARES, size.shards):
        (folder / "data" / name).mkdir(parents=True)
        members = course.subject_id_N[course.split_N == name]
        for shard, ids in enumerate(np.array_split(members, shards)):
            part = events.filter(pl.col("subject_id").is_in(pl.Series(ids).implode()))
            _write_table(part, DataSchema, folder / "data" / name / f"{shard}.parquet")
    metadata = folder / "metadata"
    metadata.mkdir()
    dataset = {
        "dataset_name": "ttepretrain synthetic cohort",
        "dataset_version": str(VERSION),
        "etl_name": "jobs.cohort",
        "etl_version": str(VERSION),
        "meds_version": "0.4.1",
        "created_at": "2026-01-01T00:00:00",  # fixed: equal bytes for equal seeds
        "license": "Apache-2.0",
    }
    (metadata / "dataset.json").write_text(json.dumps(dataset, indent=1) + "\n")
    codes = {
        "code": catalogue.codes,
        "description": catalogue.descriptions,
        "parent_codes": [list(parents) for parents in catalogue.parents],
    }
    types = pl.Schema({"code": pl.String(), "description": pl.String(), "parent_codes": pl.List(pl.String())})
    _write_table(pl.DataFrame(codes, schema=types), CodeMetadataSchema, metadata / "codes.parquet")
    splits = pl.DataFrame({"subject_id": course.subject_id_N, "split": list(course.split_N)})
    _write_table(splits, SubjectSplitSchema, metadata / "subject_splits.parquet")


def _write_table(
    frame: pl.DataFrame, schema: type[CodeMetadataSchema | DataSchema | SubjectSplitSchema], path: Path
) -> None:
    """Parquet with the standard's own Arrow types (polars writes large strings and lists)."""
    from pyarrow import parquet

    parquet.write_table(schema.align(frame.to_arrow()), path, compression="zstd")
