"""MEDS data sets (0.3, 0.4): flat parquet shards under `data/`, code metadata under `metadata/`.

Tolerated: further columns, any string or integer width, rows in any order, duplicates, subjects spread over shards.
Refused with the file and column named: zoned times without `ehr.timezone`, null or floating ids, times as text.
Dropped and counted: null or empty codes, placeholder dates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as parquet

from ehr.schema import BIRTH, DEATH, EVENTS, METADATA
from ehr.sources import sentinels
from ehr.timeline import NEVER
from ttepretrain.errors import BadDataError, ConfigError, IntegrityError

BATCH_ROWS = 1 << 20  # decoded at a time: 24 MB, whatever the size of file or row group
READ_BYTES = 1 << 20  # compressed bytes of a column held at a time


# a flipped byte can panic inside polars instead of raising
UNREADABLE = (pa.ArrowException, pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, UnicodeDecodeError)


_NAMED = (pl.col("code") != "").fill_null(False).alias("named")
_BIRTH, _DEATH = ((pl.col("code") == name).fill_null(False).alias(name) for name in (BIRTH, DEATH))
_TEXT = pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null


@dataclass(frozen=True)
class Batch:
    """Usable events as parallel arrays, in the order of the file."""

    subject_id: np.ndarray  # int64
    time: np.ndarray  # int64 us; NEVER for static events
    code: np.ndarray  # int32, place in `codes`
    codes: pl.Series  # strings, unique; may hold some that no event has
    death: int  # place of MEDS_DEATH; -1 without it
    counts: dict  # rows, static, null_codes, placeholder_dates (none: left out), of all rows read
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
        names = sorted(str(path.relative_to(self.folder)) for path in self.folder.glob("data/**/*.parquet"))
        if not names:
            raise ConfigError(f"input.ehr: {self.folder} holds no data/**/*.parquet; give the root of a MEDS data set")
        return names

    def batches(self, name: str) -> Iterator[Batch]:
        """Events of one file. Raises ConfigError for a column that cannot be read exactly, BadDataError for bad ids,
        IntegrityError for bytes that cannot be decoded.
        """
        try:
            metadata = parquet.read_metadata(self.folder / name)
            _check(name, metadata.schema.to_arrow_schema(), self)
            # dictionaries as they are stored, of any string type: a string per event would take twice the time
            options = {"metadata": metadata, "read_dictionary": ["code"], "buffer_size": READ_BYTES}
            options["page_checksum_verification"] = True  # of the pages that have one
            with parquet.ParquetFile(self.folder / name, **options) as file:
                for group in range(file.num_row_groups):
                    for rows in file.iter_batches(BATCH_ROWS, [group], list(EVENTS), use_threads=False):
                        yield self._batch(name, rows)
        except UNREADABLE as error:
            raise unreadable(name, error) from None

    def codes(self, name: str) -> pl.Series:
        """Codes that the file's usable events have."""
        found = [batch.codes.gather(np.unique(batch.code)) for batch in self.batches(name)]
        return pl.concat([pl.Series("code", [], pl.String), *found]).unique()

    def _batch(self, name: str, rows: pa.RecordBatch) -> Batch:
        # a worker's: the driver does without half a second of imports
        from ehr.sources.placeholders import any_placeholder, usable_rows

        subject_id, (code, codes) = _subject(name, rows.column("subject_id")), _code(rows.column("code"))
        time = self._time(rows.column("time"))
        named, birth, is_death = codes.to_frame().select(_NAMED, _BIRTH, _DEATH).to_numpy().T
        death = int(is_death.argmax()) if is_death.any() else -1
        counts = {"rows": len(time), "static": rows.column("time").null_count}
        all_coded = named.all() and code.min(initial=0) >= 0
        if all_coded and not any_placeholder(time, sentinels.ALWAYS, sentinels.TOO_LATE, sentinels.MIDNIGHTS):
            return Batch(subject_id, time, code, codes, death, counts, codes.clear())
        named, birth = np.append(named, False), np.append(birth, False)  # the last one: null
        usable, uncoded, placeholders = usable_rows(
            time, code, named, birth, sentinels.ALWAYS, sentinels.TOO_LATE, sentinels.MIDNIGHTS
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
            assert self.timezone is not None  # _check_time refuses the file otherwise
            time = time.dt.convert_time_zone(self.timezone).dt.replace_time_zone(None)
        return time.dt.cast_time_unit("us").to_physical().clip(upper_bound=NEVER - 1).fill_null(NEVER).to_numpy()


def _check(name: str, schema: pa.Schema, source: MedsSource) -> None:
    """ConfigError naming the column that is missing or whose type does not say exactly what it holds."""
    for column in EVENTS:
        if schema.get_all_field_indices(column) == []:
            raise ConfigError(f"{name}: no column {column}; a MEDS file has subject_id, time and code")
    types = {column: schema.field(column).type for column in EVENTS}
    if not (pa.types.is_integer(types["subject_id"]) or pa.types.is_null(types["subject_id"])):
        ids = "ids must be integers (floats above 2^53 collide)"
        raise ConfigError(f"{name}: column subject_id is {types['subject_id']}; {ids}")
    code = types["code"].value_type if pa.types.is_dictionary(types["code"]) else types["code"]
    if not any(is_type(code) for is_type in _TEXT):
        raise ConfigError(f"{name}: column code is {types['code']}; write it as text")
    _check_time(name, types["time"], source)


def _check_time(name: str, time: pa.DataType, source: MedsSource) -> None:
    if pa.types.is_date(time) and source.date_only != "midnight":
        raise ConfigError(f"{name}: column time holds dates, which ehr.date_only=never cannot place; use midnight")
    if not (pa.types.is_timestamp(time) or pa.types.is_date(time) or pa.types.is_null(time)):
        raise ConfigError(f"{name}: column time is {time}; write it as timestamp[us] without a zone")
    if pa.types.is_timestamp(time) and time.tz is not None and source.timezone is None:
        raise ConfigError(f"{name}: column time has zone {time.tz}; set ehr.timezone to the local zone")


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
    """`metadata/codes.parquet` in the columns of schema.METADATA; None when the file is absent."""
    path, name = folder / "metadata" / "codes.parquet", "metadata/codes.parquet"
    if not path.exists():
        return None
    try:
        lazy = pl.scan_parquet(path, glob=False)
        schema = lazy.collect_schema()
        if "code" not in schema:
            raise ConfigError(f"{name}: no column code")
        columns = [pl.col(c).cast(t) if c in schema else pl.lit(None, t).alias(c) for c, t in METADATA.items()]
        return lazy.select(columns).filter(pl.col("code").is_not_null() & (pl.col("code") != "")).collect()
    except UNREADABLE as error:
        raise unreadable(name, error) from None


def unreadable(name: str, error: Exception) -> IntegrityError:
    return IntegrityError(
        f"{name}: not readable as parquet ({type(error).__name__}); labels need every file, restore it"
    )
