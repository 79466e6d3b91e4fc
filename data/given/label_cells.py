"""Cells of label tables: texts are looked up, never cast."""

from __future__ import annotations

import polars as pl

from ttepretrain.errors import ConfigError

# bool("False") is True
TRUTH = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
UNKNOWN = ("", "censored", "nan", "null")
NO_NUMBER = ("", "nan", "null")


def truth(table: pl.DataFrame, name: str, key: str) -> pl.Series:
    """bool, null where unknown. ConfigError, under `key`, for any other text."""
    column = table[name]
    if column.dtype == pl.Boolean:
        return column
    text = column.cast(pl.String).str.strip_chars().str.to_lowercase()
    truth = text.replace_strict(TRUTH, default=None, return_dtype=pl.Boolean)
    wrong = column.cast(pl.String).filter(text.is_not_null() & truth.is_null() & ~text.is_in(UNKNOWN))
    if len(wrong):
        raise ConfigError(
            f"{key}: column {name}: {len(wrong)} values are none of true, false, 1, 0, censored or empty, such as "
            f"{wrong[0][:20]!r}"
        )
    return truth


def numbers(table: pl.DataFrame, name: str, key: str) -> pl.Series:
    """float64, null where empty. ConfigError, under `key`, for what is no finite number."""
    text = table[name].cast(pl.String).str.strip_chars()
    number = (table[name] if table[name].dtype.is_numeric() else text).cast(pl.Float64, strict=False).fill_nan(None)
    unread = text.is_not_null() & number.is_null() & ~text.str.to_lowercase().is_in(NO_NUMBER)
    wrong = (unread | number.is_infinite()).sum()
    if wrong:
        raise ConfigError(f"{key}: column {name}: {wrong} values are no finite number")
    return number
