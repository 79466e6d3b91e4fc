"""Dates that stand for no date, such as 1900-01-01 or 9999-12-31: one definition, whatever they were read from, and in
whatever zone they were written.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

import polars as pl

from ehr.schema import DAY_US
from ehr.timeline import is_date


def _us(time: datetime) -> int:
    return (time - datetime(1970, 1, 1)) // timedelta(microseconds=1)


FIRST = _us(datetime(1900, 1, 2))  # everything before it is none
DAYS = _us(datetime(1970, 1, 1)), _us(datetime(2099, 12, 31))  # as dates without a time of day; a birth may lie there
TOO_LATE = _us(datetime(2300, 1, 1))  # and everything after it: no shifted calendar reaches it


def is_sentinel(time: pl.Series, births: bool = False) -> pl.Series:
    """Bool: no date, though one is written (datetime[us]). births: the two days are dates."""
    at = time.to_physical()
    odd = (at < FIRST) | (at >= TOO_LATE)
    days = (at // DAY_US * DAY_US).is_in(DAYS) & pl.select(is_date(at, "day_end")).to_series()
    return (odd if births else odd | days).fill_null(False)


def local_times(zoned: pl.Series, timezone: str, dates: bool = False) -> pl.Series:
    """Datetime[us] without a zone, of a column with one. dates: of a column of dates, whose midnights are dates."""
    walls = [zoned.dt.convert_time_zone("UTC").dt.replace_time_zone(None), zoned.dt.replace_time_zone(None)]
    return shown(zoned, walls, timezone, dates)


def shown(zoned: pl.Series, walls: Sequence[pl.Series], timezone: str, dates: bool) -> pl.Series:
    """The same; walls: what the clocks show where the times come from, kept where it is no moment."""
    local = zoned.dt.convert_time_zone(timezone).dt.replace_time_zone(None).dt.cast_time_unit("us")
    for wall in walls:
        wall = wall.dt.cast_time_unit("us")
        kept = is_sentinel(wall)
        if dates:
            kept |= (wall.to_physical() % DAY_US == 0).fill_null(False)
        local = local.zip_with(~kept, wall)
    return local
