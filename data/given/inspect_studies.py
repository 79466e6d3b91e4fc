"""INSPECT's public layout as a table of studies: `input.studies=INSPECT/study_mapping_20250611.tsv`.

study_mapping_*.tsv        impression_id, person_id, image_id, procedure_DATETIME, provenance
splits_*.tsv               impression_id, person_id, split (train, valid, test)
image_ehr_crosswalk_*.csv  person_id, image_id: only compared, where it is there or in EHR/
CTPA/<image_id>.nii.gz
"""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

import polars as pl

from data.given.user_tables import read_inspect_table
from ehr.sources.columns import whole_numbers
from ttepretrain.errors import ConfigError, LeakageError
from ttepretrain.log import log

MAPPING = ("impression_id", "person_id", "image_id", "procedure_DATETIME", "provenance")
SPLITS = ("impression_id", "person_id", "split")
CROSSWALK = ("person_id", "image_id")
OVERLAPPING = "rsna"  # provenance of studies that RSPECT has too


def read_inspect_studies(mapping: Path, keep_rsna: bool) -> tuple[pl.DataFrame, dict[str, int]]:
    """Columns of a study table and `provenance`, all of it text but the ids; and rows that were left out, by reason.

    Raises ConfigError where the tables contradict each other, LeakageError for a person in two splits, IntegrityError
    for a damaged table.
    """
    given = _with_ids(mapping, MAPPING)
    rows = given.unique(maintain_order=True)
    splits = _with_ids(_beside(mapping, "splits*.tsv"), SPLITS)
    _refuse_other_persons(rows, splits, "impression_id", "splits")
    if (crosswalk := _crosswalk(mapping)) is not None:
        _refuse_other_persons(rows, _with_ids(crosswalk, CROSSWALK), "image_id", "image_ehr_crosswalk")
    rows = rows.join(_of_persons(splits), on="person_id", how="left", maintain_order="left")
    counts = {"repeated_rows": len(given) - len(rows)}
    overlapping = (pl.col("provenance").str.to_lowercase() == OVERLAPPING).fill_null(False)
    for reason, left_out in (
        ("differing_rows_of_one_impression_id", pl.col("impression_id").is_duplicated()),
        ("provenance_rsna", overlapping & (not keep_rsna)),
        ("no_procedure_DATETIME", pl.col("procedure_DATETIME").is_null()),
        ("no_split", pl.col("split").is_null()),
    ):
        counts[reason] = rows.select(left_out.sum()).item()
        rows = rows.filter(~left_out)
    log.warning(
        f"input.studies: {len(rows)} of {len(given)} rows of INSPECT are studies; left out: "
        + (", ".join(f"{reason} {count}" for reason, count in counts.items() if count) or "none")
        + ". Its public EHR is scrubbed of deaths and readmissions: give labels_*.tsv under ehr.label_tables; death "
        "neither ends follow-up nor is a task"
    )
    table = rows.select(
        study_id="impression_id",
        subject_id="person_id",
        study_time="procedure_DATETIME",
        image=pl.format("CTPA/{}.nii.gz", "image_id"),
        split="split",
        provenance="provenance",
    )
    return table, counts


def _with_ids(path: Path, columns: tuple[str, ...]) -> pl.DataFrame:
    """The `columns`, person_id as int64."""
    table = read_inspect_table(path, columns, "input.studies")
    person = whole_numbers(table["person_id"], f"input.studies: {path.name}: column person_id")
    return table.with_columns(person).select(columns)


def _matching(folder: Path, pattern: str) -> list[Path]:
    """Files of a folder in either letter case, compressed too, without what macOS keeps beside them."""
    names = [path for path in sorted(folder.iterdir()) if path.is_file()] if folder.is_dir() else []
    return [path for path in names if fnmatch(path.name.lower().removesuffix(".gz"), pattern)]


def _beside(mapping: Path, pattern: str) -> Path:
    found = _matching(mapping.parent, pattern)
    if len(found) != 1:
        raise ConfigError(f"input.studies: {len(found)} files {pattern} beside {mapping.name}; one is needed")
    return found[0]


def _crosswalk(mapping: Path) -> Path | None:
    pattern = "image_ehr_crosswalk*.csv"
    found = [path for folder in (mapping.parent, mapping.parent / "EHR") for path in _matching(folder, pattern)]
    if len(found) > 1:
        raise ConfigError(f"input.studies: {len(found)} files {pattern}; keep one")
    return found[0] if found else None


def _refuse_other_persons(rows: pl.DataFrame, other: pl.DataFrame, on: str, name: str) -> None:
    """ConfigError where `other` gives an impression or image to another person."""
    both = rows.drop_nulls(on).join(other.drop_nulls(on), on=on, suffix="_of_other")
    wrong = both.filter(pl.col("person_id") != pl.col("person_id_of_other"))[on].n_unique()
    if wrong:
        raise ConfigError(
            f"input.studies: {wrong} of {on} belong to another person in {name} than in study_mapping; it is unknown "
            "which is right: correct the tables, or take both from one release"
        )


def _of_persons(splits: pl.DataFrame) -> pl.DataFrame:
    """person_id, split; every person once."""
    persons = splits.select("person_id", "split").drop_nulls().unique()
    if torn := len(persons) - persons["person_id"].n_unique():
        raise LeakageError(f"input.studies: {torn} persons of splits are in two splits; give each person one")
    return persons
