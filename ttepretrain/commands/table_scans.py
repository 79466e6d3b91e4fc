"""A user's table of scans: columns key and image of a csv or parquet file. No torch here.

csv by the rules of the study table: UTF-8, columns separated by comma, semicolon, tab or bar, every row with as many
cells as the header. Errors name file and line, never a cell: a cell may be a patient's name.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from ttepretrain.errors import ConfigError

COLUMNS = ("key", "image")
SUFFIXES = (".csv", ".parquet")


def read_scan_table(path: Path) -> list[tuple[str, str]]:
    """(key, image) of every row, as text. Raises ConfigError for what cannot be meant."""
    if not path.is_file():
        raise ConfigError(f"INPUT {path} is no regular file")
    rows = list(_csv_rows(path) if path.name.lower().endswith(".csv") else _parquet_rows(path))
    empty = sum(not (key and image) for key, image in rows)
    if empty:
        raise ConfigError(f"{path}: {empty} rows without key or image; remove them")
    return rows


def _parquet_rows(path: Path) -> Iterator[tuple[str, str]]:
    import pyarrow as pa
    import pyarrow.parquet

    try:
        with path.open("rb") as opened:
            file = pyarrow.parquet.ParquetFile(opened)
            names = file.schema_arrow.names
            _check_columns(path, names)
            table = file.read(columns=list(COLUMNS))
        return zip(*(table[name].cast(pa.string()).to_pylist() for name in COLUMNS))
    except (pa.ArrowException, OSError) as error:  # its text may hold cells
        raise ConfigError(f"{path} is not a table: no parquet file with text in {COLUMNS} ({_name(error)})") from None


def _csv_rows(path: Path) -> Iterator[tuple[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            delimiter = max(",\t;|", key=first.count)
            file.seek(0)
            lines = _Lines(file)
            yield from _rows(path, lines, csv.reader(lines, delimiter=delimiter, strict=True), delimiter)
    except UnicodeDecodeError:
        raise ConfigError(
            f"{path} is not a table: it is not UTF-8 text; convert it, as with `iconv -f WINDOWS-1252 -t UTF-8`"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None


def _rows(path: Path, lines: _Lines, reader: Iterator[list[str]], delimiter: str) -> Iterator[tuple[str, str]]:
    names: list[str] | None = None
    wanted = [0, 0]
    while True:
        lines.record.clear()
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            if "field limit" in str(error):
                most = csv.field_size_limit()
                raise ConfigError(f"{path}: line {lines.first}: a cell of more than {most} characters") from None
            raise ConfigError(
                f"{path} is not a table: line {lines.first}: a quotation mark is not closed, or text follows the mark "
                'that closes; double the marks inside of a cell ("")'
            ) from None
        if not cells:
            continue
        if names is None:
            names = cells
            _check_columns(path, names)
            wanted = [names.index(name) for name in COLUMNS]
            continue
        if len(cells) != len(names):
            raise ConfigError(
                f"{path} is not a table: line {lines.first}: {len(cells)} cells, but the header has {len(names)}; "
                "quote cells that hold a separator"
            )
        if any(line.count(delimiter) == len(names) - 1 for line in lines.record[1:-1]):
            raise ConfigError(
                f"{path} is not a table: line {lines.first}: a cell begins with a quotation mark that is closed some "
                "lines below, and lines that look like whole rows stand between; remove the mark"
            )
        yield cells[wanted[0]], cells[wanted[1]]
    if names is None:
        raise ConfigError(f"{path} is not a table: it is empty")


class _Lines:
    """Lines of a file for csv.reader; keeps those of the present record."""

    def __init__(self, file: Iterator[str]):
        self._file = file
        self._read = 0
        self.record: list[str] = []

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = next(self._file)
        self._read += 1
        self.record.append(line)
        return line

    @property
    def first(self) -> int:
        """Number of the present record's first line."""
        return self._read - len(self.record) + 1


def _check_columns(path: Path, names: list[str]) -> None:
    """The names are not told: in a table without a header they are a patient's."""
    for name in COLUMNS:
        if names.count(name) != 1:
            many = "twice" if name in names else "not there"
            raise ConfigError(f"{path} needs the columns key and image in its first line; {name} is {many}")


def _name(error: Exception) -> str:
    return type(error).__name__
