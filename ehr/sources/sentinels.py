"""Dates that stand for no date, such as 1900-01-01 or 9999-12-31: one definition, whatever they were read from."""

from __future__ import annotations

from datetime import datetime, timedelta

import polars as pl


def _us(time: datetime) -> int:
    return (time - datetime(1970, 1, 1)) // timedelta(microseconds=1)


ALWAYS = _us(datetime(1900, 1, 1))  # this instant and everything before it
MIDNIGHTS = _us(datetime(1970, 1, 1)), _us(datetime(2099, 12, 31))  # exactly; a birth may lie there
TOO_LATE = _us(datetime(2300, 1, 1))  # and everything after it: no shifted calendar reaches it


def is_sentinel(time: pl.Series, births: bool = False) -> pl.Series:
    """Bool: no date, though one is written (datetime[us]). births: the two midnights are dates."""
    at = time.to_physical()
    odd = (at <= ALWAYS) | (at >= TOO_LATE)
    return (odd if births else odd | at.is_in(MIDNIGHTS)).fill_null(False)
