"""Codes that are meant, and written otherwise: letter case, separators, dots, another prefix, an ending left out."""

from __future__ import annotations

from collections.abc import Iterable

import polars as pl

from ehr.schema import SEX

LEAST_END = 5  # characters of a code's last part that can stand for the whole; shorter ones are in many vocabularies


def folded(codes: pl.Expr) -> pl.Expr:
    """Letters and digits alone, in lower case: SNOMED//12 and snomed/12, ICD10CM/I27.20 and ICD-10-CM/I2720."""
    return codes.str.to_lowercase().str.replace_all(r"[^\p{L}\p{N}]+", "")


def other_spellings(patterns: Iterable[str], codes: pl.Series) -> dict[str, str]:
    """For patterns (a trailing `*` stands for any ending) that match no code: the code they seem to mean, if any."""
    last = pl.col("code").str.split("/").list.last()
    known = codes.unique().sort().to_frame("code").with_columns(folded=folded(pl.col("code")), end=folded(last))
    found = {}
    for pattern in dict.fromkeys(patterns):
        stem = pattern.rstrip("*")
        key, end = pl.DataFrame({"code": [stem]}).select(folded(pl.col("code")), end=folded(last)).row(0)
        if not key:
            continue
        ways = [pl.col("folded").str.starts_with(key) if pattern != stem else pl.col("folded") == key]
        if pattern == stem:
            ways.append(pl.col("code").str.starts_with(stem + "/"))
        if len(end) >= LEAST_END and pattern == stem:
            ways.append(pl.col("end") == end)
        hits = (known.filter(way)["code"] for way in ways)
        if (hit := next((hit[0] for hit in hits if len(hit)), None)) is not None:
            found[pattern] = f"{stem}*" if pattern == stem and hit.startswith(stem + "/") else hit
    return found


def spelling_counts(data: pl.Series, named: pl.Series) -> dict:
    """How many codes of the data a vocabulary names as they are, how many in another spelling, and one such pair.

    named: those of the vocabulary's codes that equal a code of the data, at least when folded.
    """
    data, named = data.cast(pl.String).unique(), named.cast(pl.String).unique()
    data = data.filter(~data.str.contains(SEX))  # MEDS writes GENDER//M, whatever the vocabulary does
    strange = data.filter(~data.is_in(named.implode())).to_frame("data").with_columns(folded=folded(pl.col("data")))
    there = named.to_frame("named").with_columns(folded=folded(pl.col("named"))).filter(pl.col("folded") != "")
    pairs = strange.join(there, on="folded").sort("data", "named").unique("data", keep="first", maintain_order=True)
    return {
        "codes_of_the_data": len(data),
        "known": len(data) - len(strange),
        "spelled_otherwise": len(pairs),
        "such_as": [pairs["data"][0], pairs["named"][0]] if len(pairs) else None,
    }
