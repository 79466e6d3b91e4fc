"""Files of tables that users hand in. Cells are read by ehr/sources/columns.py; those of csv and tsv arrive as text."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as parquet

from ehr.sources.columns import words
from ehr.sources.delimited import cut_short, listed, read_delimited, read_header, refuse_twins, what_it_is
from ttepretrain.errors import ConfigError, IntegrityError

ENDINGS = (".parquet", ".csv", ".tsv", ".csv.gz", ".tsv.gz")  # in either letter case


def read_table(path: Path, key: str) -> pl.DataFrame:
    """The columns as they are, those of a csv as text, without those that have no name.

    Raises ConfigError, naming the configuration key that the path was given under, for what is no table or has a
    column twice; IntegrityError for a file that is cut short.
    """
    where = f"{key}: {path.name}"
    if path.is_dir():
        raise ConfigError(f"{key}: {path} is a folder; give the path of a table in it")
    if not path.is_file():
        raise ConfigError(f"{key}: {path} is not a file; give the path of a .parquet or .csv table")
    if path.name.startswith("._"):
        raise ConfigError(f"{where} is what macOS keeps beside a file; give {path.name[2:]} itself")
    if not path.name.lower().endswith(ENDINGS):
        raise ConfigError(f"{where}: a .parquet or .csv table is needed (or .tsv, .csv.gz, .tsv.gz)")
    if path.suffix.lower() == ".parquet":
        return _read_parquet(path, where)
    names = [name for name in read_header(path, where).names if name]
    if not names:
        raise ConfigError(f"{where} is empty; a first line with the names of the columns is needed")
    refuse_twins(names, where)
    return pl.concat([pl.DataFrame(schema=dict.fromkeys(names, pl.String)), *read_delimited(path, where, None, [""])])


def _read_parquet(path: Path, where: str) -> pl.DataFrame:
    if problem := what_it_is(path):
        raise ConfigError(f"{where} {problem}")
    try:
        refuse_twins(parquet.read_schema(path).names, where)
        return pl.read_parquet(path, glob=False)
    except (pa.ArrowException, OSError, pl.exceptions.PolarsError) as error:
        raise IntegrityError(f"{where}: {cut_short(error)}") from None


def refuse_rowless(table: pl.DataFrame, where: str) -> None:
    if not len(table):
        raise ConfigError(f"{where}: the table has column names and no rows; fill it, or leave it out")


def is_inspects(path: Path, key: str) -> bool:
    """Whether a table is in INSPECT's layout: a .tsv that does not call its studies `study_id`."""
    if not path.name.lower().endswith((".tsv", ".tsv.gz")):
        return False
    return not path.is_file() or "study_id" not in read_header(path, f"{key}: {path.name}").names


def read_inspect_table(path: Path, columns: tuple[str, ...], key: str) -> pl.DataFrame:
    """All columns of one of INSPECT's tables (.tsv or .csv), as text; null where a cell says so, names included.

    Raises ConfigError for an absent column, and as `read_table`.
    """
    table = read_table(path, key)
    if missing := [name for name in columns if name not in table.columns]:
        raise ConfigError(
            f"{key}: {path.name}: no column {', '.join(missing)}, as INSPECT's has; it has {listed(table.columns)}"
        )
    return table.with_columns(words(column, f"{key}: {path.name}: column {column.name}") for column in table)
