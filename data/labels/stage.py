"""The label stage: EHR and ontology to the label files of `prepared/`, done once per input."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow.parquet as parquet

from data.given.label_tables import read_label_tables, with_label_tables
from data.labels.judge import judge_labels
from data.labels.label_files import ALWAYS, COVARIATES, write_label_files
from data.labels.source_hash import closure_hash
from data.labels.stamps import read_stamp, write_stamp
from data.subjects.leakage import check_frozen_tasks
from ehr.config import EhrConfig
from ehr.phenotype_file import read_phenotypes
from ehr.schema import BIRTH
from ttepretrain.errors import ConfigError
from ttepretrain.files import files_below, sha256_of
from ttepretrain.log import log

if TYPE_CHECKING:  # it imports what only a run of the stage needs
    from data.labels.records import Records

MapShards = Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]

STAMP = "stages/labels.json"  # what the files below were made from
SCRATCH = "stages/scratch"
STUDY_COLUMNS = ("study_id", "subject_id", "study_time", "date_only", "split")


@dataclass(frozen=True)
class LabelStage:
    folder: Path  # that holds the files
    labels: pl.DataFrame  # study_id
    counts: dict  # of summary.json
    inputs: dict  # hashes, of provenance.json
    files: tuple[str, ...]  # all that the stage wrote, relative to the folder
    reused: bool

    @property
    def covariates(self) -> pl.DataFrame:
        """Table of the file; past_codes as categories, which take a fifth of the memory of strings."""
        table = parquet.read_table(self.folder / COVARIATES, read_dictionary=["past_codes.list.element"])
        return pl.DataFrame(pl.from_arrow(table))


def make_labels(
    folder: Path,
    ehr: Path,
    ontology: Path | None,
    studies: pl.DataFrame,
    config: EhrConfig,
    fitted_on: dict,
    map_shards: MapShards,
    given: pl.DataFrame | None = None,
) -> LabelStage:
    """Label files of `folder`, from its last run when nothing they depend on has changed since.

    given: what `given_labels` has read already.
    """
    given = given_labels(config, studies) if given is None else given
    inputs = _inputs(ehr, ontology, studies, config, fitted_on)
    frozen = None if config.tasks is None else _frozen_tasks(folder, Path(config.tasks), fitted_on)
    stamp = _valid_stamp(folder, inputs)
    reused = stamp is not None
    if stamp is None:
        from data.labels.records import open_records

        records = open_records(folder, ehr, ontology, config, inputs, map_shards)
        names, counts = _write_labels(folder, records, studies, given, config, fitted_on, map_shards)
        counts |= {"frozen_tasks_fitted_on": frozen} if frozen else {}
        stamp = write_stamp(folder, STAMP, inputs, [*names, *records.files], counts)
    judge_labels(stamp["counts"], config)
    return LabelStage(
        folder,
        pl.read_parquet(folder / "labels.parquet", columns=["study_id"]),
        stamp["counts"],
        inputs,
        (STAMP, *stamp["files"]),
        reused,
    )


def _write_labels(
    folder: Path,
    records: Records,
    studies: pl.DataFrame,
    given: pl.DataFrame,
    config: EhrConfig,
    fitted_on: dict,
    map_shards: MapShards,
) -> tuple[list[str], dict]:
    """Names of the label files, relative to the folder, and the counts of all passes. given: rows of label tables."""
    from ehr.build import build_labels

    table = studies.select(STUDY_COLUMNS)
    with ThreadPoolExecutor(1) as beside:
        with _scratch(folder, beside) as scratch:
            result = build_labels(records.ehr, records.ontology, table, config, map_shards, fitted_on, scratch)
        phenotypes, counts = with_label_tables(
            result.phenotypes, given, table["study_id"], result.labels["study_id"], result.tasks.blackout_days
        )
        names = write_label_files(folder, result, phenotypes, table)
    studies_of = result.counts["studies"] | {"without_past": _without_past(result.covariates["past_codes"])}
    unanswered = sorted(set(result.counts["phenotypes_without_rows"]) - set(given["phenotype"]))
    counts = {"label_tables": counts} if config.label_tables else {}
    ours = {"phenotypes_without_rows": unanswered, "studies": studies_of}
    return names, counts | result.counts | records.counts | ours


def _without_past(past_codes: pl.Series) -> int:
    """Labelled studies whose subject has no record up to the scan, but for a birth."""
    number, first = past_codes.list.len(), past_codes.list.first().cast(pl.String)
    return int(((number == 0) | ((number == 1) & (first == BIRTH))).sum())


@contextmanager
def _scratch(folder: Path, beside: Executor) -> Iterator[Path]:
    """An empty folder that all workers see; one left by a kill is removed first.

    It is removed by `beside` after the block, which takes seconds: it holds gigabytes.
    """
    scratch = folder.absolute() / SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        yield scratch
    finally:
        beside.submit(shutil.rmtree, scratch, ignore_errors=True)


def given_labels(config: EhrConfig, studies: pl.DataFrame) -> pl.DataFrame:
    """Rows of the user's label tables. All small files are checked here, before the long pass over the records."""
    phenotypes = Path(config.phenotypes)
    if not phenotypes.is_file():
        raise ConfigError(f"ehr.phenotypes: {phenotypes} is not a file; configs/phenotypes/default.yaml is the default")
    if config.tasks and not Path(config.tasks).is_file():
        raise ConfigError(
            f"ehr.tasks: {config.tasks} is not a file; give a prepared folder's or an export's tasks.json"
        )
    declared = {name: phenotype.kind for name, phenotype in read_phenotypes(phenotypes).items()}
    tables = [Path(path) for path in config.label_tables or []]
    return read_label_tables(tables, declared, studies, config.max_lost_fraction)


def _frozen_tasks(folder: Path, tasks: Path, fitted_on: dict) -> str:
    """What is known of its subjects; warns when nothing is."""
    known = check_frozen_tasks(folder, tasks, fitted_on)
    if known == "unknown":
        log.warning(
            "ehr.tasks: whether held-out subjects are among those it was fitted on cannot be checked; give the "
            "tasks.json of the prepared folder it comes from, or share its salt (prepare.salt_file)"
        )
    return known


def _inputs(
    ehr: Path, ontology: Path | None, studies: pl.DataFrame, config: EhrConfig, fitted_on: dict
) -> dict[str, str]:
    """Hash of everything that the label files are a function of, our own code included.

    The code that read the table of studies is not part of it: what came of that table is.
    """
    table = BytesIO()
    studies.select(STUDY_COLUMNS).sort("study_id").write_parquet(table)
    settings = dataclasses.asdict(config) | {
        "phenotypes": sha256_of(Path(config.phenotypes)),
        "tasks": sha256_of(Path(config.tasks)) if config.tasks else None,
        "label_tables": [sha256_of(Path(path)) for path in config.label_tables or []],
        "fitted_on": fitted_on,
    }
    return {
        "studies": hashlib.sha256(table.getvalue()).hexdigest(),
        "ehr": _folder_hash(ehr),
        "ontology": _folder_hash(ontology) if ontology is not None else "",
        "config": hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest(),
        "code": closure_hash(__name__),
    }


def _folder_hash(folder: Path) -> str:
    """Hash over relative names and bytes of all files below a folder."""
    files = [path for path in map(folder.joinpath, files_below(folder)) if path.is_file()]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:  # hashing lets other threads run
        hashes = threads.map(sha256_of, files)
    names = [path.relative_to(folder).as_posix() for path in files]
    return hashlib.sha256(json.dumps(list(zip(names, hashes))).encode()).hexdigest()


def _valid_stamp(folder: Path, inputs: dict[str, str]) -> dict | None:
    stamp = read_stamp(folder, STAMP, inputs)
    return stamp if stamp is not None and set(stamp["files"]) >= set(ALWAYS) else None
