"""What the label stage reads: a flat MEDS data set, vocabulary tables pruned to the data. Made once per input.

input.ehr  MEDS ---------------------------------> as it is
           nested MEDS -- convert_nested -------> stages/meds/
           OMOP -- convert_omop ----------------> stages/meds/
concepts   input.ontology, or beside the OMOP tables -- pruned_vocabulary --> stages/ontology/metadata/codes.parquet
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from data.labels.source_hash import closure_hash
from data.labels.stamps import read_stamp, write_stamp
from data.parquet_files import write_parquet
from ehr.choice.referred import referred_codes
from ehr.codes.athena import pruned_vocabulary
from ehr.codes.icd import icd_parents
from ehr.config import EhrConfig
from ehr.conversion import convert_omop
from ehr.omop_losses import judge_conversion
from ehr.phenotype_file import read_phenotypes
from ehr.sources.meds import MedsSource, read_metadata
from ehr.sources.meds_files import event_files
from ehr.sources.nested import convert_nested, is_nested
from ehr.sources.omop import Clock
from ehr.sources.tables import Tables, find_tables
from ttepretrain.errors import ConfigError
from ttepretrain.files import crash_point, sync

MapShards = Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]

MEDS = "stages/meds"
ONTOLOGY = "stages/ontology"
CODES = f"{ONTOLOGY}/metadata/codes.parquet"
STAMPS = {"omop": f"{MEDS}.json", "nested_meds": f"{MEDS}.json", "ontology": f"{ONTOLOGY}.json"}


@dataclass(frozen=True)
class Records:
    ehr: Path  # a MEDS data set
    ontology: Path | None  # a folder with metadata/codes.parquet
    counts: dict  # of summary.json: `omop` or `nested_meds`, and `ontology`, where there was something to do
    files: tuple[str, ...]  # made in the prepared folder, the stages' stamps included


def open_records(
    folder: Path, ehr: Path, ontology: Path | None, config: EhrConfig, inputs: dict[str, str], map_shards: MapShards
) -> Records:
    """Records of input.ehr and input.ontology, made in `folder` where they must be.

    inputs: hashes of `ehr` and `ontology`, among others. Raises ConfigError for an input that is
    neither MEDS nor OMOP, and what the conversions raise.
    """
    inputs = {name: inputs[name] for name in ("ehr", "ontology")} | {"code": closure_hash(__name__)}
    tables, given = tables_of(ehr, ontology)
    for key, read in (("input.ehr", tables), ("input.ontology", given)):
        if read is not None:
            read.warn_of_files(key)
    vocabularies = [found for found in (tables, given) if found is not None]
    meds, stamps = ehr, {}
    if tables is not None:
        meds = folder / MEDS
        clock, inpatient = Clock(config.timezone, config.date_only), sorted(set(config.omop_inpatient or []))
        stamps["omop"] = _converted(
            folder,
            inputs | dataclasses.asdict(clock) | {"inpatient": inpatient},
            lambda destination: convert_omop(tables, vocabularies, destination, clock, map_shards, inpatient),
        )
        judge_conversion(stamps["omop"]["counts"], config.max_lost_fraction)
        _refuse_bare_dates(stamps["omop"]["counts"], config)
    elif is_nested(ehr):
        meds, nested = folder / MEDS, ehr.absolute()
        stamps["nested_meds"] = _converted(
            folder, inputs, lambda destination: convert_nested(nested, destination, map_shards)
        )
    if vocabularies:
        source = MedsSource(meds.absolute(), config.timezone, config.date_only)
        referred = sorted(set(referred_codes(read_phenotypes(Path(config.phenotypes)), config)))
        stamps["ontology"] = _pruned(folder, source, vocabularies, inputs, referred, map_shards)
    return Records(
        meds,
        folder / ONTOLOGY if vocabularies else None,
        {name: stamp["counts"] for name, stamp in stamps.items()},
        tuple(file for stage, stamp in stamps.items() for file in (STAMPS[stage], *stamp["files"])),
    )


def tables_of(ehr: Path, ontology: Path | None) -> tuple[Tables | None, Tables | None]:
    """OMOP tables of input.ehr (None: it is a MEDS data set) and vocabulary tables of input.ontology.

    Raises ConfigError for an input that is neither.
    """
    found = find_tables(ehr)
    tables = found if "person" in found.files else None
    if tables is None and not event_files(ehr).read:
        found.warn_of_files("input.ehr")
        raise ConfigError(
            f"input.ehr: {ehr} is neither a MEDS data set (data/**/*.parquet) nor an OMOP CDM extract (person, "
            "visit_occurrence, condition_occurrence, ... as .parquet, .csv or .csv.gz); give the root of one"
        )
    given = find_tables(ontology) if ontology is not None else None
    if given is not None and "concept" not in given.files:
        given.warn_of_files("input.ontology")
        raise ConfigError(f"input.ontology: {ontology} holds no table CONCEPT; give an unpacked Athena export")
    return tables, given


def _converted(folder: Path, inputs: dict, convert: Callable[[Path], dict]) -> dict:
    """Stamp of stages/meds, which `convert` fills under another name first."""
    stamp = read_stamp(folder, f"{MEDS}.json", inputs)
    if stamp is not None:
        return stamp
    final, unfinished = folder / MEDS, folder / f"{MEDS}.unfinished"
    for leftover in (final, unfinished):
        if leftover.exists():
            shutil.rmtree(leftover)
    unfinished.mkdir(parents=True)
    counts = convert(unfinished.absolute())
    names = sorted(path.relative_to(unfinished).as_posix() for path in unfinished.rglob("*") if path.is_file())
    for name in names:
        sync(unfinished / name)
    crash_point("ehr_converted")
    unfinished.replace(final)
    return write_stamp(folder, f"{MEDS}.json", inputs, [f"{MEDS}/{name}" for name in names], counts)


def _refuse_bare_dates(counts: dict, config: EhrConfig) -> None:
    if config.date_only == "never" and any(table.get("date_only") for table in counts["tables"].values()):
        raise ConfigError(
            "ehr.date_only=never: the OMOP tables hold dates without a time of day, which it cannot place; use midnight"
        )


def _pruned(
    folder: Path, source: MedsSource, vocabularies: list[Tables], inputs: dict, referred: list[str],
    map_shards: MapShards,
) -> dict:  # fmt: skip
    """Stamp of stages/ontology: the vocabulary above the codes of the data and those that the configuration names."""
    inputs = inputs | {"referred": hashlib.sha256(json.dumps(referred).encode()).hexdigest()}
    stamp = read_stamp(folder, STAMPS["ontology"], inputs)
    if stamp is not None:
        return stamp
    seen = pl.concat([pl.Series("code", [], pl.String), *map_shards(source.codes, source.shards())]).unique()
    codes = pl.concat([seen, pl.Series("code", referred, pl.String), _listed_parents(source.folder)]).unique()
    # a code that no table knows may still lie below one that they do
    codes = pl.concat([codes, icd_parents(codes)["parent"].alias("code")]).unique()
    metadata, counts = pruned_vocabulary(vocabularies, codes, seen)
    (folder / CODES).parent.mkdir(parents=True, exist_ok=True)
    write_parquet(metadata, folder / CODES)
    return write_stamp(folder, STAMPS["ontology"], inputs, [CODES], counts)


def _listed_parents(meds: Path) -> pl.Series:
    """Every code that the data set's own metadata calls a parent: the tables may know what lies above it."""
    metadata = read_metadata(meds)
    listed = pl.Series([], dtype=pl.String) if metadata is None else metadata["parent_codes"].explode().drop_nulls()
    return listed.alias("code")
