"""OMOP vocabulary tables (Athena) as code metadata, pruned to given codes level by level.

parents(c) = targets of `Maps to` where c is not standard, and ancestors one level up (CONCEPT_ANCESTOR, or `Is a` where
that table is empty or absent). Relations marked invalid are not used. An invalid concept (D, U) has parents, and is
never one: what lies below it gets its parents instead.
Only concept ids travel until the walk is done: 70 M relations leave some 20 M pairs of integers in memory.
"""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from ehr.codes.spelling import folded, spelling_counts
from ehr.schema import METADATA
from ehr.sources.columns import whole_numbers
from ehr.sources.table_rows import batches
from ehr.sources.tables import Tables
from ttepretrain.errors import ConfigError

_PAIRS = pl.Schema({"child": pl.Int64, "parent": pl.Int64})
_LEVELS = ("descendant_concept_id", "ancestor_concept_id", "min_levels_of_separation")
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


def within(vocabularies: list[Tables], concepts: pl.Series, roots: tuple[int, ...]) -> pl.Series:
    """Which of the concept ids are one of the roots, lie below one at any level, or map to one that does."""
    top = pl.Series(roots, dtype=pl.Int64)
    concepts = concepts.filter(concepts != 0).unique()
    inside, levels = [top], False
    if not concepts.is_in(top.implode()).all():
        for frame, ids in _pairs(vocabularies, "concept_ancestor", _LEVELS):
            levels |= len(frame) > 0
            inside.append(ids.filter(pl.col("parent").is_in(top.implode()))["child"])
    below = pl.concat(inside).unique().implode()
    if concepts.is_in(below).all():
        return concepts.sort()
    relations, _ = _relations(vocabularies)
    up = relations.filter(True if not levels else pl.col("relation") == "Maps to").select("child", "parent").unique()
    reached = frontier = pl.DataFrame({"concept": concepts, "at": concepts})
    while len(frontier):
        step = frontier.join(up, left_on="at", right_on="child").select("concept", at="parent").unique()
        frontier = step.join(reached, on=["concept", "at"], how="anti")
        reached = pl.concat([reached, frontier])
    return reached.filter(pl.col("at").is_in(below))["concept"].unique().sort()


def pruned_vocabulary(
    vocabularies: list[Tables], codes: pl.Series, of_data: pl.Series | None = None
) -> tuple[pl.DataFrame, dict]:
    """Metadata (schema.METADATA) of the codes and of everything above them, and counts of what the tables lack.

    of_data: the codes that the data hold, whose spelling is compared with the tables'.
    """
    parts, alike = [], [pl.Series("code", [], pl.String)]
    data = pl.Series("code", [], pl.String) if of_data is None else of_data.alias("code")
    meant = data.to_frame().select(folded(pl.col("code"))).to_series().implode()
    for frame in _concepts(vocabularies):
        parts.append(frame.select("concept", "standard", "invalid", wanted=pl.col("code").is_in(codes.implode())))
        if len(data):
            alike.append(frame.filter(folded(pl.col("code")).is_in(meant))["code"])
    known = pl.concat(parts).unique("concept", keep="first", maintain_order=True)
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
    counts |= {} if of_data is None else spelling_counts(data, pl.concat(alike))
    return metadata.select(list(METADATA)).sort("code"), counts


def _concepts(vocabularies: list[Tables]) -> Iterator[pl.DataFrame]:
    """concept, code, description, standard, invalid of the concept tables, in batches; ConfigError without a row."""
    columns = (
        "concept_id", "vocabulary_id", "concept_code", "concept_name", "standard_concept", "invalid_reason"
    )  # fmt: skip
    rows = 0
    for tables in vocabularies:
        for name in tables.files.get("concept", ()):
            for frame, _ in batches(tables.folder, name, columns, columns[:3]):
                rows += len(frame)
                text = frame.select(pl.col(column).cast(pl.String) for column in columns[1:])
                yield text.select(
                    whole_numbers(frame["concept_id"], f"{name}: concept_id").alias("concept"),
                    code=pl.col("vocabulary_id") + "/" + pl.col("concept_code"),
                    description="concept_name",
                    standard=_flag("standard_concept", _STANDARD),
                    invalid=_flag("invalid_reason", _INVALID),
                ).filter(pl.col("concept") != 0)
    if not rows:
        raise ConfigError("table CONCEPT has column names and no rows; export it again")


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
    parts, filled = [pl.DataFrame(schema=_PAIRS)], False
    for frame, ids in _pairs(vocabularies, "concept_ancestor", _LEVELS):
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
