"""Files of tables that users hand in. Cells are read by ehr/sources/columns.py; those of csv and tsv arrive as text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from ehr.sources.columns import words
from ttepretrain.errors import ConfigError, IntegrityError


def read_table(path: Path, key: str) -> pl.DataFrame:
    """The columns as they are, those of a csv as text; ConfigError names the configuration key it was given under."""
    if path.suffix not in (".parquet", ".csv"):
        raise ConfigError(f"{key}: {path.name}: a .parquet or .csv table is needed")
    if not path.is_file():
        raise ConfigError(f"{key}: {path} is not a file; give the path of a .parquet or .csv table")
    with _declared_damage(path, key):
        return pl.read_parquet(path) if path.suffix == ".parquet" else pl.read_csv(path, infer_schema=False)


def read_inspect_table(path: Path, columns: tuple[str, ...], key: str) -> pl.DataFrame:
    """All columns of one of INSPECT's tables (.tsv or .csv), as text; null where a cell says so, names included.

    ConfigError for an absent file or column, IntegrityError for a damaged file.
    """
    if not path.is_file():
        raise ConfigError(f"{key}: {path} is not a file; give the path of INSPECT's table")
    with _declared_damage(path, key):
        table = pl.read_csv(path, separator="," if path.suffix == ".csv" else "\t", infer_schema=False)
    if missing := [name for name in columns if name not in table.columns]:
        raise ConfigError(
            f"{key}: {path.name}: no column {', '.join(missing)}, as INSPECT's has; it has {', '.join(table.columns)}"
        )
    return table.with_columns(words(column, f"{key}: {path.name}: column {column.name}") for column in table)


@contextmanager
def _declared_damage(path: Path, key: str) -> Iterator[None]:
    try:
        yield
    except pl.exceptions.PolarsError as error:
        raise IntegrityError(f"{key}: {path.name} cannot be read ({type(error).__name__}); it is damaged") from None
