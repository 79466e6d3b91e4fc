"""Zoned times as local ones. A placeholder is one in every zone, and so is the midnight of a date."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from ehr.schema import DAY_US
from ehr.sources.sentinels import is_sentinel


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
