"""The one reader of ids, times, numbers, truth and texts in users' columns, however the file stores them.

A cell holds a value, holds nothing, or is unreadable; no value is guessed. The caller decides what an unreadable cell
costs: the table of studies loses that row, a table of OMOP or INSPECT is refused.
"""

from __future__ import annotations

from typing import NamedTuple

import polars as pl

from ehr.sources.sentinels import local_times, shown
from ttepretrain.errors import ConfigError

# From here on a float stands for several whole numbers.
EXACT_FLOATS = 2**53
EXACT_FLOATS_OF: dict[pl.DataType | type[pl.DataType], int] = {pl.Float32: 2**24}

# Texts for nothing, in either letter case: R, pandas, SQL and Excel write them. Names are exempt: a study may be called
# "NA".
NULLS = ("", "na", "nan", "nat", "null", "none", "\\n", "<na>", "n/a", "#n/a")
TRUTH = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
OTHER_TRUTH = ("yes", "no", "y", "n", "t", "f", "positive", "negative", "present", "absent")  # not read
UNKNOWN = ("censored", *NULLS)

# What is wrong, after the name of the column.
NO_IDS = "ids must be whole numbers"
INEXACT_IDS = "cells that are not exact ids"
NO_ID = "is empty or not a whole number"  # of one row
NO_TIMES = "write times as timestamps, dates or ISO text"
NO_TIME = "is empty or not YYYY-MM-DD[ HH:MM[:SS[.f]]] (with an offset or UTC: set ehr.timezone)"  # of one row
NO_LOCAL_ZONE = "set ehr.timezone to the local zone"
ZONED_TEXT = "holds times with a zone as text; set ehr.timezone to the local zone, or write local times"
NAMED_ZONE = "holds times with the name of a zone as text; write an offset (+01:00), UTC or local times"
NO_NUMBERS = "values are not finite numbers"
NO_TRUTH = "values are none of true, false, 1, 0, censored or empty"
NO_TEXT = "it must be text"

_DATE = r"^(?:[1-9]\d{3}|0[1-9]\d{2}|00[1-9]\d|000[1-9])-?\d{2}-?\d{2}$"  # there is no year 0
_TIME = _DATE.replace("-?", "-")[:-1] + r"[T ]\d{2}:\d{2}(:[0-5]\d(\.\d+)?)?$"  # a leap second is no time here
_ZONED = r"(?i)\d{2}:\d{2}.*(Z|[+-]\d{2}(:?\d{2})?|[A-Z]{3,4}|[A-Z]+/\w+\]?)$"  # Z, +01:00, UTC, Europe/Berlin
# The name of a zone may follow an offset, which decides. At most 14 hours: there is no larger offset.
_OFFSET = r"(?i)\s*(?:Z|UTC|GMT)?\s*([+-](?:0\d|1[0-4])(?::?[0-5]\d)?|Z|UTC|GMT)(?:\[[\w/+-]+\])?$"


class Cells(NamedTuple):
    value: pl.Series  # null where there is nothing, and where it is unreadable
    unreadable: pl.Series  # bool


class Moments(NamedTuple):
    time: pl.Series  # datetime[us] without a zone; null where there is nothing, and where it is unreadable
    bare: pl.Series  # bool: a date without a time of day
    unreadable: pl.Series  # bool: text that is no time, or has a zone that it cannot be converted from
    zoned: pl.Series  # bool: text of such a zone


def whole_cells(column: pl.Series, where: str) -> Cells:
    """Int64. ConfigError for a type that holds no numbers (`where` names the column)."""
    column = _plain(column)
    dtype = column.dtype
    if dtype == pl.Boolean or not (dtype.is_numeric() or dtype in (pl.String, pl.Null)):
        raise ConfigError(f"{where} is {dtype}; {NO_IDS}")
    if dtype == pl.String:
        text = column.str.strip_chars()
        value = text.str.replace(r"\.0*$", "").cast(pl.Int64, strict=False)
        inexact = text.str.contains(".", literal=True) & (value.abs() >= EXACT_FLOATS)
        value = value.set(inexact.fill_null(False), None)
    elif dtype.is_float():
        most = EXACT_FLOATS_OF.get(dtype, EXACT_FLOATS)
        column = column.cast(pl.Float64).fill_nan(None)
        exact = (column == column.floor()) & (column.abs() < most)
        value = column.set(~exact.fill_null(True), None).cast(pl.Int64)
    elif dtype.is_decimal():
        value = column.cast(pl.Int64, strict=False)
        value = value.set((column != value).fill_null(False), None)
    else:
        value = column.cast(pl.Int64, strict=False)
    return Cells(value, _unreadable(column, value))


def whole_numbers(column: pl.Series, where: str) -> pl.Series:
    """Int64, null where there is nothing. ConfigError for a cell that is unreadable, and as `whole_cells`."""
    value, unreadable = whole_cells(column, where)
    if unreadable.any():
        raise ConfigError(f"{where} holds {unreadable.sum()} {INEXACT_IDS} ({_not_ids(column.filter(unreadable))})")
    return value


def _not_ids(cells: pl.Series) -> str:
    """What unreadable ids are, without showing them."""
    number = _plain(cells).cast(pl.String).str.strip_chars().cast(pl.Float64, strict=False)
    fraction = (number != number.floor()) & number.is_finite()
    kinds = {
        "text that is no number": number.is_null(),
        "fractions": fraction,
        "infinite or nan": number.is_infinite() | number.is_nan(),
        "floats from 2^53 on, in scientific notation or beyond int64": number.is_finite() & ~fraction,
    }
    return ", ".join(f"{kind}: {which.sum()}" for kind, which in kinds.items() if which.any()) + "; write int64"


def moment_cells(column: pl.Series, where: str, timezone: str | None, dates: bool = False) -> Moments:
    """Times of dates, timestamps (finer ones are cut to microseconds) or ISO text.

    Timestamps of a zone become local, and so does text with an offset or UTC; not the midnights of a column of `dates`.
    ConfigError where timestamps need `timezone` for that, and for a type that holds no times.
    """
    column = _plain(column)
    dtype, no = column.dtype, pl.repeat(False, len(column), eager=True)
    if dtype == pl.String:
        return _from_text(column, timezone, dates)
    if isinstance(dtype, pl.Datetime):
        if dtype.time_zone is not None:
            if timezone is None:
                raise ConfigError(f"{where} has zone {dtype.time_zone}; {NO_LOCAL_ZONE}")
            column = local_times(column, timezone, dates)
        return Moments(column.dt.cast_time_unit("us"), no, no, no)
    if dtype not in (pl.Date, pl.Null):
        raise ConfigError(f"{where} is {dtype}; {NO_TIMES}")
    return Moments(column.cast(pl.Datetime("us")), pl.repeat(dtype == pl.Date, len(column), eager=True), no, no)


def moments(column: pl.Series, where: str, timezone: str | None, dates: bool = False) -> Moments:
    """As `moment_cells`; ConfigError for text with a zone that it cannot be converted from."""
    found = moment_cells(column, where, timezone, dates)
    if found.zoned.any():
        raise ConfigError(f"{where} {ZONED_TEXT if timezone is None else NAMED_ZONE}")
    return found


def _from_text(column: pl.Series, timezone: str | None, dates: bool) -> Moments:
    read = _without_zone(column)
    if not read.zoned.any() or timezone is None:
        return read
    text = column.set(~read.zoned, None).str.strip_chars()
    offset = text.str.extract(_OFFSET)
    local = _without_zone(text.set(offset.is_null(), None).str.replace(_OFFSET, ""))
    hours, minutes = (offset.str.extract(part).cast(pl.Int64) for part in (r"^[+-](\d{2})", r"(\d{2})$"))
    minutes = minutes.set((offset.str.len_bytes() < 4).fill_null(False), 0)  # Z, UTC, +01
    ahead = (hours * 60 + minutes).fill_null(0)
    ahead = ahead.zip_with(~offset.str.starts_with("-").fill_null(False), -ahead)
    utc = (local.time - (ahead * 60_000_000).cast(pl.Duration("us"))).dt.replace_time_zone("UTC")
    known = utc.is_not_null() & ~local.bare
    time = read.time.zip_with(~known, shown(utc, [local.time], timezone, dates))
    return Moments(time, read.bare, read.unreadable & ~known, read.zoned & offset.is_null())


def _without_zone(column: pl.Series) -> Moments:
    text = column.str.strip_chars()
    bare = text.str.contains(_DATE).fill_null(False)
    day = text.str.replace_all("-", "").str.to_date("%Y%m%d", strict=False).cast(pl.Datetime("us"))
    full = text.str.replace(" ", "T").str.replace(r"(T\d{2}:\d{2})$", "$1:00")
    full = full.set(~text.str.contains(_TIME).fill_null(False), None)
    full = full.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f", time_unit="us", strict=False)
    time = day.set(~bare, None).zip_with(bare, full)
    return Moments(time, bare, _unreadable(column, time), text.str.contains(_ZONED).fill_null(False))


def number_cells(column: pl.Series, dtype: type[pl.DataType] = pl.Float64) -> Cells:
    """Numbers as `dtype`; an infinite one is a number, nan is nothing."""
    column = _plain(column)
    source = column.str.strip_chars() if column.dtype == pl.String else column
    if not (source.dtype.is_numeric() or source.dtype in (pl.String, pl.Null)):
        source = pl.Series(column.name, [None] * len(column), pl.Null)
    value = source.cast(dtype, strict=False).fill_nan(None)
    return Cells(value, _unreadable(column, value))


def finite_numbers(column: pl.Series, where: str) -> pl.Series:
    """Float64, null where there is nothing. ConfigError for every other cell that is no finite number."""
    value, unreadable = number_cells(column)
    if wrong := int((unreadable | value.is_infinite().fill_null(False)).sum()):
        raise ConfigError(f"{where}: {wrong} {NO_NUMBERS}")
    return value


def truth(column: pl.Series, where: str) -> pl.Series:
    """Bool, null for an empty cell or `censored`; ConfigError for other text. Looked up: bool("False") is true."""
    if column.dtype == pl.Boolean:
        return column
    text = column.cast(pl.String).str.strip_chars().str.to_lowercase()
    truth = text.replace_strict(TRUTH, default=None, return_dtype=pl.Boolean)
    wrong = text.filter(text.is_not_null() & truth.is_null() & ~text.is_in(UNKNOWN))
    if len(wrong):
        meant = [word for word in OTHER_TRUTH if word in wrong]  # other cells may be a patient's
        raise ConfigError(f"{where}: {len(wrong)} {NO_TRUTH}" + (f"; among them {', '.join(meant)}" if meant else ""))
    return truth


def texts(column: pl.Series, where: str) -> pl.Series:
    """Names as they are, null where they are empty. ConfigError for a type that text does not survive."""
    dtype = column.dtype
    nothing = dtype.is_float() and column.fill_nan(None).null_count() == len(column)  # pandas' column of nothing
    if nothing or dtype == pl.Null:
        return pl.Series(column.name, [None] * len(column), pl.String)
    if not (dtype.is_integer() or _plain(column).dtype == pl.String):
        raise ConfigError(f"{where} is {dtype}; {NO_TEXT}")
    column = column.cast(pl.String)
    return column.set((column == "").fill_null(False), None)


def words(column: pl.Series, where: str) -> pl.Series:
    """Texts that have a form (a split, a UID, a hash): stripped; one of NULLS becomes null."""
    text = texts(column, where).str.strip_chars()
    return text.set(_is_null(text), None)


def _plain(column: pl.Series) -> pl.Series:
    return column.cast(pl.String) if column.dtype in (pl.Categorical, pl.Enum) else column


def _unreadable(column: pl.Series, value: pl.Series) -> pl.Series:
    """Bool: cells that hold something, but no value."""
    unread = value.is_null() & column.is_not_null()
    # few cells are left: looking all of them up would take longer than reading them
    return unread & ~_is_null(column.set(~unread, None)) if column.dtype == pl.String and unread.any() else unread


def _is_null(text: pl.Series) -> pl.Series:
    """Bool: one of NULLS."""
    return text.str.strip_chars().str.to_lowercase().is_in(NULLS).fill_null(False)
