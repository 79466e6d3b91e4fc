"""Writes `prepared/`: its tables, checked against the schema, its summary and its manifest."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

from data.given.study_table import StudyTable
from data.prepared import schema
from data.prepared.table_file import write_table
from data.quarantine import Quarantined
from data.volumes.prepare_study import PreparedVolume
from ttepretrain.errors import BadDataError, LeakageError
from ttepretrain.files import sha256_of, write_json
from ttepretrain.splits import SPLITS
from ttepretrain.volume.checks import Flag
from ttepretrain.volume.spec import VolumeSpec

SUMMARY = "summary.json"
DUPLICATE = str(Flag.DUPLICATE_CONTENT)
OF_SCANNER = ("study_id", "manufacturer", "kernel", "kvp", "contrast", "source_spacing_mm")  # of covariates.parquet


def write_prepared(
    folder: Path,
    tables: Mapping[schema.Table, pl.DataFrame],
    files: Iterable[str],
    spec: VolumeSpec,
    summary: dict | None = None,
) -> None:
    """Write the tables, summary.json and, last, manifest.json, which makes the folder a prepared one.

    files: names of files that lie in the folder already and belong to it, such as tasks.json. Raises IntegrityError
    for a table that is not as the schema says, BadDataError when the summary counts no study that is ready.
    """
    for table, frame in tables.items():
        write_table(folder, table, frame)
    names = {*files, *(table.name for table in tables)}
    if summary is not None:
        write_json(folder / SUMMARY, summary)
        names.add(SUMMARY)
        if not any(summary["splits"]["ready"].values()):
            raise BadDataError(
                "no study is left with what the stages need; summary.json and quarantine.parquet give the reasons"
            )
    write_manifest(folder, names, tables.get(schema.VOLUMES), spec)


def write_manifest(folder: Path, names: Iterable[str], volumes: pl.DataFrame | None, spec: VolumeSpec) -> None:
    """Write manifest.json: checksum and size of the named files and of the volumes, and the grid of the volumes.

    provenance.json is not in it: two runs on the same input differ in nothing else.
    """
    checksums = {name: sha256_of(folder / name) for name in names}
    if volumes is not None:
        checksums |= dict(volumes.select("path", "checksum").iter_rows())
    for name in checksums:
        schema.file_of(name)
    files = {name: {"sha256": sha, "bytes": (folder / name).stat().st_size} for name, sha in sorted(checksums.items())}
    document = {"schema_version": schema.SCHEMA_VERSION, "volume_spec": spec.to_json(), "files": files}
    write_json(folder / "manifest.json", document)


def frame_of(table: schema.Table, rows: Iterable[dict[str, Any]]) -> pl.DataFrame:
    """Rows by column name as a frame of the table's types."""
    return pl.DataFrame(list(rows), schema=pl.Schema(table.schema), orient="row")


def duplicates(volumes: Sequence[PreparedVolume], keys: pl.DataFrame) -> set[str]:
    """Ids of the studies whose voxels equal another's; raises LeakageError where two such are in different splits."""
    groups = defaultdict(list)
    for volume in volumes:
        groups[volume.record.voxel_hash].append(volume.study_id)
    split = dict(zip(keys["study_id"], keys["split"]))
    shared = [group for group in groups.values() if len(group) > 1]
    across = [group for group in shared if len({split[study_id] for study_id in group}) > 1]
    if across:
        key = dict(zip(keys["study_id"], keys["study_key"]))
        example = ", ".join(sorted(key[study_id] for study_id in across[0]))
        raise LeakageError(
            f"{DUPLICATE}: {len(across)} volumes appear in more than one split, such as studies {example} "
            "(keys.parquet has their ids); remove all but one of each"
        )
    return {study_id for group in shared for study_id in group}


def volume_table(volumes: Iterable[PreparedVolume], duplicate: set[str]) -> pl.DataFrame:
    """Table `volumes.parquet`."""
    rows = (
        {
            "study_id": volume.study_id,
            "path": f"volumes/{volume.content_key}.b2nd",
            "shape": volume.record.shape,
            "spacing_mm": volume.record.spacing_mm,
            "affine": volume.record.affine,
            "flags": [*volume.record.flags, *([DUPLICATE] if volume.study_id in duplicate else [])],
            "source_hash": volume.record.source_hash,
            "content_key": volume.content_key,
            "checksum": volume.checksum,
        }
        for volume in volumes
    )
    return frame_of(schema.VOLUMES, rows).sort("study_id")


def covariate_table(of_ehr: pl.DataFrame, studies: StudyTable, volumes: Iterable[PreparedVolume]) -> pl.DataFrame:
    """Table `covariates.parquet`: what the EHR, the scanner and the input table say of every labelled study.

    A carried column whose name is taken gets the prefix `table_`.
    """
    types = pl.Schema(schema.COVARIATES.schema)
    scanner = pl.DataFrame(
        [
            {name: volume.record.acquisition.get(name) for name in OF_SCANNER}
            | {"study_id": volume.study_id, "source_spacing_mm": volume.record.source_spacing_mm}
            for volume in volumes
        ],
        schema={name: types[name] for name in OF_SCANNER},
    )
    hour = pl.when(~pl.col("date_only")).then(pl.col("study_time").dt.hour()).alias("scan_hour")
    taken = set(schema.COVARIATES.names)
    carried = [pl.col(name).alias(f"table_{name}" if name in taken else name) for name in studies.carried]
    table = of_ehr.join(scanner, on="study_id", how="left")
    table = table.join(studies.frame.select("study_id", hour, *carried), on="study_id", how="left")
    first = schema.COVARIATES.names
    return table.select(*first, pl.exclude(first)).sort("study_id")


def quarantine_table(records: Iterable[Quarantined]) -> pl.DataFrame:
    """Table `quarantine.parquet`, in an order that does not depend on who finished first."""
    return frame_of(schema.QUARANTINE, map(asdict, records)).sort(schema.QUARANTINE.names, nulls_last=True)


def study_counts(
    studies: StudyTable, split_origins: dict[str, int], bad: dict[str, int], made: Iterable[pl.DataFrame]
) -> dict:
    """First part of `summary.json`: what became of every study. A function of the input, not of what was reused.

    bad: studies in quarantine, by reason code. made: a table of every stage; a study in all of them is ready.
    """
    frame = studies.frame
    ready = frame
    for table in made:
        ready = ready.join(table, on="study_id", how="semi")
    return {
        "studies": {
            "rows": studies.num_rows,
            "repeated_rows": studies.num_repeated,
            "refused_rows": len(studies.refused),
            "without_image": frame["image"].null_count(),
            **({"inspect": studies.inspect} if studies.inspect else {}),
        },
        "splits": {"subjects_from": split_origins, "studies": _by_split(frame), "ready": _by_split(ready)},
        "quarantine": bad,
    }


def volume_counts(volumes: pl.DataFrame) -> dict:
    """Part `volumes` of `summary.json`."""
    flags = Counter(volumes["flags"].explode().drop_nulls())
    return {"studies": volumes.height, "flags": dict(sorted(flags.items()))}


def _by_split(studies: pl.DataFrame) -> dict[str, int]:
    return {split: studies.filter(split=split).height for split in SPLITS}
