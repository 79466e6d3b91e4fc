"""Ontology: closure, cycles, pruning, reattachment, against recursion."""

import itertools
import random

import polars as pl
import pytest

from ehr.codes.codes import index_codes
from ehr.codes.ontology import closure, from_metadata, kept_codes, kept_parents, read_ontology
from ehr.schema import METADATA


def graph(parents: dict[str, list]) -> pl.DataFrame:
    rows = [(code, None, above) for code, above in parents.items()]
    return from_metadata(pl.DataFrame(rows, schema=METADATA, orient="row")).parents


def pairs(frame: pl.DataFrame) -> set[tuple]:
    assert frame.is_unique().all()
    return set(frame.rows())


def test_closure_holds_the_code_itself_and_everything_above():
    parents = graph({"a": ["b"], "b": ["c", "d"], "x": ["d"]})
    found, cyclic = closure(pl.Series(["a", "lonely"]), parents)
    assert pairs(found) == {("a", "a"), ("a", "b"), ("a", "c"), ("a", "d"), ("lonely", "lonely")}
    assert cyclic == 0


def test_null_empty_self_and_repeated_parents_are_ignored():
    assert pairs(graph({"a": [None, "", "a", "b", "b"], "c": None})) == {("a", "b")}


def test_a_cycle_ends_and_is_reported():
    """a <-> b are each other's ancestors; c above them and d below them are not cyclic."""
    found, cyclic = closure(pl.Series(["d", "a", "b"]), graph({"a": ["b"], "b": ["a", "c"], "d": ["a"]}))
    assert {ancestor for code, ancestor in pairs(found) if code == "d"} == {"d", "a", "b", "c"}
    assert cyclic == 2


@pytest.mark.parametrize("seed", range(40))
def test_closure_of_random_graphs_equals_the_oracle(meds, seed):
    """Cycles, diamonds, dangling parents and chains included."""
    rng = random.Random(seed)
    names = [f"V/{i}" for i in range(rng.choice([3, 12, 60]))]
    parents = {n: rng.sample([*names, "GONE/1"], rng.choice([0, 1, 1, 2])) for n in names}
    found, cyclic = closure(pl.Series(names), graph(parents))
    plain = {n: {p for p in above if p != n} for n, above in parents.items()}
    assert pairs(found) == {(n, a) for n in names for a in meds.oracle.ancestors(n, plain)}
    own = [n for n in names if any(n in meds.oracle.ancestors(p, plain) for p in plain[n])]
    assert cyclic == len(own)
    kept = {n for n in names if rng.random() < 0.6}
    direct = kept_parents(pl.Series(sorted(kept), dtype=pl.String), graph(parents))
    assert pairs(direct) == {(n, q) for n in kept for q in meds.oracle.direct_parents(n, plain, kept)}


def test_fifty_levels():
    names = [f"V/{i}" for i in range(50)]
    found, _ = closure(pl.Series(names[:1]), graph({a: [b] for a, b in itertools.pairwise(names)}))
    assert len(found) == 50


def test_pruning_keeps_seen_codes_and_ancestors_of_clinical_vocabularies():
    """An unseen ATC, LOINC, SPL or HemOnc code goes; a seen one stays; SNOMED stays unseen."""
    every = pl.Series(["ATC/B01", "LOINC/1-8", "SPL/x", "HemOnc/5", "SNOMED/1", "ATCX/1", "ATC/seen"])
    assert kept_codes(every, pl.Series(["ATC/seen"])).to_list() == ["SNOMED/1", "ATCX/1", "ATC/seen"]


def test_a_kept_code_reattaches_to_its_nearest_kept_ancestors():
    """drug -> ATC/low (pruned) -> {RxNorm/class, ATC/high (pruned) -> RxNorm/top}"""
    parents = graph({"drug": ["ATC/low"], "ATC/low": ["RxNorm/class", "ATC/high"], "ATC/high": ["RxNorm/top"]})
    kept = pl.Series(["drug", "RxNorm/class", "RxNorm/top"])
    assert pairs(kept_parents(kept, parents)) == {("drug", "RxNorm/class"), ("drug", "RxNorm/top")}


def test_codes_are_numbered_in_string_order_whatever_order_they_come_in():
    ontology = from_metadata(pl.DataFrame([("a", "first", ["z"])], schema=METADATA, orient="row"))
    seen = [pl.DataFrame({"code": codes, "train": [True] * 2}) for codes in (["a", "b"], ["b", "a"])]
    indices = [index_codes(codes, ontology, ["q/1"]) for codes in seen]
    assert indices[0].names["name"].to_list() == ["MEDS_BIRTH", "MEDS_DEATH", "a", "b", "q/1", "z"]
    for field in ("names", "closure", "candidates", "parents"):
        assert getattr(indices[0], field).equals(getattr(indices[1], field))
    assert indices[0].names["code"].to_list() == list(range(6))
    assert indices[0].undescribed == 1  # b


def test_candidates_are_what_train_subjects_have_and_its_ancestors():
    """A code that only others have is no candidate; its numbers exist, so that it still means its ancestors."""
    ontology = from_metadata(pl.DataFrame([("b", None, ["t"])], schema=METADATA, orient="row"))
    index = index_codes(pl.DataFrame({"code": ["a", "b"], "train": [True, False]}), ontology, [])
    names = index.names["name"].to_list()
    assert [names[i] for i in index.candidates["code"]] == ["a"]
    assert (names.index("b"), names.index("t")) in pairs(index.closure)


def test_a_data_set_without_codes_has_no_parents_and_says_so(tmp_path, caplog):
    assert len(read_ontology(tmp_path, None, pl.Series(["X/1"])).parents) == 0
    assert "codes.parquet is absent" in caplog.text


def test_parents_of_the_data_set_and_of_the_ontology_add_up(tmp_path):
    for name, rows in {
        "ehr": [("a", "first", ["b"])],
        "ontology": [("a", "other", ["c"]), ("b", "second", None)],
    }.items():
        (tmp_path / name / "metadata").mkdir(parents=True)
        table = pl.DataFrame(rows, schema=METADATA, orient="row")
        table.write_parquet(tmp_path / name / "metadata" / "codes.parquet")
    ontology = read_ontology(tmp_path / "ehr", tmp_path / "ontology", pl.Series(["a"]))
    assert pairs(ontology.parents) == {("a", "b"), ("a", "c")}
    assert pairs(ontology.descriptions) == {("a", "first"), ("b", "second")}


def test_icd_codes_without_any_parent_fall_back_to_shorter_codes(tmp_path):
    """I27.2 has a parent of its own: what lies below it is shortened up to there and no further."""
    (tmp_path / "metadata").mkdir()
    rows = [("ICD10CM/I27.2", "known", ["SNOMED/1"]), ("LOCAL/x", None, ["ICD9CM/416.8"])]
    pl.DataFrame(rows, schema=METADATA, orient="row").write_parquet(tmp_path / "metadata" / "codes.parquet")
    codes = ["ICD10CM/I27.20", "ICD10CM/J18.9", "ICD10CM/J20", "icd 10 J20.1", "ICD10PCS/0DJ08ZZ", "LOCAL/ICD"]
    ontology = read_ontology(tmp_path, None, pl.Series(codes))
    assert pairs(ontology.parents) == {
        ("ICD10CM/I27.20", "ICD10CM/I27.2"), ("ICD10CM/I27.2", "SNOMED/1"), ("ICD10CM/J18.9", "ICD10CM/J18"),
        ("LOCAL/x", "ICD9CM/416.8"), ("ICD9CM/416.8", "ICD9CM/416"),
    }  # fmt: skip
    assert (ontology.icd, ontology.icd_without_parent) == (3, 3)
