"""Ontology: which codes are kinds of which. Every code is its own descendant.

closure(c) = c and its transitive parents. Held as pair tables, so that all codes are walked at once, level by level.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import polars as pl

from ehr.codes.icd import icd_parents
from ehr.schema import METADATA
from ehr.sources.meds import read_metadata
from ttepretrain.log import log

# Ancestors of these vocabularies stay only if the data hold them: label-less drug packages and groupers.
PRUNED_VOCABULARIES = ("SPL", "ATC", "HemOnc", "LOINC")
_BLOCK = 2048  # codes closed at a time: their pairs fit into the cache


@dataclass(frozen=True)
class Ontology:
    parents: pl.DataFrame  # code, parent: unique, no code its own parent
    descriptions: pl.DataFrame  # code, description: unique codes
    icd: int = 0  # codes whose parent is ICD's own
    icd_without_parent: int = 0  # ICD codes that nothing lies above: categories, procedures, and unknown spellings
    named: pl.Series = field(default_factory=lambda: pl.Series("code", [], pl.String))  # all codes of the tables


def read_ontology(ehr_folder: Path, ontology_folder: Path | None, codes: pl.Series) -> Ontology:
    """Parents listed in `metadata/codes.parquet` of the data set and of the ontology, and ICD's own where neither does.

    codes: seen or referred to; the ICD hierarchy starts from them and from every code that the tables name.
    """
    given = [read_metadata(folder) for folder in (ehr_folder, ontology_folder) if folder is not None]
    tables = [table for table in given if table is not None]
    if not tables:
        log.warning("metadata/codes.parquet is absent: codes have no parents and no descriptions")
    return with_icd(from_metadata(pl.concat([pl.DataFrame(schema=METADATA), *tables])), codes)


def with_icd(ontology: Ontology, codes: pl.Series) -> Ontology:
    """The ontology, where codes that no table gives a parent have ICD's own."""
    named = (codes.cast(pl.String), ontology.parents["code"], ontology.parents["parent"])
    own = icd_parents(pl.concat([series.alias("code") for series in named]))
    own = own.join(ontology.parents, on="code", how="anti")
    parents = pl.concat([ontology.parents, own]).sort("code", "parent")
    alone = codes.filter(codes.str.contains(r"(?i)^(DIAGNOSIS//)?ICD") & ~codes.is_in(parents["code"].implode()))
    return replace(ontology, parents=parents, icd=own["code"].n_unique(), icd_without_parent=alone.n_unique())


def from_metadata(metadata: pl.DataFrame) -> Ontology:
    """metadata: columns of schema.METADATA; null, empty and self parents are ignored."""
    pairs = metadata.select("code", parent="parent_codes").explode("parent")
    pairs = pairs.filter((pl.col("parent") != "") & (pl.col("parent") != pl.col("code")))
    descriptions = metadata.drop_nulls("description").group_by("code").agg(pl.col("description").min())
    parents, named = pairs.unique().sort("code", "parent"), metadata["code"].unique()
    return Ontology(parents, descriptions.sort("code"), named=named)


def closure(codes: pl.Series, parents: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """Pairs (code, ancestor) of the codes, self included; and how many of the codes are their own proper ancestors."""
    codes = codes.unique().cast(pl.String).alias("name")
    names = pl.concat([codes, *(parents[end].alias("name") for end in ("code", "parent"))]).unique().sort()
    number = names.to_frame().with_row_index("number")
    above = parents.join(number, left_on="code", right_on="name").join(number, left_on="parent", right_on="name")
    above = above.select(ancestor="number", above="number_right")
    start = number.join(codes.to_frame(), on="name", how="semi").select("number")
    blocks = [_walk(block["number"], above) for block in start.iter_slices(_BLOCK)]
    empty = pl.DataFrame(schema={"code": pl.UInt32, "ancestor": pl.UInt32})
    found = pl.concat([empty, *(pairs for pairs, _ in blocks)])
    return found.select(names.gather(found[end]).alias(end) for end in found.columns), sum(c for _, c in blocks)


def _walk(codes: pl.Series, above: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """Closure of the codes, as numbers, sorted; and how many of them are their own proper ancestors."""
    frontier = found = pl.DataFrame({"code": codes, "ancestor": codes})
    cyclic = []
    while len(frontier):
        step = frontier.join(above, on="ancestor").select("code", ancestor="above").unique()
        cyclic.append(step.filter(pl.col("code") == pl.col("ancestor"))["code"])
        frontier = step.join(found, on=["code", "ancestor"], how="anti")  # ends: a pair enters once, cycles or not
        found = pl.concat([found, frontier])
    return found.sort("code", "ancestor"), pl.concat(cyclic).n_unique()


def kept_codes(all_codes: pl.Series, seen: pl.Series) -> pl.Series:
    """The codes that stay when the ontology is pruned to the data."""
    vocabulary = all_codes.str.split("/").list.first()
    return all_codes.filter(all_codes.is_in(seen.implode()) | ~vocabulary.is_in(PRUNED_VOCABULARIES))


def kept_parents(kept: pl.Series, parents: pl.DataFrame) -> pl.DataFrame:
    """Direct parents (code, parent) among the kept codes: a code reattaches to its nearest kept ancestors."""
    is_kept = pl.col("parent").is_in(kept.implode())
    frontier = parents.filter(pl.col("code").is_in(kept.implode()))
    direct, walked = [], frontier.clear()
    while len(frontier):
        direct.append(frontier.filter(is_kept))
        walked = pl.concat([walked, frontier])
        through = frontier.filter(~is_kept)
        step = through.join(parents, left_on="parent", right_on="code").select("code", parent="parent_right").unique()
        frontier = step.join(walked, on=["code", "parent"], how="anti")
    pairs = pl.concat(direct) if direct else frontier
    return pairs.filter(pl.col("code") != pl.col("parent")).unique().sort("code", "parent")
