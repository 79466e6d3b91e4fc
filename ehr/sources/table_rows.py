"""The rows of a table's files, in batches with bounded memory, and what their first bytes tell.

Rows that repeat the header are dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as parquet

from ehr.sources.delimited import cut_short, listed, read_delimited, read_header, refuse_twins, what_it_is
from ehr.sources.tables import PARQUET, extension
from ttepretrain.errors import ConfigError, IntegrityError

# Unquoted, in names and descriptions too, so fewer than columns.NULLS: a LOINC answer is called "None".
_NULLS = ["", "NA", "NULL", "\\N"]
_BATCH_ROWS = 250_000


def batches(
    folder: Path, name: str, columns: tuple[str, ...], required: tuple[str, ...] = ()
) -> Iterator[tuple[pl.DataFrame, int]]:
    """(rows, dropped header rows) of one file, in the given columns only; absent ones are null. csv cells are text.

    Raises ConfigError for a missing required column and for what is no such table, naming file and line;
    IntegrityError for bytes that cannot be decoded.
    """
    path, where = folder / name, str(folder / name)
    if extension(path) == PARQUET:
        all_names, frames = _open_parquet(path, where, columns)
    else:
        all_names = read_header(path, where).names
        frames = read_delimited(path, where, columns, _NULLS, literal_first=True)
    _check_names(all_names, where, columns, required)
    for frame in frames:
        names = {column.lower(): column for column in frame.columns}
        chosen = frame.select(pl.col(names[c]).alias(c) if c in names else pl.lit(None).alias(c) for c in columns)
        rows = _without_headers(chosen)
        yield rows, len(chosen) - len(rows)


def check_header(folder: Path, name: str, columns: tuple[str, ...], required: tuple[str, ...] = ()) -> list[str]:
    """The names of the columns; raises what `batches` raises of a file's first bytes, without reading on."""
    path, where = folder / name, str(folder / name)
    if extension(path) == PARQUET:
        names, _ = _open_parquet(path, where, columns)
    else:
        names = read_header(path, where).names
    _check_names(names, where, columns, required)
    return names


def _check_names(names: list[str], where: str, columns: tuple[str, ...], required: tuple[str, ...]) -> None:
    refuse_twins([name for name in names if name.lower() in columns], where)
    if names and (missing := [name for name in required if name not in {name.lower() for name in names}]):
        raise ConfigError(f"{where}: no column {', '.join(missing)}; it has {listed(names)}")


def _without_headers(frame: pl.DataFrame) -> pl.DataFrame:
    """Without the rows that hold the column names themselves (tables once joined with their headers)."""
    texts = [name for name, dtype in frame.schema.items() if dtype == pl.String]
    if not texts:
        return frame
    header = pl.all_horizontal(
        *(pl.col(name).is_null() | (pl.col(name).str.to_lowercase() == name) for name in texts),
        pl.any_horizontal(pl.col(name).is_not_null() for name in texts),
    )
    return frame.filter(~header)


def _open_parquet(path: Path, where: str, columns: tuple[str, ...]) -> tuple[list[str], Iterator[pl.DataFrame]]:
    """All column names, and batches of `columns`. The names may stand in the first row: a csv converter's "empty"
    table."""
    if problem := what_it_is(path):
        raise ConfigError(f"{where} {problem}")
    try:
        with parquet.ParquetFile(path, pre_buffer=False) as file:
            names = file.schema_arrow.names
            if any(name.lower() in columns for name in names) or not file.metadata.num_rows or not names:
                return names, _parquet_batches(path, where, [name for name in names if name.lower() in columns], None)
            first = next(file.iter_batches(1)).to_pylist()[0].values() if len(set(names)) == len(names) else ()
    except (pa.ArrowException, OSError) as error:
        raise IntegrityError(f"{where}: {cut_short(error)}") from None
    inner = [str(cell) for cell in first]
    if not any(name.lower() in columns for name in inner):
        raise ConfigError(
            f"{where}: none of the columns of this OMOP table; is it another table? It has {listed(names)}"
        )
    return inner, _parquet_batches(path, where, names, inner)


def _parquet_batches(path: Path, where: str, wanted: list[str], renamed: list[str] | None) -> Iterator[pl.DataFrame]:
    try:
        with parquet.ParquetFile(path, pre_buffer=False) as file:
            for batch in file.iter_batches(_BATCH_ROWS, columns=wanted):
                frame = pl.DataFrame(pl.from_arrow(batch))
                yield frame.rename(dict(zip(wanted, renamed))) if renamed else frame
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise IntegrityError(f"{where}: {cut_short(error)}") from None
