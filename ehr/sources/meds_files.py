"""The files of a MEDS data set: which ones hold events, what their headers must say, and what a file is that parquet's
reader does not take.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as parquet

from ehr.schema import EVENTS, METADATA
from ehr.sources.columns import NO_IDS, NO_LOCAL_ZONE, NO_TEXT
from ttepretrain.errors import ConfigError, IntegrityError
from ttepretrain.files import files_below

CODES_FILE = "metadata/codes.parquet"
# a flipped byte can panic inside polars instead of raising
UNREADABLE = (pa.ArrowException, pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, UnicodeDecodeError)
_TEXT = pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null


@dataclass(frozen=True)
class EventFiles:
    """Files below `data/`, names relative to the data set's folder, ascending."""

    read: tuple[str, ...]
    left: tuple[str, ...]  # not read, though they look like event files
    junk: int  # left by an archiver of macOS


def event_files(folder: Path) -> EventFiles:
    """The event files of a MEDS data set; none in a folder that is none. Nothing else decides it.

    Read is every *.parquet, in either letter case, at any depth, part files of Spark too; not what Spark and Hive hide
    (`_temporary`, `.part`). ConfigError for a Delta table: files of its older versions lie beside those of the newest.
    """
    read, left, junk = [], [], 0
    for name in files_below(folder / "data"):
        parts = name.split("/")
        if "_delta_log" in parts:
            raise ConfigError(
                f"input.ehr: data/{name} belongs to a Delta table, which keeps rows that were deleted since; write its "
                "newest version as plain parquet files"
            )
        if is_junk(name):
            junk += 1
        elif not parts[-1].lower().endswith(".parquet"):
            left += [name] if _resembles(folder / "data" / name) else []
        elif any(part.startswith(("_", ".")) for part in parts):
            left.append(name)
        else:
            read.append(name)
    return EventFiles(tuple(f"data/{name}" for name in read), tuple(f"data/{name}" for name in left), junk)


_DATA = {".parquet", ".pq", ".parq", ".csv", ".tsv", ".arrow", ".feather", ".ipc", ".avro", ".orc", ".jsonl", ".ndjson"}
_DATA |= {".zip", ".tar", ".tgz", ".7z", ".rar"}


def is_junk(name: str) -> bool:
    """Of a relative name: whether an archiver of macOS left the file."""
    *folders, last = name.split("/")
    return "__MACOSX" in folders or last.startswith("._")


def _resembles(path: Path) -> bool:
    """A file that is no checksum and whose name, or content where the name says nothing, is that of a table."""
    if path.name.startswith(".") or path.suffix.lower() in (".crc", ".md5", ".sha256"):
        return False
    if path.suffix or path.name.startswith("_"):
        return not _DATA.isdisjoint(suffix.lower() for suffix in path.suffixes)
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PAR1"
    except OSError:
        return False


def check_schema(name: str, schema: pa.Schema, timezone: str | None, date_only: str) -> None:
    """ConfigError naming the column that is missing, is there twice or does not say exactly what it holds."""
    check_columns(name, schema.names, tuple(EVENTS))
    types = {column: schema.field(column).type for column in EVENTS}
    if not (pa.types.is_integer(types["subject_id"]) or pa.types.is_null(types["subject_id"])):
        raise ConfigError(
            f"{name}: column subject_id is {types['subject_id']}; {NO_IDS}, write int64 (floats above 2^53 collide)"
        )
    code = types["code"].value_type if pa.types.is_dictionary(types["code"]) else types["code"]
    if not any(is_type(code) for is_type in _TEXT):
        raise ConfigError(f"{name}: column code is {types['code']}; {NO_TEXT}")
    time = types["time"]
    if pa.types.is_date(time) and date_only == "never":
        raise ConfigError(f"{name}: column time holds dates, which ehr.date_only=never cannot place; use midnight")
    if not (pa.types.is_timestamp(time) or pa.types.is_date(time) or pa.types.is_null(time)):
        raise ConfigError(f"{name}: column time is {time}; write timestamps[us], in local time and without a zone")
    if pa.types.is_timestamp(time) and time.tz is not None and timezone is None:
        raise ConfigError(f"{name}: column time has zone {time.tz}; {NO_LOCAL_ZONE}")


def check_columns(name: str, there: list[str], wanted: tuple[str, ...]) -> None:
    """ConfigError for a wanted column that is missing or there twice."""
    for column in wanted:
        if column not in there:
            raise ConfigError(f"{name}: no column {column}; it has {', '.join(sorted(there)) or 'none'}")
        if there.count(column) > 1:
            raise ConfigError(f"{name}: column {column} is there {there.count(column)} times; keep one of them")


def check_codes(folder: Path) -> None:
    """Of the header of metadata/codes.parquet, where there is one: ConfigError for a column missing, there twice or of
    another type.
    """
    if not (folder / CODES_FILE).exists():
        return
    try:
        schema = parquet.read_schema(folder / CODES_FILE)
    except UNREADABLE as error:
        raise unreadable(folder, CODES_FILE, error) from None
    check_columns(CODES_FILE, schema.names, ("code", *(name for name in METADATA if name in schema.names)))
    for column in METADATA:
        kind = schema.field(column).type if column in schema.names else pa.null()
        is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
        inner = kind.value_type if is_list else kind
        inner = inner.value_type if pa.types.is_dictionary(inner) else inner
        wants_list = column == "parent_codes"
        if not (pa.types.is_null(kind) or (is_list == wants_list and any(is_type(inner) for is_type in _TEXT))):
            what = "lists of text" if wants_list else "text"
            raise ConfigError(f"{CODES_FILE}: column {column} is {kind}; write {what}")


def unreadable(folder: Path, name: str, error: Exception) -> ConfigError | IntegrityError:
    """What a file is that parquet's reader does not take: something else, out of reach, or damaged."""
    if isinstance(error, OSError) and error.errno is not None:
        return IntegrityError(f"{name}: cannot be read ({os.strerror(error.errno)}); labels need every file")
    what = _other_content(folder / name)
    if what is not None:
        return ConfigError(f"{name}: is {what} and no parquet file; write it as parquet, or take it out of the folder")
    return IntegrityError(
        f"{name}: damaged or incomplete parquet ({type(error).__name__}); labels need every file, restore it"
    )


_CONTENTS = {
    b"\x1f\x8b": "compressed by gzip",
    b"PK\x03\x04": "a zip archive",
    b"BZh": "compressed by bzip2",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"\xfd7zXZ": "compressed by xz",
    b"ARROW1": "an Arrow (feather) file",
    b"ORC": "an ORC file",
    b"Obj\x01": "an Avro file",
    b"PARE": "an encrypted parquet file",
    b"version https://git-lfs": "a pointer of Git LFS, whose content was not fetched (git lfs pull),",
}


def _other_content(path: Path) -> str | None:
    """What a file is by its first bytes; None where it may be parquet."""
    try:
        with path.open("rb") as file:
            head = file.read(1024)
    except OSError:
        return None
    known = next((what for magic, what in _CONTENTS.items() if head.startswith(magic)), None)
    if known is not None or head.startswith(b"PAR1") or not head:
        return known
    return "text" if all(byte >= 32 or byte in b"\t\r\n" for byte in head) else None
