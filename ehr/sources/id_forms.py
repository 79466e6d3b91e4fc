"""How the ids of two tables differ, in words that hold no id."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

ENOUGH = 0.5  # of the ids must become equal for a difference to be the reason

_ID = pl.col("id")
_PLAIN = _ID.str.strip_chars().str.to_lowercase()
_WHOLE = _PLAIN.str.replace(r"^(\d+)\.0+$", "$1")
_FORMS = {  # each undoes the ones before it too
    "by blanks around them": _ID.str.strip_chars(),
    "by letter case": _PLAIN,
    "by a `.0` at the end of numbers": _WHOLE,
    "by leading zeros": _WHOLE.str.replace(r"^0+(.)", "$1"),
    "by blanks, hyphens or other signs inside": _WHOLE.str.replace_all(r"[^\p{L}\p{N}]+", ""),
    "by folders or file endings": _WHOLE.str.replace(r"^.*[/\\]", "").str.replace(r"\.[a-z.]+$", ""),
    "by a prefix, or by zeros before the last number": _WHOLE.str.extract(r"(\d+)$").str.replace(r"^0+(.)", "$1"),
}


def how_ids_differ(theirs: pl.Series, ours: pl.Series, columns: Mapping[str, pl.Series]) -> str:
    """What makes most of `theirs` equal to `ours`, or what both look like.

    columns: of our table, whose values may have been taken for the ids.
    """
    theirs, ours = (ids.drop_nulls().cast(pl.String).unique() for ids in (theirs, ours))
    for name, values in columns.items():
        if _share(theirs, values.drop_nulls().cast(pl.String)) >= ENOUGH:
            return f"the ids there are values of column {name} here"
    for words, form in _FORMS.items():
        there, here = (ids.to_frame("id").select(form).to_series().drop_nulls() for ids in (theirs, ours))
        if there.n_unique() >= ENOUGH * len(theirs) and _share(there, here) >= ENOUGH:
            return f"the ids differ {words}"
    return f"the ids there are {look(theirs)}, here {look(ours)}"


def look(ids: pl.Series) -> str:
    """The shape of ids, such as "8 digits" or "text of 5 to 12 characters"."""
    text = ids.drop_nulls().cast(pl.String)
    if not len(text):
        return "none"
    lengths = text.str.len_chars().unique().sort().to_list()
    size = f"{lengths[0]}" if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]}"
    return f"{size} digits" if text.str.contains(r"^\d+$").all() else f"text of {size} characters"


def _share(theirs: pl.Series, ours: pl.Series) -> float:
    return float(theirs.is_in(ours.implode()).mean() or 0.0)  # type: ignore[arg-type]
