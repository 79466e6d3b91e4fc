"""The inputs of jobs.prepare: where they are, and the table of studies with its splits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.config import RunConfig
from ttepretrain.errors import ConfigError

if TYPE_CHECKING:  # they import polars, which is not needed to answer a typo
    import polars as pl

    from data.given.study_table import StudyTable


@dataclass(frozen=True)
class Inputs:
    """Absolute paths: on a cluster the workers run in another folder."""

    studies: Path
    ehr: Path | None
    ontology: Path | None
    splits: Path | None


def find_inputs(config: RunConfig) -> Inputs:
    """The configured inputs, or the run's own cohort; raises ConfigError for one that is missing."""
    given = config.input
    studies, ehr = _path(given.studies), _path(given.ehr)
    if studies is None and ehr is None:
        cohort = config.cohort_folder.absolute()
        studies, ehr = cohort / "studies.parquet", cohort / "ehr"
        if not studies.is_file():
            raise ConfigError(
                f"{config.cohort_folder} holds no cohort; run jobs.cohort first, or set input.studies and input.ehr"
            )
    if studies is None:
        raise ConfigError("input.studies is needed beside input.ehr; give the table of studies")
    inputs = Inputs(studies, ehr, _path(given.ontology), _path(given.splits))
    if "labels" in config.prepare.stages and inputs.ehr is None:
        raise ConfigError("input.ehr is needed by the labels stage; give its folder, or prepare.stages=[volumes]")
    for key, path in (("studies", inputs.studies), ("splits", inputs.splits)):
        if path is not None and not path.is_file():
            raise ConfigError(f"input.{key}: {path} is not a file; give the path of a .parquet or .csv table")
    for key, path in (("ehr", inputs.ehr), ("ontology", inputs.ontology)):
        if path is not None and not path.is_dir():
            raise ConfigError(f"input.{key}: {path} is not a folder; give the path of the data set's folder")
    return inputs


def _path(given: str | None) -> Path | None:
    return Path(given).absolute() if given else None


def read_inputs(config: RunConfig, inputs: Inputs) -> tuple[StudyTable, dict[str, int]]:
    """Studies with their splits, and how many subjects' splits came from which source."""
    from data.given.study_table import read_studies, refuse_unusable
    from data.subjects.splits import assign_splits, read_splits

    table = read_studies(inputs.studies, config.ehr.date_only, config.ehr.timezone, config.input.keep_rsna)
    refuse_unusable(table)
    own = inputs.ehr / "metadata" / "subject_splits.parquet" if inputs.ehr else None
    frame, origins = assign_splits(
        table.frame,
        read_splits(inputs.splits, "input.splits") if inputs.splits else None,
        read_splits(own, "input.ehr") if own and own.is_file() else None,
        config.prepare.split_seed,
    )
    return replace(table, frame=frame), origins


def check_inputs(config: RunConfig, inputs: Inputs, studies: pl.DataFrame) -> pl.DataFrame | None:
    """Rows of the label tables (None: no label stage). All that headers and small files can tell is checked for it."""
    from data.labels.check import check_label_inputs

    if "labels" not in config.prepare.stages:
        return None
    assert inputs.ehr is not None, "find_inputs asks for it"
    return check_label_inputs(inputs.ehr, inputs.ontology, studies, config.ehr)
