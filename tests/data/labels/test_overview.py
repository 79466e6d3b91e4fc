"""The labels' part of a plan, by hand."""

import polars as pl

from data.labels.overview import answers, quartiles
from ehr.schema import PHENOTYPES


def test_answers_are_counted_for_labelled_studies_and_unknown_ones_left_out():
    rows = [
        ("a", "p", "prognosis", 30.0, True, True), ("b", "p", "prognosis", 30.0, None, False),
        ("c", "p", "prognosis", 30.0, False, True), ("gone", "p", "prognosis", 30.0, True, True),
        ("a", "p", "prognosis", None, True, True), ("b", "p", "prognosis", None, None, False),
        ("c", "p", "prognosis", None, True, True), ("a", "d", "diagnosis", None, False, False),
    ]  # fmt: skip
    schema = {name: PHENOTYPES[name] for name in ("study_id", "phenotype", "kind", "horizon_days", "label", "event")}
    labels = pl.DataFrame({"study_id": ["a", "b", "c"], "split": ["train", "train", "held_out"]})
    found = answers(pl.DataFrame(rows, schema=schema, orient="row"), labels)
    told = [
        (row["phenotype"], row["horizon_days"], *(tuple(row[s].values()) for s in ("train", "tuning", "held_out")))
        for row in found
    ]
    assert told == [
        ("d", None, (1, 0), (0, 0), (0, 0)),
        ("p", 30.0, (1, 1), (0, 0), (1, 0)),
        ("p", None, (2, 1), (0, 0), (1, 1)),
    ]


def test_quartiles():
    assert quartiles(pl.Series([1, 2, 3, 4, 5])) == {"p25": 2.0, "p50": 3.0, "p75": 4.0}
