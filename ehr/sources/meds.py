"""MEDS data sets (0.3, 0.4): flat parquet shards under `data/`, code metadata under `metadata/`.

Tolerated: further columns, any string or integer width, rows in any order, duplicates, subjects spread over shards.
Refused with the file and column named: zoned times without `ehr.timezone`, null or floating ids, times as text.
Dropped and counted: null or empty codes, placeholder dates.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import polars as pl

from ehr.schema import BIRTH, EVENTS, METADATA
from ttepretrain.errors import BadDataError, ConfigError, IntegrityError

_ALWAYS_PLACEHOLDER = datetime(1900, 1, 1)  # this instant and everything before it
_PLACEHOLDERS = [datetime(1970, 1, 1), datetime(2099, 12, 31)]  # midnight exactly; a birth may lie there
_TOO_LATE = datetime(2300, 1, 1)  # no shifted calendar reaches it
# a flipped byte can panic inside polars instead of raising
_UNREADABLE = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError)


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

    def scan(self, name: str) -> pl.LazyFrame:
        """Events of one shard in the columns of schema.EVENTS, plus `placeholder` (bool)."""
        path = self.folder / name
        try:
            lazy = pl.scan_parquet(path, glob=False, hive_partitioning=False)
            schema = lazy.collect_schema()
        except _UNREADABLE as error:
            raise _unreadable(name, error) from None
        for column in EVENTS:
            if column not in schema:
                raise ConfigError(f"{name}: no column {column}; a MEDS file has subject_id, time and code")
        columns = (
            _subject(name, schema["subject_id"]),
            self._time(name, schema["time"]).alias("time"),
            _code(name, schema["code"]),
        )
        return lazy.select(columns).with_columns(placeholder=_placeholder())

    def read(self, names: list[str], subjects: pl.Series) -> pl.DataFrame:
        """Usable events (schema.EVENTS) of the given subjects in the given shards, one file open at a time."""
        keep = pl.col("subject_id").is_in(subjects.implode()) & ~pl.col("placeholder") & usable_code()
        return pl.concat([collect(name, self.scan(name).filter(keep).select(list(EVENTS))) for name in names])

    def _time(self, name: str, dtype: pl.DataType) -> pl.Expr:
        column = pl.col("time")
        if dtype == pl.Null or (dtype == pl.Date and self.date_only == "midnight"):
            return column.cast(pl.Datetime("us"))
        if dtype == pl.Date:
            raise ConfigError(f"{name}: column time holds dates, which ehr.date_only=never cannot place; use midnight")
        if not isinstance(dtype, pl.Datetime):
            raise ConfigError(f"{name}: column time is {dtype}; write it as timestamp[us] without a zone")
        if dtype.time_zone is not None:
            if self.timezone is None:
                raise ConfigError(f"{name}: column time has zone {dtype.time_zone}; set ehr.timezone to the local zone")
            column = column.dt.convert_time_zone(self.timezone).dt.replace_time_zone(None)
        return column.dt.cast_time_unit("us")


def _placeholder() -> pl.Expr:
    time = pl.col("time")
    midnight = time.is_in(_PLACEHOLDERS) & (pl.col("code") != BIRTH)
    return ((time <= _ALWAYS_PLACEHOLDER) | (time >= _TOO_LATE) | midnight).fill_null(False)


def usable_code() -> pl.Expr:
    return pl.col("code").is_not_null() & (pl.col("code") != "")


def collect(name: str, lazy: pl.LazyFrame) -> pl.DataFrame:
    """The frame. IntegrityError naming the shard when its bytes cannot be decoded."""
    try:
        return lazy.collect(engine="streaming")
    except pl.exceptions.InvalidOperationError:
        raise BadDataError(f"{name}: column subject_id holds ids beyond int64; renumber the subjects") from None
    except _UNREADABLE as error:
        raise _unreadable(name, error) from None


def read_metadata(folder: Path) -> pl.DataFrame | None:
    """`metadata/codes.parquet` in the columns of schema.METADATA; None when the file is absent."""
    path, name = folder / "metadata" / "codes.parquet", "metadata/codes.parquet"
    if not path.exists():
        return None
    try:
        schema = pl.scan_parquet(path, glob=False).collect_schema()
        if "code" not in schema:
            raise ConfigError(f"{name}: no column code")
        columns = [pl.col(c).cast(t) if c in schema else pl.lit(None, t).alias(c) for c, t in METADATA.items()]
        return collect(name, pl.scan_parquet(path, glob=False).select(columns).filter(usable_code()))
    except _UNREADABLE as error:
        raise _unreadable(name, error) from None


def _subject(name: str, dtype: pl.DataType) -> pl.Expr:
    if dtype.is_integer() or dtype == pl.Null:  # Null: a shard without rows, or refused by the survey
        return pl.col("subject_id").cast(pl.Int64)
    raise ConfigError(f"{name}: column subject_id is {dtype}; ids must be integers (floats above 2^53 collide)")


def _code(name: str, dtype: pl.DataType) -> pl.Expr:
    if dtype in (pl.String, pl.Null) or isinstance(dtype, (pl.Categorical, pl.Enum)):
        return pl.col("code").cast(pl.String)
    raise ConfigError(f"{name}: column code is {dtype}; write it as text")


def _unreadable(name: str, error: Exception) -> IntegrityError:
    return IntegrityError(
        f"{name}: not readable as parquet ({type(error).__name__}); labels need every file, restore it"
    )
