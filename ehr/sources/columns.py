"""Columns of OMOP tables as exact types, whatever the extract stores them as."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from ttepretrain.errors import ConfigError

EXACT_FLOATS = 2**53  # from here on a float stands for several whole numbers

_DATE = r"^\d{4}-?\d{2}-?\d{2}$"
_TIME = r"^\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(:\d{2}(\.\d+)?)?$"
_ZONED = r"(?i)\d{2}:\d{2}.*(Z|[+-]\d{2}(:?\d{2})?|[A-Z]{3,4}|[A-Z]+/\w+\]?)$"  # Z, +01:00, UTC, Europe/Berlin


def whole_numbers(column: pl.Series, where: str) -> pl.Series:
    """Int64. ConfigError for fractions, other text, and floats too large to be exact (`where` names the column)."""
    dtype = column.dtype
    if dtype == pl.Boolean or not (dtype.is_numeric() or dtype in (pl.String, pl.Null)):
        raise ConfigError(f"{where} is {dtype}; ids must be whole numbers")
    exact = pl.Series([], dtype=pl.Boolean)
    if dtype == pl.String:
        text = column.str.strip_chars()
        text = text.set(text == "", None)
        point = text.str.contains(".", literal=True)
        column = text.str.replace(r"\.0*$", "").cast(pl.Int64, strict=False)
        exact = column.is_not_null() & ~(point & (column.abs() >= EXACT_FLOATS)) | text.is_null()
    elif dtype.is_float():
        column = column.cast(pl.Float64).fill_nan(None)
        exact = (column == column.floor()) & (column.abs() < EXACT_FLOATS)
    elif dtype.is_decimal():
        exact = column == column.cast(pl.Int64, strict=False)
    if not exact.all():
        raise ConfigError(f"{where} holds numbers that are no exact ids (fractions, or floats from 2^53 on); use int64")
    try:
        return column.cast(pl.Int64)
    except pl.exceptions.InvalidOperationError:
        raise ConfigError(f"{where} holds ids beyond int64; renumber them") from None


@dataclass(frozen=True)
class Moments:
    time: pl.Series  # datetime[us] without a zone; null where nothing readable was given
    bare: pl.Series  # bool: a date without a time of day
    unreadable: int  # cells that are text but no time


def moments(column: pl.Series, where: str, timezone: str | None) -> Moments:
    """Times of a column of dates, timestamps or ISO text; zoned ones need `timezone` and become local."""
    dtype = column.dtype
    if dtype == pl.String:
        return _from_text(column.str.strip_chars(), where)
    bare = pl.repeat(dtype == pl.Date, len(column), eager=True)
    if isinstance(dtype, pl.Datetime):
        if dtype.time_zone is not None:
            if timezone is None:
                raise ConfigError(f"{where} has zone {dtype.time_zone}; set ehr.timezone to the local zone")
            column = column.dt.convert_time_zone(timezone).dt.replace_time_zone(None)
        return Moments(column.dt.cast_time_unit("us"), bare, 0)
    if dtype not in (pl.Date, pl.Null):
        raise ConfigError(f"{where} is {dtype}; write times as timestamps, dates or ISO text")
    return Moments(column.cast(pl.Datetime("us")), bare, 0)


def _from_text(text: pl.Series, where: str) -> Moments:
    text = text.set(text == "", None)
    if text.str.contains(_ZONED).any():
        raise ConfigError(f"{where} holds times with a zone as text; write them as local times")
    bare = text.str.contains(_DATE).fill_null(False)
    day = text.str.replace_all("-", "").str.to_date("%Y%m%d", strict=False).cast(pl.Datetime("us"))
    full = text.str.replace(" ", "T").str.replace(r"(T\d{2}:\d{2})$", "$1:00")
    full = full.set(~text.str.contains(_TIME).fill_null(False), None)
    full = full.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f", time_unit="us", strict=False)
    time = day.set(~bare, None).zip_with(bare, full)
    return Moments(time, bare, int((time.is_null() & text.is_not_null()).sum()))


def numbers(column: pl.Series) -> pl.Series:
    """Float32; null where the cell is no number."""
    return column.cast(pl.Float32, strict=False).fill_nan(None)
