"""CodeIndex: every code of the run as an integer, in string order, with its place in the ontology."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from ehr.codes.ontology import Ontology, closure, kept_codes, kept_parents
from ehr.schema import BIRTH, DEATH


@dataclass(frozen=True)
class CodeIndex:
    names: (
        pl.DataFrame
    )  # name, code: all codes seen or referred to, and their ancestors; code counts up in string order
    seen: pl.Series  # codes that the data hold
    closure: pl.DataFrame  # code, ancestor: self included
    candidates: (
        pl.DataFrame
    )  # code, description: what may become a task (the ontology pruned to the train subjects' data)
    parents: pl.DataFrame  # code, parent: nearest candidates above a candidate
    cyclic: int  # codes that are their own ancestors
    undescribed: int  # codes seen in the data without a description

    def number(self, name: str) -> int:
        """Of a code that is among the names."""
        number = self.names["name"].index_of(name)
        assert number is not None
        return number

    def starting_with(self, prefix: str) -> pl.Series:
        return self.names.filter(pl.col("name").str.starts_with(prefix))["code"]

    def above_and_below(self, codes: pl.Series) -> pl.Series:
        """The codes with all their ancestors and descendants."""
        ancestors = self.closure.filter(pl.col("code").is_in(codes.implode()))["ancestor"]
        descendants = self.closure.filter(pl.col("ancestor").is_in(codes.implode()))["code"]
        return pl.concat([ancestors, descendants]).unique().sort()


def index_codes(seen: pl.DataFrame, ontology: Ontology, referred: list[str]) -> CodeIndex:
    """seen: code, train (bool). referred: code strings that the configuration names, in the data or not."""
    start = pl.concat([seen["code"], pl.Series([BIRTH, DEATH, *referred], dtype=pl.String)]).unique()
    pairs, cyclic = closure(start, ontology.parents)
    names = pairs.select(name="ancestor").unique().sort("name").with_row_index("code").select("name", "code")
    train = seen.filter("train")["code"]
    reachable = pairs.filter(pl.col("code").is_in(train.implode()))["ancestor"].unique()
    kept = kept_codes(reachable, train)
    described = ontology.descriptions.rename({"code": "name"})
    candidates = names.filter(pl.col("name").is_in(kept.implode())).join(described, on="name", how="left")
    return CodeIndex(
        names,
        names.filter(pl.col("name").is_in(seen["code"].implode()))["code"],
        _numbered(pairs, names, "ancestor"),
        candidates.select("code", pl.col("description").fill_null("")).sort("code"),
        _numbered(kept_parents(kept, ontology.parents), names, "parent"),
        cyclic,
        len(seen.join(ontology.descriptions, on="code", how="anti")),
    )


def _numbered(pairs: pl.DataFrame, names: pl.DataFrame, second: str) -> pl.DataFrame:
    first = pairs.join(names.rename({"name": "code", "code": "number"}), on="code")
    both = first.join(names.rename({"name": second, "code": f"{second}_number"}), on=second)
    return both.select(code="number", **{second: f"{second}_number"}).sort("code", second)
