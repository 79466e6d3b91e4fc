"""OMOP vocabulary tables (Athena) as code metadata, pruned to given codes level by level.

parents(c) = targets of `Maps to` where c is not standard, and ancestors one level up (CONCEPT_ANCESTOR, or `Is a` where
that table is empty or absent). Relations marked invalid are not used. An invalid concept (D, U) has parents, and is
never one: what lies below it gets its parents instead.
Only concept ids travel until the walk is done: 70 M relations leave some 20 M pairs of integers in memory.
"""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from ehr.schema import METADATA
from ehr.sources.columns import whole_numbers
from ehr.sources.tables import Tables, batches
from ttepretrain.errors import ConfigError

_PAIRS = pl.Schema({"child": pl.Int64, "parent": pl.Int64})
_INVALID, _STANDARD = ("D", "U"), ("S", "C")


def concept_codes(vocabularies: list[Tables], concepts: pl.Series) -> pl.DataFrame:
    """concept, code (vocabulary_id/concept_code), description of the given concept ids that the tables know.

    Concept 0 means no concept and has no code. Raises ConfigError where no concept table exists.
    """
    if not any("concept" in tables.files for tables in vocabularies):
        raise ConfigError("input.ehr: no concept table; put CONCEPT beside the OMOP tables, or set input.ontology")
    wanted = concepts.filter(concepts != 0).implode()
    found = [frame.filter(pl.col("concept").is_in(wanted)) for frame in _concepts(vocabularies)]
    return (
        pl.concat(found)
        .drop_nulls("code")
        .unique("concept", keep="first", maintain_order=True)
        .sort("concept")
        .select("concept", "code", "description")
    )


def pruned_vocabulary(vocabularies: list[Tables], codes: pl.Series) -> tuple[pl.DataFrame, dict]:
    """Metadata (schema.METADATA) of the codes and of everything above them, and counts of what the tables lack."""
    known = pl.concat(
        frame.select("concept", "standard", "invalid", wanted=pl.col("code").is_in(codes.implode()))
        for frame in _concepts(vocabularies)
    ).unique("concept", keep="first", maintain_order=True)
    pairs, counts = _direct_pairs(vocabularies, known)
    reached, above = _walk(known.filter("wanted")["concept"], pairs)
    named = concept_codes(vocabularies, reached)
    code_of = named.select("concept", "code")
    above = above.join(code_of, left_on="child", right_on="concept").join(
        code_of.rename({"code": "parent_code"}), left_on="parent", right_on="concept"
    )
    above = above.filter(pl.col("code") != pl.col("parent_code"))
    parents = above.group_by("code").agg(parent_codes=pl.col("parent_code").unique().sort())
    metadata = named.group_by("code").agg(pl.col("description").min()).join(parents, on="code", how="left")
    counts |= {
        "concepts": len(known),
        "standard": int(known["standard"].sum()),
        "codes": len(metadata),
        "pairs": len(above),
    }
    return metadata.select(list(METADATA)).sort("code"), counts


def _concepts(vocabularies: list[Tables]) -> Iterator[pl.DataFrame]:
    """concept, code, description, standard, invalid of the concept tables, batch by batch."""
    columns = (
        "concept_id", "vocabulary_id", "concept_code", "concept_name", "standard_concept", "invalid_reason"
    )  # fmt: skip
    for tables in vocabularies:
        for name in tables.files.get("concept", ()):
            for frame, _ in batches(tables.folder, name, columns, columns[:3]):
                text = frame.select(pl.col(column).cast(pl.String) for column in columns[1:])
                yield text.select(
                    whole_numbers(frame["concept_id"], f"{name}: concept_id").alias("concept"),
                    code=pl.col("vocabulary_id") + "/" + pl.col("concept_code"),
                    description="concept_name",
                    standard=_flag("standard_concept", _STANDARD),
                    invalid=_flag("invalid_reason", _INVALID),
                ).filter(pl.col("concept") != 0)


def _flag(column: str, values: tuple[str, ...]) -> pl.Expr:
    """Whether the text is one of the letters, in either case; exports fill the others with null, nothing or blanks."""
    return pl.col(column).cast(pl.String).str.strip_chars().str.to_uppercase().is_in(values).fill_null(False)


def _direct_pairs(vocabularies: list[Tables], known: pl.DataFrame) -> tuple[pl.DataFrame, dict]:
    """(child, parent) concept ids, both ends known, and what was left out. known: concept, standard, invalid."""
    relations, invalid = _relations(vocabularies)
    above, levels = _ancestors(vocabularies)
    if not levels:
        above = relations.filter(pl.col("relation") == "Is a").select("child", "parent")
    maps = relations.filter(pl.col("relation") == "Maps to").select("child", "parent")
    standard = known.filter("standard").select(child="concept")
    pairs = pl.concat([above, maps.join(standard, on="child", how="anti")]).unique()
    ids = known["concept"].implode()
    whole = pairs.filter(pl.col("child").is_in(ids) & pl.col("parent").is_in(ids))
    bad = known.filter("invalid").select(parent="concept")
    kept, num_bad = _past_invalid(whole, bad)
    counts = {
        "invalid_relations": invalid,
        "dangling_relations": len(pairs) - len(whole),
        "invalid_parents": num_bad,
        "levels_from": "concept_ancestor" if levels else "concept_relationship",
    }
    return kept, counts


def _past_invalid(pairs: pl.DataFrame, bad: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """The pairs with every bad parent replaced by the nearest good ones above it; and how many were replaced."""
    kept = [pairs.join(bad, on="parent", how="anti")]
    frontier = walked = pairs.join(bad, on="parent", how="semi")
    while len(frontier):
        step = frontier.join(pairs.rename({"child": "parent", "parent": "above"}), on="parent")
        step = step.select("child", parent="above").unique()
        kept.append(step.join(bad, on="parent", how="anti"))
        frontier = step.join(bad, on="parent", how="semi").join(walked, on=["child", "parent"], how="anti")
        walked = pl.concat([walked, frontier])
    whole = pl.concat(kept).filter(pl.col("child") != pl.col("parent"))
    return whole.unique(), len(pairs) - len(kept[0])


def _relations(vocabularies: list[Tables]) -> tuple[pl.DataFrame, int]:
    """child, parent, relation of `Maps to` and `Is a`, and how many of them are marked invalid and left out."""
    columns = ("concept_id_1", "concept_id_2", "relationship_id", "invalid_reason")
    kinds = pl.Enum(["Maps to", "Is a"])
    parts, invalid = [pl.DataFrame(schema=_PAIRS | {"relation": kinds})], 0
    for frame, ids in _pairs(vocabularies, "concept_relationship", columns):
        rows = ids.with_columns(
            relation=frame["relationship_id"].cast(pl.String).cast(kinds, strict=False),
            bad=frame.select(_flag("invalid_reason", _INVALID)).to_series(),
        ).filter(pl.col("relation").is_not_null() & (pl.col("child") != pl.col("parent")))
        parts.append(rows.filter(~pl.col("bad")).drop("bad"))
        invalid += int(rows["bad"].sum())
    return pl.concat(parts), invalid


def _ancestors(vocabularies: list[Tables]) -> tuple[pl.DataFrame, bool]:
    """(child, parent) one level apart, and whether the table holds anything at all."""
    columns = ("descendant_concept_id", "ancestor_concept_id", "min_levels_of_separation")
    parts, filled = [pl.DataFrame(schema=_PAIRS)], False
    for frame, ids in _pairs(vocabularies, "concept_ancestor", columns):
        filled |= len(frame) > 0
        level = whole_numbers(frame["min_levels_of_separation"], "concept_ancestor.min_levels_of_separation")
        parts.append(ids.filter(level == 1))
    return pl.concat(parts), filled


def _pairs(
    vocabularies: list[Tables], table: str, columns: tuple[str, ...]
) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """Batches of a relation table, and their (child, parent) ids: the first two of `columns`."""
    for tables in vocabularies:
        for name in tables.files.get(table, ()):
            for frame, _ in batches(tables.folder, name, columns, columns[:3]):
                child, parent = (whole_numbers(frame[c], f"{table}.{c}") for c in columns[:2])
                yield frame, pl.DataFrame({"child": child, "parent": parent})


def _walk(start: pl.Series, pairs: pl.DataFrame) -> tuple[pl.Series, pl.DataFrame]:
    """Every concept at or above the start, and the pairs on the way, one level at a time; cycles end it."""
    reached = frontier = start.unique()
    taken = [pairs.clear()]
    while len(frontier):
        step = pairs.filter(pl.col("child").is_in(frontier.implode()))
        taken.append(step)
        above = step["parent"].unique()
        frontier = above.filter(~above.is_in(reached.implode()))
        reached = pl.concat([reached, frontier])
    return reached, pl.concat(taken)
