"""ICD codes' own hierarchy, for codes that nothing else gives a parent: one character less, up to the category.

ICD10CM/I27.20            -> ICD10CM/I27.2           -> ICD10CM/I27
DIAGNOSIS//ICD//10//I2720 -> DIAGNOSIS//ICD//10//I272 -> DIAGNOSIS//ICD//10//I27
ICD9CM/416.8 -> ICD9CM/416     ICD9CM/E849.0 -> ICD9CM/E849     ICD9CM/V12.51 -> ICD9CM/V12.5 -> ICD9CM/V12

Prefixes: ICD10, ICD9, also with CM and hyphens, then / or //; DIAGNOSIS//ICD//10// and //9//. Either letter case.
A code keeps its prefix and its spelling, dotted or not (blanks at its end go). Chapters and blocks are not made up.
Procedures have no such hierarchy (ICD-10-PCS codes are read by position): after ICD9/ and ICD9CM/ four digits without a
dot may be one (0066 is 00.66), so they have no parent.
"""

from __future__ import annotations

import polars as pl

_FORM = r"(?i)^((?:ICD-?(?:10|9)(?:-?CM)?/{1,2})|(?:DIAGNOSIS//ICD//(?:10|9)//))([A-Z0-9]{3}[A-Z0-9.]*)\s*$"
_NINE = r"(?i)ICD-?9|//9//"
_MAYBE_PROCEDURE = r"(?i)^ICD-?9(?:-?CM)?/{1,2}\d{4,}\s*$"


def icd_parents(codes: pl.Series) -> pl.DataFrame:
    """Pairs (code, parent) from the given codes up to their categories; none for codes of another form."""
    form = pl.col("code").str.extract_groups(_FORM).struct.rename_fields(["prefix", "body"])
    frame = codes.unique().to_frame("code").filter(~pl.col("code").str.contains(_MAYBE_PROCEDURE))
    frame = frame.select("code", form.alias("form")).unnest("form").drop_nulls("body")
    nine = pl.col("prefix").str.contains(_NINE)
    four = nine & pl.col("body").str.contains(r"(?i)^E\d{3}")
    frame = frame.with_columns(least=pl.when(four).then(4).otherwise(3))
    found = [pl.DataFrame(schema={"code": pl.String, "parent": pl.String})]
    while len(frame):
        shorter = pl.col("body").str.head(-1).str.strip_chars_end(".")
        frame = frame.with_columns(body=shorter).filter(pl.col("body").str.len_chars() >= pl.col("least"))
        frame = frame.with_columns(parent=pl.col("prefix") + pl.col("body"))
        found.append(frame.select("code", "parent"))
        frame = frame.select(pl.col("parent").alias("code"), "prefix", "body", "least").unique()
    return pl.concat(found).unique().sort("code", "parent")
