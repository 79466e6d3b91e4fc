"""MEDS data sets (0.3, 0.4): flat parquet shards under `data/`, code metadata under `metadata/`.

Tolerated: further columns, any string or integer width, rows in any order, duplicates, subjects spread over shards,
Spark's folders of part files, links, MEDS_DEATH//anything for MEDS_DEATH (and so of births).
Refused with the file and column named: zoned times without `ehr.timezone`, null or floating ids, times as text, a
column that is there twice.
Dropped and counted: null or empty codes, placeholder dates; a death on such a date becomes one without a date.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as parquet

from ehr.schema import BIRTH, DEATH, EVENTS, METADATA, QUALIFIED
from ehr.sources import sentinels
from ehr.sources.meds_files import CODES_FILE, UNREADABLE, check_codes, check_schema, event_files, unreadable
from ehr.sources.sentinels import local_times
from ehr.timeline import NEVER
from ttepretrain.errors import BadDataError, ConfigError

BATCH_ROWS = 1 << 20  # decoded at a time: 24 MB, whatever the size of file or row group
READ_BYTES = 1 << 20  # compressed bytes of a column held at a time


_NAMED = (pl.col("code") != "").fill_null(False).alias("named")
_BIRTH, _DEATH = ((pl.col("code") == name).fill_null(False).alias(name) for name in (BIRTH, DEATH))
_QUALIFIED = pl.any_horizontal(pl.col("code").str.starts_with(prefix) for prefix in QUALIFIED).fill_null(False)


@dataclass(frozen=True)
class Batch:
    """Usable events as parallel arrays, in the order of the file."""

    subject_id: np.ndarray  # int64
    time: np.ndarray  # int64 us; NEVER for static events
    code: np.ndarray  # int32, place in `codes`
    codes: pl.Series  # strings as `plain` makes them, unique; may hold some that no event has
    death: int  # place of MEDS_DEATH; -1 without it
    counts: dict  # rows, static, null_codes, placeholder_dates, qualified_codes (none: left out), of all rows read
    placeholders: pl.Series  # codes of the rows that were dropped for their date

    def by_subject(self) -> Batch:
        """Events grouped by subject, in the order of the file."""
        order = np.argsort(self.subject_id, kind="stable")
        return replace(self, subject_id=self.subject_id[order], time=self.time[order], code=self.code[order])


@dataclass(frozen=True)
class MedsSource:
    """A MEDS folder and the rules its times are read by. Plain data: travels to workers."""

    folder: Path
    timezone: str | None = None
    date_only: str = "midnight"

    def shards(self) -> list[str]:
        """Names of the event files, relative to the folder, ascending. ConfigError when there is none."""
        if not self.folder.is_dir():
            raise ConfigError(f"input.ehr: {self.folder} is not a folder; give the root of a MEDS data set")
        files = event_files(self.folder)
        if not files.read:
            raise ConfigError(f"input.ehr: {self.folder} holds no data/**/*.parquet; give the root of a MEDS data set")
        return list(files.read)

    def file_counts(self) -> dict:
        """Of event_files, for summary.json."""
        files = event_files(self.folder)
        return {"files": len(files.read), "junk_files": files.junk, "unread_files": list(files.left)}

    def batches(self, name: str) -> Iterator[Batch]:
        """Events of one file. Raises ConfigError for a column that cannot be read exactly, BadDataError for bad ids,
        IntegrityError for bytes that cannot be decoded.
        """
        try:
            metadata = parquet.read_metadata(self.folder / name)
            check_schema(name, metadata.schema.to_arrow_schema(), self.timezone, self.date_only)
            # dictionaries as they are stored, of any string type: a string per event would take twice the time
            options = {"metadata": metadata, "read_dictionary": ["code"], "buffer_size": READ_BYTES}
            options["page_checksum_verification"] = True  # of the pages that have one
            options["coerce_int96_timestamp_unit"] = "us"  # Spark's: as ns, the year 9999 would become 1816
            with parquet.ParquetFile(self.folder / name, **options) as file:
                for group in range(file.num_row_groups):
                    for rows in file.iter_batches(BATCH_ROWS, [group], list(EVENTS), use_threads=False):
                        yield self._batch(name, rows)
        except UNREADABLE as error:
            raise unreadable(self.folder, name, error) from None

    def codes(self, name: str) -> pl.Series:
        """Codes that the file's usable events have."""
        found = [batch.codes.gather(np.unique(batch.code)) for batch in self.batches(name)]
        return pl.concat([pl.Series("code", [], pl.String), *found]).unique()

    def _batch(self, name: str, rows: pa.RecordBatch) -> Batch:
        # a worker's: the driver does without half a second of imports
        from ehr.sources.placeholders import any_placeholder, usable_rows

        subject_id, (code, codes) = _subject(name, rows.column("subject_id")), _code(rows.column("code"))
        time = self._time(rows.column("time"))
        counts = {"rows": len(time), "static": rows.column("time").null_count}
        named, birth, dead, qualified = codes.to_frame().select(_NAMED, _BIRTH, _DEATH, _QUALIFIED).to_numpy().T
        if qualified.any():
            counts["qualified_codes"] = int(np.append(qualified, False)[code].sum())
            code, codes = _plain(code, codes)
            named, birth, dead = codes.to_frame().select(_NAMED, _BIRTH, _DEATH).to_numpy().T
        death = int(dead.argmax()) if dead.any() else -1
        all_coded = named.all() and code.min(initial=0) >= 0
        if all_coded and not any_placeholder(time, sentinels.FIRST, sentinels.TOO_LATE, sentinels.DAYS):
            return Batch(subject_id, time, code, codes, death, counts, codes.clear())
        named, birth, dead = (np.append(its, False) for its in (named, birth, dead))  # the last one: null
        usable, time, uncoded, placeholders = usable_rows(
            time, code, named, birth, dead, sentinels.FIRST, sentinels.TOO_LATE, sentinels.DAYS
        )
        counts |= {"null_codes": uncoded, "placeholder_dates": placeholders}
        dropped = codes.gather(code[~usable & named[code]])
        return Batch(subject_id[usable], time[usable], code[usable], codes, death, counts, dropped)

    def _time(self, column: pa.Array) -> np.ndarray:
        """int64 us, local; NEVER for null."""
        if column.type == pa.timestamp("us"):
            return filled(column.view(pa.int64()), NEVER, NEVER - 1)  # no time is a static event's
        time = _series(column)
        if not isinstance(time.dtype, pl.Datetime):
            time = time.cast(pl.Datetime("us"))
        elif time.dtype.time_zone is not None:
            assert self.timezone is not None  # check_schema refuses the file otherwise
            time = local_times(time, self.timezone)
        return time.dt.cast_time_unit("us").to_physical().clip(upper_bound=NEVER - 1).fill_null(NEVER).to_numpy()


def plain(code: pl.Expr) -> pl.Expr:
    """Codes as the run knows them: MEDS_DEATH for MEDS_DEATH//anything, and so for births. Nothing else decides it."""
    for prefix in QUALIFIED:
        code = pl.when(code.str.starts_with(prefix)).then(pl.lit(prefix.rstrip("/"))).otherwise(code)
    return code


def _plain(code: np.ndarray, codes: pl.Series) -> tuple[np.ndarray, pl.Series]:
    """Places and strings, unique, of plain codes."""
    every = codes.to_frame().select(code=plain(pl.col("code"))).to_series()
    unique = every.unique(maintain_order=True)
    numbers = pl.DataFrame({"code": unique}).with_row_index("number")
    place = every.to_frame().join(numbers, on="code", how="left", maintain_order="left", nulls_equal=True)["number"]
    code = np.append(place.to_numpy().astype(np.int32), np.int32(-1))[code]  # -1, null, is the last one
    code.flags.writeable = False  # the loops are compiled for one kind
    return code, unique


def _subject(name: str, column: pa.Array) -> np.ndarray:
    if column.null_count:
        raise BadDataError(f"{name}: column subject_id holds null; every event needs its subject")
    if column.type == pa.int64():
        return filled(column, 0)
    try:
        return _series(column).cast(pl.Int64).to_numpy()
    except pl.exceptions.InvalidOperationError:
        raise BadDataError(f"{name}: column subject_id holds ids beyond int64; renumber the subjects") from None


def _code(column: pa.Array) -> tuple[np.ndarray, pl.Series]:
    """Place of every row in the unique strings (-1: null), and the strings."""
    if pa.types.is_null(column.type):
        return np.full(len(column), -1, np.int32), pl.Series("code", [], pl.String)
    column.dictionary.validate(full=True)  # polars would take bytes that are no UTF-8 for text
    code = filled(column.indices, -1)
    if code.max(initial=-1) >= len(column.dictionary):
        raise pa.ArrowInvalid("place beyond the dictionary")
    return code, _series(column.dictionary).alias("code")


def filled(column: pa.Array, value: int, most: int | None = None) -> np.ndarray:
    """The numbers, at most `most`, with `value` for null, in the column's own memory where it can be; read-only.

    From the buffers: pyarrow's own way imports pandas or its compute module, .3 to .7 s in every worker.
    """
    validity, data = column.buffers()
    its = slice(column.offset, column.offset + len(column))
    numbers = np.frombuffer(data, column.type.to_pandas_dtype())[its]
    if most is not None and numbers.max(initial=0) > most:
        numbers = np.minimum(numbers, most)
    if column.null_count:
        numbers = numbers if numbers.flags.writeable else numbers.copy()
        numbers[np.flatnonzero(np.unpackbits(np.frombuffer(validity, np.uint8), bitorder="little")[its] == 0)] = value
    numbers.flags.writeable = False  # as a buffer may be: the loops are compiled for one kind
    return numbers


def _series(column: pa.Array) -> pl.Series:
    return pl.Series(pl.from_arrow(column))


def read_metadata(folder: Path) -> pl.DataFrame | None:
    """`metadata/codes.parquet` in the columns of schema.METADATA, codes plain; None when the file is absent."""
    path, name = folder / CODES_FILE, CODES_FILE
    if not path.exists():
        return None
    check_codes(folder)
    try:
        with parquet.ParquetFile(path) as file:
            listed = [column for column in METADATA if column in file.schema_arrow.names]
            table = pl.DataFrame(pl.from_arrow(file.read(listed)))
    except UNREADABLE as error:
        raise unreadable(folder, name, error) from None
    table = table.select(pl.col(c).cast(t) if c in listed else pl.lit(None, t).alias(c) for c, t in METADATA.items())
    table = table.filter(pl.col("code").is_not_null() & (pl.col("code") != ""))
    return table.with_columns(
        plain(pl.col("code")).alias("code"), pl.col("parent_codes").list.eval(plain(pl.element()))
    )
