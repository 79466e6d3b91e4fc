"""Dates that stand for no date, such as 1900-01-01 or 9999-12-31: one definition, whatever they were read from."""

from __future__ import annotations

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
