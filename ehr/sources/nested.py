"""Nested MEDS (0.1 and 0.2: a patient per row, its events in lists) to flat MEDS, by explosion in bounded memory.

0.1    patient_id, static_measurements [code, numeric_value], events [time, measurements [code, numeric_value]]
0.2    patient_id, events [time (null: static), code, numeric_value]
flat   subject_id, time, code, numeric_value

Ids, times and codes are copied unchecked, apart from what these versions wrote for birth and death: reading the flat
files refuses or counts what is wrong with them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as parquet

from ehr.schema import BIRTH, DEATH, METADATA
from ehr.sources.meds import READ_BYTES, MedsSource, plain, read_metadata
from ehr.sources.meds_files import UNREADABLE, check_codes, check_columns, check_schema, event_files, unreadable
from ttepretrain.errors import BadDataError, ConfigError, IntegrityError, declared_full_disk

PATIENTS = 64  # exploded at a time; at INSPECT's density .75 million measurements
PART_ROWS = 1_000_000  # of a written file, until a batch of patients is full
FLAT_FILES = "the flat MEDS files that nested ones become"  # in messages
HEADERS_TOGETHER = 16  # read at a time; a footer takes a millisecond, and a network's answer ten
FIXED_CODES = {"SNOMED/184099003": BIRTH, "SNOMED/419620001": DEATH}  # what these versions wrote for them

_EVENT, _CODED = ("events",), ("events", "measurements")
_WANTED = {("patient_id",), ("events", "time")} | {
    (*path, name) for path in (("static_measurements",), _EVENT, _CODED) for name in ("code", "numeric_value")
}
_LIST_NODES = {"list", "element", "item", "bag", "array", "array_element"}  # by whom the file was written


def is_nested(folder: Path) -> bool:
    """Whether the first event file of a MEDS folder holds lists of events. IntegrityError when it is unreadable."""
    name = MedsSource(folder).shards()[0]
    return "events" in _schema(folder, name).names


def check_headers(folder: Path, timezone: str | None, date_only: str) -> None:
    """What the headers alone tell of a MEDS data set, flat or nested: ConfigError for columns that are missing, there
    twice or of a type that cannot be read exactly, IntegrityError for a file without a whole footer.
    """
    names = MedsSource(folder).shards()
    nested = "events" in _schema(folder, names[0]).names

    def check(name: str) -> None:
        schema = _schema(folder, name)
        _check(name, schema) if nested else check_schema(name, schema, timezone, date_only)

    with ThreadPoolExecutor(HEADERS_TOGETHER) as threads:
        for _ in threads.map(check, names):
            pass
    check_codes(folder)


def convert_nested(folder: Path, destination: Path, map_shards: Callable) -> dict:
    """Write the flat data set into an empty folder; returns the counts of what was read and dropped.

    Every written file is sorted by subject and time. Raises ConfigError for columns that are none of these versions',
    BadDataError when nothing usable is there, IntegrityError for damaged files, ResourceError for a full disk.
    """
    (destination / "data").mkdir()
    (destination / "metadata").mkdir()
    found_files = event_files(folder)
    files = list(enumerate(MedsSource(folder).shards()))
    found = map_shards(partial(flatten_file, folder=folder, destination=destination), files)
    counts = sum((Counter(part) for part in found), Counter())
    if not counts["rows"]:
        raise BadDataError("input.ehr: the nested MEDS files hold no measurement; is the extract complete?")
    metadata = read_metadata(folder)
    metadata = _listed_codes(folder) if metadata is None else metadata
    with declared_full_disk(destination, FLAT_FILES):
        if metadata is not None:
            metadata.write_parquet(destination / "metadata" / "codes.parquet")
        origin = {"dataset_name": "nested MEDS", "etl_name": "ttepretrain", "meds_version": "0.4.0"}
        (destination / "metadata" / "dataset.json").write_text(json.dumps(origin, indent=1) + "\n")
    of_files = {"files": len(files), "junk_files": found_files.junk, "unread_files": list(found_files.left)}
    return of_files | {name: counts[name] for name in _COUNTS}


def flatten_file(item: tuple[int, str], folder: Path, destination: Path) -> dict:
    """Write one nested file to data/<number>-<part>.parquet; returns its counts."""
    number, name = item
    counts: Counter[str] = Counter()
    waiting: list[pl.DataFrame] = []
    parts = 0
    with declared_full_disk(destination, FLAT_FILES):
        for rows, found in _batches(folder, name):
            counts.update(found)
            waiting.append(rows)
            if sum(map(len, waiting)) >= PART_ROWS:
                _write(waiting, destination / "data" / f"{number:05d}-{parts:03d}.parquet")
                waiting, parts = [], parts + 1
        if any(map(len, waiting)):
            _write(waiting, destination / "data" / f"{number:05d}-{parts:03d}.parquet")
    return dict(counts)


def _write(parts: list[pl.DataFrame], path: Path) -> None:
    # null (static) first, and what one moment holds in the order of the source
    pl.concat(parts).sort("subject_id", "time", nulls_last=False, maintain_order=True).write_parquet(path)


def _batches(folder: Path, name: str) -> Iterator[tuple[pl.DataFrame, dict]]:
    """Rows and counts of some patients of one file at a time."""
    _check(name, _schema(folder, name))
    try:
        options = {"buffer_size": READ_BYTES, "page_checksum_verification": True}
        with parquet.ParquetFile(folder / name, **options) as file:
            paths = [file.metadata.schema.column(i).path for i in range(file.metadata.num_columns)]
            wanted = [path for path in paths if tuple(p for p in path.split(".") if p not in _LIST_NODES) in _WANTED]
            for batch in file.iter_batches(PATIENTS, columns=wanted, use_threads=False):
                batch.validate(full=True)  # polars would take bytes that are no UTF-8 for text
                yield _exploded(pl.DataFrame(pl.from_arrow(batch)))
    except UNREADABLE as error:
        raise unreadable(folder, name, error) from None


def _exploded(patients: pl.DataFrame) -> tuple[pl.DataFrame, dict]:
    """subject_id, time, code, numeric_value of every measurement, and counts of them and of empty entries."""
    patients = patients.rename({"patient_id": "subject_id"})
    rows, null_events = _unpacked(patients.select("subject_id", "events"), "events")
    counts = {"patients": len(patients), "events": len(rows), "empty_events": 0, "null_entries": null_events}
    if "measurements" in rows.columns:
        counts["empty_events"] = int((rows["measurements"].list.len().fill_null(0) == 0).sum())
        rows, null_measurements = _unpacked(rows, "measurements")
        counts["null_entries"] += null_measurements
    if "static_measurements" in patients.columns:
        static, null_measurements = _unpacked(
            patients.select("subject_id", "static_measurements"), "static_measurements"
        )
        counts["null_entries"] += null_measurements
        rows = pl.concat([static.with_columns(time=pl.lit(None, rows.schema["time"])), rows], how="diagonal_relaxed")
    if "numeric_value" not in rows.columns:
        rows = rows.with_columns(numeric_value=None)
    code = pl.col("code").cast(pl.String)
    fixed = plain(code.replace(FIXED_CODES))
    counts |= {"rows": len(rows), "static": rows["time"].null_count()}
    counts |= {name.lower(): rows.select((fixed == name).sum()).item() for name in (BIRTH, DEATH)}
    value = pl.col("numeric_value").cast(pl.Float32, strict=False)
    return rows.select("subject_id", "time", code=fixed, numeric_value=value), counts


_COUNTS = ("patients", "events", "empty_events", "null_entries", "rows", "static", BIRTH.lower(), DEATH.lower())


def _unpacked(rows: pl.DataFrame, column: str) -> tuple[pl.DataFrame, int]:
    """A row per entry of the lists in `column`, the entry's fields as columns; and how many entries were null."""
    entries = rows.filter(pl.col(column).list.len() > 0).explode(column)
    kept = entries.filter(pl.col(column).is_not_null())
    return kept.unnest(column), len(entries) - len(kept)


def _schema(folder: Path, name: str) -> pa.Schema:
    try:
        return parquet.read_schema(folder / name)
    except UNREADABLE as error:
        raise unreadable(folder, name, error) from None


def _check(name: str, schema: pa.Schema) -> None:
    """ConfigError naming the column that is missing, there twice or no list of what it should be."""
    check_columns(name, schema.names, ("patient_id", "events"))
    event = _entry(schema, "events")
    if event is None or event.get_field_index("time") < 0:
        found = schema.field("events").type
        raise ConfigError(
            f"{name}: column events is {found}; nested MEDS has a list of events with time and measurements"
        )
    measurement = _entry(event, "measurements") or event
    static = _entry(schema, "static_measurements") or measurement
    if min(measurement.get_field_index("code"), static.get_field_index("code")) < 0:
        raise ConfigError(
            f"{name}: a measurement of column events or static_measurements has no code, or several; it has "
            f"{', '.join(field.name for field in measurement)}"
        )


def _entry(parent: pa.Schema | pa.StructType, column: str) -> pa.StructType | None:
    """Type of the entries of a column of lists of structs; None when it is absent or something else."""
    index = parent.get_field_index(column)
    kind = parent.field(index).type if index >= 0 else pa.null()
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return kind.value_type if is_list and pa.types.is_struct(kind.value_type) else None


def _listed_codes(folder: Path) -> pl.DataFrame | None:
    """`code_metadata` of metadata.json in the columns of schema.METADATA; None where nothing is listed."""
    try:
        listed = json.loads((folder / "metadata.json").read_text()).get("code_metadata") or {}
        rows = [
            (FIXED_CODES.get(code, code), entry.get("description"),
             [FIXED_CODES.get(parent, parent) for parent in entry.get("parent_codes") or []])
            for code, entry in listed.items()
        ]  # fmt: skip
        return pl.DataFrame(rows, schema=METADATA, orient="row").sort("code") if rows else None
    except FileNotFoundError:
        return None
    except (ValueError, AttributeError, TypeError, OSError, pl.exceptions.PolarsError) as error:
        raise IntegrityError(f"metadata.json: cannot be read ({type(error).__name__}); restore it") from None
