"""Tables of an OMOP CDM extract or an Athena export: found by name, read in batches of rows with bounded memory.

person.parquet   PERSON.csv.gz   person/part-0.parquet   conceptAncestor.csv   (either letter case, _ or not)

Left alone and counted: what macOS adds to archives (`._*`, `__MACOSX`). Rows that repeat the header are dropped.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.parquet as parquet

from ttepretrain.errors import ConfigError, IntegrityError

EVENT_TABLES = (
    "visit_occurrence", "condition_occurrence", "drug_exposure", "procedure_occurrence", "measurement", "observation",
    "device_exposure", "death",
)  # fmt: skip
VOCABULARY_TABLES = ("concept", "concept_relationship", "concept_ancestor")
_NAMES = ("person", *EVENT_TABLES, "observation_period", "cdm_source", *VOCABULARY_TABLES)
_BY_PLAIN_NAME = {name.replace("_", ""): name for name in _NAMES}

_EXTENSIONS = (".parquet", ".csv", ".csv.gz")
# Unquoted, in names and descriptions too, so fewer than columns.NULLS: a LOINC answer is called "None".
_NULLS = ["", "NA", "NULL", "\\N"]
_BATCH_ROWS = 250_000
_BLOCK_BYTES = 4 << 20
_UNREADABLE = (pa.ArrowException, OSError, UnicodeDecodeError, csv.Error)


@dataclass(frozen=True)
class Tables:
    """The tables of one folder. Plain data: travels to workers."""

    folder: Path
    files: dict[str, tuple[str, ...]]  # OMOP name -> file names relative to the folder, ascending
    ignored: int  # files that an archiver of macOS left


def find_tables(folder: Path) -> Tables:
    """OMOP tables of a folder, or of the only folder inside it; none found is no error.

    Raises ConfigError when one table is there twice.
    """
    junk = sum(_is_junk(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    root, found = folder, _tables_at(folder)
    while not found:
        inner = [path for path in root.iterdir() if path.is_dir() and not _is_junk(Path(path.name))]
        if len(inner) != 1:
            break
        root = inner[0]
        found = _tables_at(root)
    files = {name: tuple(str(path.relative_to(folder)) for path in paths) for name, paths in sorted(found.items())}
    return Tables(folder, files, junk)


def _tables_at(root: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in sorted(root.iterdir()):
        name = _BY_PLAIN_NAME.get(_without_extension(path.name).lower().replace("_", ""))
        parts = sorted(part for part in path.rglob("*") if part.is_file()) if path.is_dir() else [path]
        parts = [part for part in parts if _extension(part) and not _is_junk(part.relative_to(root))]
        if name is None or not parts:
            continue
        if name in found:
            raise ConfigError(f"table {name} is there twice ({found[name][0].name}, {path.name}); keep one of them")
        found[name] = parts
    return found


def _is_junk(relative: Path) -> bool:
    return "__MACOSX" in relative.parts or relative.name.startswith("._")


def _extension(path: Path) -> str | None:
    return next((ending for ending in _EXTENSIONS if path.name.lower().endswith(ending)), None)


def _without_extension(name: str) -> str:
    return name[: -len(_extension(Path(name)) or "")] if _extension(Path(name)) else name


def batches(
    folder: Path, name: str, columns: tuple[str, ...], required: tuple[str, ...] = ()
) -> Iterator[tuple[pl.DataFrame, int]]:
    """(rows, dropped header rows) of one file, in the given columns only; absent ones are null. csv cells are text.

    Raises ConfigError for a missing required column, IntegrityError for bytes that cannot be decoded.
    """
    path = folder / name
    read = _parquet_batches if _extension(path) == ".parquet" else _csv_batches
    try:
        for frame in read(path, columns):
            names = {column.lower(): column for column in frame.columns}
            for column in required:
                if column not in names:
                    raise ConfigError(f"{name}: no column {column}; it has {', '.join(sorted(names)) or 'none'}")
            chosen = frame.select(pl.col(names[c]).alias(c) if c in names else pl.lit(None).alias(c) for c in columns)
            rows = _without_headers(chosen)
            yield rows, len(chosen) - len(rows)
    except _UNREADABLE as error:
        raise IntegrityError(
            f"{name}: cannot be decoded ({type(error).__name__}); labels need every file, restore it"
        ) from None


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


def _parquet_batches(path: Path, columns: tuple[str, ...]) -> Iterator[pl.DataFrame]:
    with parquet.ParquetFile(path, pre_buffer=False) as file:
        names = file.schema_arrow.names
        wanted = [name for name in names if name.lower() in columns]
        for batch in file.iter_batches(_BATCH_ROWS, columns=wanted or None):
            frame = pl.DataFrame(pl.from_arrow(batch))
            if not wanted and batch.num_rows:  # the header is the first row: an "empty" table of a csv converter
                first = frame.row(0)
                if not any(isinstance(cell, str) and cell.lower() in columns for cell in first):
                    raise ConfigError(f"{path.name}: none of the columns of this OMOP table; is it another table?")
                names = [str(cell) for cell in first]
                wanted = names
            yield frame if frame.columns == wanted else frame.rename(dict(zip(frame.columns, names)))


def _csv_batches(path: Path, columns: tuple[str, ...]) -> Iterator[pl.DataFrame]:
    names, delimiter = _header(path)
    wanted = [name for name in names if name.lower() in columns]
    if not names:
        return
    quoted = delimiter != "\t"  # Athena's tab-separated files do not quote, and hold single quotation marks
    with _opened(path) as stream:
        reader = arrow_csv.open_csv(
            stream,
            arrow_csv.ReadOptions(block_size=_BLOCK_BYTES, use_threads=False),
            arrow_csv.ParseOptions(delimiter=delimiter, quote_char='"' if quoted else False, newlines_in_values=quoted),
            arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()),
                include_columns=wanted or names[:1],
                null_values=_NULLS,
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )
        for batch in reader:
            # quoted nulls are text, but a quoted nothing is nothing
            yield pl.DataFrame(pl.from_arrow(batch)).with_columns(pl.when(pl.all() != "").then(pl.all()))


def _opened(path: Path) -> pa.NativeFile:
    # arrow's own "detect" takes PERSON.CSV.GZ for text
    return pa.input_stream(str(path), compression="gzip" if path.suffix.lower() == ".gz" else None)


def _header(path: Path) -> tuple[list[str], str]:
    """Column names of the first line, and what separates them; none in a file of no bytes."""
    with _opened(path) as stream:
        line = stream.read(1 << 16).decode("utf-8-sig", errors="ignore").split("\n")[0].rstrip("\r")
    delimiter = max("\t,;|", key=line.count)
    return next(csv.reader([line], delimiter=delimiter), []), delimiter
