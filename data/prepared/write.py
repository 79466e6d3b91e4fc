"""The tables of `prepared/` that join studies, labels and volumes, and its manifest."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import polars as pl

from data.given.study_table import StudyTable
from data.labels.stage import LabelStage
from data.quarantine import Quarantine
from data.volumes.prepare_study import PreparedVolume
from ttepretrain.errors import LeakageError
from ttepretrain.files import sha256_of, write_json
from ttepretrain.splits import SPLITS
from ttepretrain.volume.spec import VolumeSpec

SCHEMA_VERSION = 1
DUPLICATE = "DUPLICATE_CONTENT"

VOLUMES = pl.Schema(
    {
        "study_id": pl.String,
        "path": pl.String,  # relative to prepared/
        "shape": pl.List(pl.Int32),  # D H W
        "spacing_mm": pl.List(pl.Float64),  # D H W
        "affine": pl.List(pl.Float64),  # 16, row by row: index (D, H, W, 1) -> RAS+ mm
        "flags": pl.List(pl.String),
        "source_hash": pl.String,
        "content_key": pl.String,
        "checksum": pl.String,  # sha256 of the file
    }
)
ACQUISITION = pl.Schema(
    {
        "study_id": pl.String,
        "manufacturer": pl.String,
        "kernel": pl.String,
        "kvp": pl.Float64,
        "contrast": pl.Boolean,
        "source_spacing_mm": pl.List(pl.Float64),  # D H W
    }
)


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
    rows = [
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
    ]
    return pl.DataFrame(rows, schema=VOLUMES).sort("study_id")


def covariate_table(of_ehr: pl.DataFrame, studies: StudyTable, volumes: Iterable[PreparedVolume]) -> pl.DataFrame:
    """Table `covariates.parquet`: what the EHR, the scanner and the input table say of every labelled study.

    A carried column whose name is taken gets the prefix `table_`.
    """
    scanner = pl.DataFrame(
        [
            {name: volume.record.acquisition.get(name) for name in ACQUISITION}
            | {"study_id": volume.study_id, "source_spacing_mm": volume.record.source_spacing_mm}
            for volume in volumes
        ],
        schema=ACQUISITION,
    )
    hour = pl.when(~pl.col("date_only")).then(pl.col("study_time").dt.hour()).alias("scan_hour")
    taken = {*of_ehr.columns, *ACQUISITION, "scan_hour"}
    carried = [pl.col(name).alias(f"table_{name}" if name in taken else name) for name in studies.carried]
    table = of_ehr.join(scanner, on="study_id", how="left")
    table = table.join(studies.frame.select("study_id", hour, *carried), on="study_id", how="left")
    first = ["study_id", "age_years", "sex", *list(ACQUISITION)[1:], "scan_hour", "past_codes"]
    return table.select(*first, pl.exclude(first)).sort("study_id")


def summarise(
    studies: StudyTable,
    split_origins: dict[str, int],
    labels: LabelStage | None,
    volumes: pl.DataFrame | None,
    quarantine: Quarantine,
) -> dict:
    """Content of `summary.json`: what became of every study. A function of the input, not of what was reused."""
    frame = studies.frame
    ready = frame
    for part in (labels.labels if labels else None, volumes):
        if part is not None:
            ready = ready.join(part, on="study_id", how="semi")
    summary = {
        "studies": {
            "rows": studies.num_rows,
            "repeated_rows": studies.num_repeated,
            "refused_rows": len(studies.refused),
            "without_image": frame["image"].null_count(),
            **({"inspect": studies.inspect} if studies.inspect else {}),
        },
        "splits": {"subjects_from": split_origins, "studies": _by_split(frame), "ready": _by_split(ready)},
        "quarantine": quarantine.counts(),
    }
    if labels is not None:
        summary["labels"] = labels.counts
    if volumes is not None:
        flags = Counter(volumes["flags"].explode().drop_nulls())
        summary["volumes"] = {"studies": volumes.height, "flags": dict(sorted(flags.items()))}
    return summary


def _by_split(studies: pl.DataFrame) -> dict[str, int]:
    return {split: studies.filter(split=split).height for split in SPLITS}


def write_manifest(folder: Path, names: Iterable[str], volumes: pl.DataFrame | None, spec: VolumeSpec) -> None:
    """manifest.json, written last: checksum and size of every file, volumes included, and the grid of the volumes.

    provenance.json is left out: it alone differs between two runs on the same input.
    """
    checksums = {name: sha256_of(folder / name) for name in names}
    if volumes is not None:
        checksums |= dict(volumes.select("path", "checksum").iter_rows())
    files = {name: {"sha256": sha, "bytes": (folder / name).stat().st_size} for name, sha in sorted(checksums.items())}
    document = {"schema_version": SCHEMA_VERSION, "volume_spec": spec.to_json(), "files": files}
    write_json(folder / "manifest.json", document)
