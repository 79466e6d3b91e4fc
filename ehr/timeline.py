"""What lies before and what lies after the scan. Nothing else decides it.

            feature                  history only             label
    ------------------------|--------------------------|-------------------|
                            t0                      t0 + b                 C
      interval ends at t0         neither feature        starts after
      or earlier                  nor label              t0 + b

An exact time is a point. A date-only time is the interval [day, next day): it is a feature or a label only if that is
certain for every moment of the day. A date-only scan is such an interval too. A date-only death is the exception: it
is the point at which its day ends.
"""

from __future__ import annotations

from typing import Any, Generic, NamedTuple, TypeVar, overload

import numpy as np
import polars as pl

from ehr.schema import DAY_US

NEVER = np.iinfo(np.int64).max  # time of a static event: after everything, and no date under any rule
LAST_MINUTE_US, LAST_SECOND_US = DAY_US - 60_000_000, DAY_US - 1_000_000  # 23:59:00 and 23:59:59

Times = TypeVar("Times", int, np.ndarray, pl.Expr)  # of microseconds
Truth = TypeVar("Truth", bool, np.ndarray, pl.Expr)


class Side(NamedTuple, Generic[Truth]):
    """Which side of the scan an event lies on; `not after` is history."""

    feature: Truth
    after: Truth


@overload
def side_of_scan(start: int, end: int, index: int, index_last: int, blackout: int) -> Side[bool]: ...
@overload
def side_of_scan(
    start: pl.Expr, end: pl.Expr, index: pl.Expr, index_last: pl.Expr, blackout: pl.Expr | int
) -> Side[pl.Expr]: ...


def side_of_scan(start: Times, end: Times, index: Times, index_last: Times, blackout: Times | int) -> Side:
    """Feature: known at t0. After: starts later than t0 + blackout. Both false: the event is history only.

    start, end: the event's interval, end = start for an exact time, start + 1 day for a date.
    index, index_last: t0, and the last moment it can mean (t0 itself; for a date-only scan the day's last microsecond).
    """
    return Side(feature=end <= index, after=start > index_last + blackout)


@overload
def is_date(time: int, date_only: str) -> bool: ...
@overload
def is_date(time: np.ndarray, date_only: str) -> np.ndarray: ...
@overload
def is_date(time: pl.Series, date_only: str) -> pl.Series: ...
@overload
def is_date(time: pl.Expr, date_only: str) -> pl.Expr: ...


def is_date(time: Any, date_only: str) -> Any:
    """Whether a time (us) is a date without a time of day, under `ehr.date_only`. Nothing else decides it.

    midnight: at 00:00:00. day_end: there, at 23:59:00 or in the day's last second too. never: no time is.
    """
    if date_only == "never":
        return time != time
    if date_only == "midnight":
        return time // DAY_US * DAY_US == time
    within = time - time // DAY_US * DAY_US
    return (within == 0) | ends_day(within)


def ends_day(within: Times) -> Any:
    """Whether a time of day (us) is 23:59:00 or in the day's last second, where `day_end` writes dates without one."""
    return (within == LAST_MINUTE_US) | (within >= LAST_SECOND_US)


def intervals(time: np.ndarray, death: np.ndarray, date_only: str) -> tuple[np.ndarray, np.ndarray]:
    """Start and end of events from their times (int64 us; NEVER stays NEVER) and whether they are deaths."""
    if date_only == "never":
        return time, time
    bare = is_date(time, date_only)
    start = time.copy() if date_only == "midnight" else np.where(bare, time // DAY_US * DAY_US, time)
    end, dead = start + DAY_US * bare, np.flatnonzero(death)
    start[dead] = end[dead]
    return start, end


def with_index(studies: pl.DataFrame) -> pl.DataFrame:
    """Adds `index` and `index_last` (int64 us) of `study_time` and its `date_only` flag."""
    index = pl.col("study_time").cast(pl.Int64)
    return studies.with_columns(index=index, index_last=index + pl.col("date_only").cast(pl.Int64) * (DAY_US - 1))


def last_moment(start: Times, end: Times) -> Times:
    """Last microsecond of an event's interval."""
    return end - (end > start) * 1


def in_units(microseconds: pl.Expr, unit_us: float = DAY_US) -> pl.Expr:
    """Days (or other units) as float64, correctly rounded (polars multiplies by the reciprocal: 27 % differ)."""
    return microseconds.map_batches(
        lambda us: pl.Series(us.cast(pl.Float64).fill_null(np.nan).to_numpy() / unit_us), return_dtype=pl.Float64
    ).fill_nan(None)
