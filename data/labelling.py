"""The label stage: EHR and ontology to the label files of `prepared/`, done once per input."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import polars as pl

from data.tables import write_parquet
from data.workers import REPOSITORY
from ehr.config import EhrConfig
from ttepretrain.errors import ConfigError
from ttepretrain.files import replacing, sha256_of, write_json

MapShards = Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]

STAMP = "stages/labels.json"  # what the files below were made from
COVARIATES = "stages/covariates.parquet"  # the EHR's half of covariates.parquet
LABEL_FILES = ("tasks.json", "labels.parquet", "phenotypes.parquet", COVARIATES)
STUDY_COLUMNS = ("study_id", "subject_id", "study_time", "date_only", "split")


@dataclass(frozen=True)
class LabelStage:
    labels: pl.DataFrame
    covariates: pl.DataFrame
    counts: dict  # of summary.json
    inputs: dict  # hashes, of provenance.json
    reused: bool


def make_labels(
    folder: Path,
    ehr: Path,
    ontology: Path | None,
    studies: pl.DataFrame,
    config: EhrConfig,
    fitted_on: dict,
    map_shards: MapShards,
) -> LabelStage:
    """Label files of `folder`, from its last run when nothing they depend on has changed since."""
    inputs = _inputs(ehr, ontology, studies, config, fitted_on, map_shards)
    stamp = _valid_stamp(folder, inputs)
    if stamp is None:
        from ehr.build import build_labels

        result = build_labels(ehr, ontology, studies.select(STUDY_COLUMNS), config, map_shards, fitted_on=fitted_on)
        (folder / COVARIATES).parent.mkdir(exist_ok=True)
        with replacing(folder / "tasks.json") as temporary:
            result.tasks.save(temporary)
        for name in ("labels", "phenotypes"):
            write_parquet(getattr(result, name).sort("study_id", maintain_order=True), folder / f"{name}.parquet")
        write_parquet(result.covariates.sort("study_id"), folder / COVARIATES)
        files = {name: sha256_of(folder / name) for name in LABEL_FILES}
        write_json(folder / STAMP, {"inputs": inputs, "files": files, "counts": result.counts})
        stamp = json.loads((folder / STAMP).read_text())
        reused = False
    else:
        reused = True
    return LabelStage(
        pl.read_parquet(folder / "labels.parquet", columns=["study_id"]),
        pl.read_parquet(folder / COVARIATES),
        stamp["counts"],
        inputs,
        reused,
    )


def _inputs(ehr, ontology, studies, config, fitted_on, map_shards) -> dict[str, str]:
    """Hash of everything that the label files are a function of, our own code included."""
    phenotypes = Path(config.phenotypes)
    if not phenotypes.is_file():
        raise ConfigError(f"ehr.phenotypes: {phenotypes} is not a file; configs/phenotypes/default.yaml is the default")
    table = BytesIO()
    studies.select(STUDY_COLUMNS).sort("study_id").write_parquet(table)
    settings = dataclasses.asdict(config) | {"phenotypes": sha256_of(phenotypes), "fitted_on": fitted_on}
    return {
        "studies": hashlib.sha256(table.getvalue()).hexdigest(),
        "ehr": _folder_hash(ehr, map_shards),
        "ontology": _folder_hash(ontology, map_shards) if ontology is not None else "",
        "config": hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest(),
        "code": _folder_hash(REPOSITORY / "ehr", _map_here, "*.py"),
    }


def _folder_hash(folder: Path, map_shards: MapShards, pattern: str = "*") -> str:
    """Hash over relative names and bytes of all files below a folder."""
    files = sorted(path for path in folder.rglob(pattern) if path.is_file())
    hashes = map_shards(sha256_of, files)
    names = [path.relative_to(folder).as_posix() for path in files]
    return hashlib.sha256(json.dumps(list(zip(names, hashes))).encode()).hexdigest()


def _map_here(function, items):
    return list(map(function, items))


def _valid_stamp(folder: Path, inputs: dict[str, str]) -> dict | None:
    try:
        stamp = json.loads((folder / STAMP).read_text())
        valid = stamp["inputs"] == inputs and all(sha256_of(folder / n) == h for n, h in stamp["files"].items())
        return stamp if valid and set(stamp["files"]) == set(LABEL_FILES) and "counts" in stamp else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
