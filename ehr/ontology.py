"""Ontology: which codes are kinds of which. Every code is its own descendant.

closure(c) = c and its transitive parents. Held as pair tables, so that all codes are walked at once, level by level.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from ehr.schema import METADATA
from ehr.sources.meds import read_metadata
from ttepretrain.errors import ConfigError

log = logging.getLogger(__name__)

# Ancestors of these vocabularies stay only if the data hold them: label-less drug packages and groupers.
PRUNED_VOCABULARIES = ("SPL", "ATC", "HemOnc", "LOINC")


@dataclass(frozen=True)
class Ontology:
    parents: pl.DataFrame  # code, parent: unique, no code its own parent
    descriptions: pl.DataFrame  # code, description: unique codes


def read_ontology(ehr_folder: Path, ontology_folder: Path | None) -> Ontology:
    """Parents listed in the data set's `metadata/codes.parquet`."""
    if ontology_folder is not None:
        raise ConfigError("input.ontology: Athena exports are not read yet; leave it out")
    metadata = read_metadata(ehr_folder)
    if metadata is None:
        log.warning("metadata/codes.parquet is absent: codes have no parents and no descriptions")
        metadata = pl.DataFrame(schema=METADATA)
    return from_metadata(metadata)


def from_metadata(metadata: pl.DataFrame) -> Ontology:
    """metadata: columns of schema.METADATA; null, empty and self parents are ignored."""
    pairs = metadata.select("code", parent="parent_codes").explode("parent")
    pairs = pairs.filter((pl.col("parent") != "") & (pl.col("parent") != pl.col("code")))
    descriptions = metadata.drop_nulls("description").group_by("code").agg(pl.col("description").min())
    return Ontology(pairs.unique().sort("code", "parent"), descriptions.sort("code"))


def closure(codes: pl.Series, parents: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """Pairs (code, ancestor) of the codes, self included; and how many of the codes are their own proper ancestors."""
    codes = codes.unique().cast(pl.String)
    found = pl.DataFrame({"code": codes, "ancestor": codes})
    frontier, cyclic = found, []
    while len(frontier):
        step = frontier.join(parents, left_on="ancestor", right_on="code").select("code", ancestor="parent").unique()
        cyclic.append(step.filter(pl.col("code") == pl.col("ancestor"))["code"])
        frontier = step.join(found, on=["code", "ancestor"], how="anti")  # ends: a pair enters once, cycles or not
        found = pl.concat([found, frontier])
    return found.sort("code", "ancestor"), pl.concat(cyclic).n_unique() if cyclic else 0


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
