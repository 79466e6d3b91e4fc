"""Vocabulary tables as Athena ships them: direct parents, pruning, and what is left out, against a plain walk."""

import csv
import random
from pathlib import Path

import polars as pl
import pytest

from data.testing import load_module
from ehr.codes.athena import concept_codes, pruned_vocabulary
from ehr.codes.ontology import closure, from_metadata
from ehr.schema import METADATA
from ehr.sources.tables import find_tables
from ttepretrain.errors import ConfigError

slow_omop = load_module(Path(__file__).parents[1] / "slow_omop.py")

CONCEPT = {
    "concept_id": pl.Int64, "concept_name": pl.String, "vocabulary_id": pl.String, "concept_code": pl.String,
    "standard_concept": pl.String, "invalid_reason": pl.String,
}  # fmt: skip
RELATION = {
    "concept_id_1": pl.Int64, "concept_id_2": pl.Int64, "relationship_id": pl.String, "invalid_reason": pl.String,
}  # fmt: skip
ANCESTOR = {
    "ancestor_concept_id": pl.Int64, "descendant_concept_id": pl.Int64, "min_levels_of_separation": pl.Int64,
    "max_levels_of_separation": pl.Int64,
}  # fmt: skip


def concept(number, standard="S", invalid=None, vocabulary="V") -> tuple:
    return (number, f'name "{number}', vocabulary, str(number), standard, invalid)


def write(folder: Path, concepts: list, relations=(), ancestors=None) -> Path:
    """Parquet tables; ancestors None: no such table."""
    folder.mkdir(exist_ok=True)
    tables = {"concept": (concepts, CONCEPT), "concept_relationship": (relations, RELATION)}
    if ancestors is not None:
        tables["concept_ancestor"] = ([(*row, row[2]) for row in ancestors], ANCESTOR)
    for name, (rows, schema) in tables.items():
        pl.DataFrame(list(rows), schema=schema, orient="row").write_parquet(folder / f"{name}.parquet")
    return folder


def parents_of(folder: Path, codes: list[str]) -> tuple[dict[str, set], dict]:
    """({code: direct parents} of the pruned vocabulary, counts)"""
    metadata, counts = pruned_vocabulary([find_tables(folder)], pl.Series(codes, dtype=pl.String))
    assert metadata.schema == METADATA
    assert metadata["code"].is_sorted()
    return {code: set(above or []) for code, _, above in metadata.rows()}, counts


def test_maps_to_of_several_levels_then_ancestors_one_level_up(tmp_path):
    """9 (source) -> 8 (source) -> 1 (standard) -> 2 -> 3; 3 is also two levels above 1; nobody asks for 5 and 6."""
    concepts = [concept(n) for n in (1, 2, 3, 5, 6)] + [concept(8, None), concept(9, None), concept(7, "C")]
    maps = [(9, 8, "Maps to", None), (8, 1, "Maps to", None), (1, 1, "Maps to", None), (6, 1, "Maps to value", None)]
    maps += [(1, 5, "Maps to", None), (7, 1, "Maps to", None)]  # of a standard and of a classification concept: unused
    ancestors = [(2, 1, 1), (3, 2, 1), (3, 1, 2), (1, 1, 0), (6, 5, 1)]
    found, counts = parents_of(write(tmp_path, concepts, maps, ancestors), ["V/9", "V/404"])
    assert found == {"V/9": {"V/8"}, "V/8": {"V/1"}, "V/1": {"V/2"}, "V/2": {"V/3"}, "V/3": set()}
    assert (counts["concepts"], counts["codes"], counts["pairs"]) == (8, 5, 4)
    assert counts["levels_from"] == "concept_ancestor"


def test_is_a_stands_in_where_there_are_no_ancestors(tmp_path):
    """Absent or empty; with ancestors `Is a` is not read, as the two would say the same."""
    concepts, relations = [concept(n) for n in (1, 2, 3)], [(1, 2, "Is a", None), (2, 3, "Is a", None)]
    chain = {"V/1": {"V/2"}, "V/2": {"V/3"}, "V/3": set()}
    for number, ancestors in enumerate((None, [])):
        found, counts = parents_of(write(tmp_path / str(number), concepts, relations, ancestors), ["V/1"])
        assert found == chain
        assert counts["levels_from"] == "concept_relationship"
    assert parents_of(write(tmp_path / "2", concepts, relations, [(3, 1, 1)]), ["V/1"])[0] == {
        "V/1": {"V/3"},
        "V/3": set(),
    }


def test_what_is_invalid_or_dangling_is_left_out_and_counted(tmp_path):
    """A dead concept still maps to its successor, and is nobody's parent; a dead relation is none."""
    concepts = [concept(1, None, "U"), concept(2), concept(3, None, "D"), concept(4, None)]
    relations = [(1, 2, "Maps to", None), (4, 2, "Maps to", "D"), (4, 99, "Maps to", None), (4, 3, "Maps to", None)]
    found, counts = parents_of(write(tmp_path, concepts, relations, [(98, 2, 1), (2, 2, 0)]), ["V/1", "V/4"])
    assert found == {"V/1": {"V/2"}, "V/2": set(), "V/4": set()}
    assert (counts["invalid_relations"], counts["dangling_relations"], counts["invalid_parents"]) == (1, 2, 1)


def test_an_invalid_concept_on_the_way_is_passed_and_not_kept(tmp_path):
    """4 (source) -> 3 (replaced) -> 2 (replaced) -> 1; 6 -> 5 (deleted), which leads nowhere; 7 <-> 8 dead, 8 -> 1."""
    concepts = [concept(1), *(concept(n, None, "U") for n in (2, 3, 7, 8)), concept(4, None), concept(5, None, "D")]
    maps = [(4, 3), (3, 2), (2, 1), (6, 5), (7, 8), (8, 7), (8, 1)]
    folder = write(tmp_path, [*concepts, concept(6, None)], [(*pair, "Maps to", None) for pair in maps], [])
    found, counts = parents_of(folder, ["V/4", "V/6", "V/7"])
    assert found == {"V/4": {"V/1"}, "V/6": set(), "V/7": {"V/1"}, "V/1": set()}
    assert counts["invalid_parents"] == 5
    assert parents_of(folder, ["V/3"])[0] == {"V/3": {"V/1"}, "V/1": set()}  # in the data: keeps its code


@pytest.mark.parametrize("blank", ["", " ", "0", "N"])
def test_standard_is_what_says_so_in_either_letter_case(tmp_path, blank):
    """Exports quote the empty cell; 2 and 3 are standard or classification and do not map on."""
    concepts = [concept(1, blank), concept(2, "s "), concept(3, "C"), concept(4, "S", "d")]
    maps = [(n, 2, "Maps to", "") for n in (1, 2, 3)] + [(1, 3, "Maps to", " U"), (1, 4, "Maps to", None)]
    found, counts = parents_of(write(tmp_path, concepts, maps, []), ["V/1", "V/3"])
    assert found == {"V/1": {"V/2"}, "V/2": set(), "V/3": set()}
    assert (counts["concepts"], counts["standard"], counts["invalid_relations"]) == (4, 3, 1)


def test_a_cycle_ends_the_walk_and_is_reported(tmp_path):
    folder = write(tmp_path, [concept(n) for n in (1, 2, 3)], [], [(2, 1, 1), (1, 2, 1), (3, 2, 1)])
    metadata, _ = pruned_vocabulary([find_tables(folder)], pl.Series(["V/1"]))
    pairs, cyclic = closure(pl.Series(["V/1", "V/2"]), from_metadata(metadata).parents)
    assert cyclic == 2
    assert {above for code, above in pairs.rows() if code == "V/1"} == {"V/1", "V/2", "V/3"}


def random_graph(seed: int) -> tuple[list, list, list, list[str]]:
    """Concepts, relations, ancestors and codes to start from: cycles, diamonds, dangling ends, copies, dead rows."""
    rng = random.Random(seed)
    first = 1000 * seed + 1
    ids = list(range(first, first + rng.choice([3, 8, 24])))
    ends = [*ids, first + 900, first + 901]
    state = [None, None, None, "D", "U"]
    concepts = [concept(n, rng.choice(["S", "S", None, "C"]), rng.choice(state)) for n in ids]
    kinds = ["Maps to", "Is a", "Mapped from"]
    count = len(ids) * 2
    relations = [(rng.choice(ends), rng.choice(ends), rng.choice(kinds), rng.choice(state)) for _ in range(2 * count)]
    ancestors = [(rng.choice(ends), rng.choice(ends), rng.choice([0, 1, 1, 2])) for _ in range(count)]
    return concepts, relations * rng.choice([1, 2]), ancestors, [f"V/{n}" for n in rng.sample(ids, 3)]


@pytest.mark.parametrize("seeds", [range(500), range(500, 1000)], ids=["ancestors", "is_a"])
def test_a_thousand_random_graphs_equal_a_plain_walk(meds, tmp_path, seeds):
    """Side by side in one vocabulary: direct parents of all that is reached, nothing else, and the closure."""
    graphs = [random_graph(seed) for seed in seeds]
    concepts, relations, ancestors, codes = ([row for graph in graphs for row in graph[part]] for part in range(4))
    folder = write(tmp_path / "athena", concepts, relations, ancestors if seeds[0] == 0 else None)
    plain = slow_omop.slow_parents(folder)
    above = {code: meds.oracle.ancestors(code, plain) for code in codes}
    metadata, _ = pruned_vocabulary([find_tables(folder)], pl.Series(codes))
    found = {code: set(parents or []) for code, _, parents in metadata.rows()}
    assert found == {code: plain.get(code, set()) for code in set().union(*above.values())}
    assert sum(map(len, found.values())) > 500
    pairs, cyclic = closure(pl.Series(codes), from_metadata(metadata).parents)
    assert set(pairs.rows()) == {(code, ancestor) for code in codes for ancestor in above[code]}
    own = [code for code in codes if any(code in meds.oracle.ancestors(parent, plain) for parent in found[code])]
    assert cyclic == len(own) > 0


def test_athenas_own_files_are_tab_separated_with_stray_quotation_marks(tmp_path):
    """Upper-case names, dates as digits, no quoting: a name with one `"` swallows no rows."""
    head = "\t".join(name for name in (*CONCEPT, "valid_start_date"))
    rows = [[*map(str, (n, f'one " mark {n}', "V", n, "S", "")), "19700101"] for n in (1, 2)]
    (tmp_path / "CONCEPT.csv").write_text("\n".join([head, *("\t".join(row) for row in rows)]) + "\n")
    (tmp_path / "CONCEPT_ANCESTOR.csv").write_text("\t".join(ANCESTOR) + "\n2\t1\t1\t1\n")
    tables = find_tables(tmp_path)
    assert concept_codes([tables], pl.Series([1, 2, 0, 77])).rows() == [
        (1, "V/1", 'one " mark 1'), (2, "V/2", 'one " mark 2'),
    ]  # fmt: skip
    assert parents_of(tmp_path, ["V/1"])[0] == {"V/1": {"V/2"}, "V/2": set()}


def test_the_first_of_two_vocabularies_names_a_concept(tmp_path):
    """A hospital's own table beside the extract wins over input.ontology."""
    for name, vocabulary in (("own", "LOCAL"), ("athena", "V")):
        write(tmp_path / name, [concept(1, vocabulary=vocabulary), concept(2 if name == "own" else 3)])
    tables = [find_tables(tmp_path / name) for name in ("own", "athena")]
    codes = concept_codes(tables, pl.Series([1, 2, 3]))
    assert dict(codes.select("concept", "code").rows()) == {1: "LOCAL/1", 2: "V/2", 3: "V/3"}
    with pytest.raises(ConfigError, match="no concept table"):
        concept_codes([], pl.Series([1]))


def test_a_concept_table_without_a_row_is_told_of(tmp_path):
    (tmp_path / "CONCEPT.csv").write_text("concept_id\tvocabulary_id\tconcept_code\n")
    tables = [find_tables(tmp_path)]
    for read, dtype in ((concept_codes, pl.Int64), (pruned_vocabulary, pl.String)):
        with pytest.raises(ConfigError, match="CONCEPT has column names and no rows"):
            read(tables, pl.Series("code", [], dtype))


def test_the_closed_small_vocabulary_equals_a_plain_walk(fixtures, meds):
    """omock's 3,361 concepts (comma-separated, NA for null, dates as dd/mm/yyyy), level by level from every one."""
    folder = fixtures / "onto_omop_small" / "omock_default"
    if not folder.is_dir():
        pytest.skip(f"no small vocabulary: {folder} does not exist")
    with (folder / "concept.csv").open() as file:
        concepts = {int(row["concept_id"]): row for row in csv.DictReader(file)}
    with (folder / "conceptAncestor.csv").open() as file:
        levels = [{name: int(cell) for name, cell in row.items()} for row in csv.DictReader(file)]
    name = {number: f"{row['vocabulary_id']}/{row['concept_code']}" for number, row in concepts.items() if number}
    plain = {code: set() for code in name.values()}
    for row in levels:
        child, parent = row["descendant_concept_id"], row["ancestor_concept_id"]
        if row["min_levels_of_separation"] == 1 and concepts[parent]["invalid_reason"] == "NA":
            plain[name[child]].add(name[parent])
    metadata, counts = pruned_vocabulary([find_tables(folder)], pl.Series(sorted(plain)))
    assert {code: set(above or []) for code, _, above in metadata.rows()} == plain
    assert counts["dangling_relations"] == 0
    pairs, cyclic = closure(pl.Series(sorted(plain)), from_metadata(metadata).parents)
    assert set(pairs.rows()) == {(code, above) for code in plain for above in meds.oracle.ancestors(code, plain)}
    assert cyclic == 0
