"""ICD codes' own hierarchy, for codes that nothing else gives a parent: one character less, up to the category.

ICD10CM/I27.20            -> ICD10CM/I27.2           -> ICD10CM/I27
DIAGNOSIS//ICD//10//I2720 -> DIAGNOSIS//ICD//10//I272 -> DIAGNOSIS//ICD//10//I27
ICD9CM/416.8 -> ICD9CM/416     ICD9CM/E849.0 -> ICD9CM/E849     ICD9CM/V12.51 -> ICD9CM/V12.5 -> ICD9CM/V12

A code keeps its prefix and its spelling, dotted or not. Chapters and blocks are not made up. Procedures have no such
hierarchy (ICD-10-PCS codes are read by position).
"""

from __future__ import annotations

import polars as pl

_FORM = r"^((?:ICD-?(?:10|9)(?:CM)?/{1,2})|(?:DIAGNOSIS//ICD//(?:10|9)//))([A-Z0-9]{3}[A-Z0-9.]*)$"
_NINE = r"ICD-?9|//9//"


def icd_parents(codes: pl.Series) -> pl.DataFrame:
    """Pairs (code, parent) from the given codes up to their categories; none for codes of another form."""
    form = pl.col("code").str.extract_groups(_FORM).struct.rename_fields(["prefix", "body"])
    frame = codes.unique().to_frame("code").select("code", form.alias("form")).unnest("form").drop_nulls("body")
    nine = pl.col("prefix").str.contains(_NINE)
    four = nine & pl.col("body").str.contains(r"^E\d{3}")
    frame = frame.with_columns(least=pl.when(four).then(4).otherwise(3))
    found = [pl.DataFrame(schema={"code": pl.String, "parent": pl.String})]
    while len(frame):
        shorter = pl.col("body").str.head(-1).str.strip_chars_end(".")
        frame = frame.with_columns(body=shorter).filter(pl.col("body").str.len_chars() >= pl.col("least"))
        frame = frame.with_columns(parent=pl.col("prefix") + pl.col("body"))
        found.append(frame.select("code", "parent"))
        frame = frame.select(pl.col("parent").alias("code"), "prefix", "body", "least").unique()
    return pl.concat(found).unique().sort("code", "parent")
