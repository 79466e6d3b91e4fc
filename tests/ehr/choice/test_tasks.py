"""Ranking, filters and the cut."""

import math
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest

from ehr.choice.tasks import choose_tasks, entropy_score, parent_prevalence
from ehr.config import EhrConfig
from ttepretrain.errors import BadDataError

T0, DAY = datetime(2150, 1, 1, 9), timedelta(days=1)


def table(*rows: tuple) -> pl.DataFrame:
    """(code, score, events, patients)"""
    schema = {"code": pl.UInt32, "score": pl.Float64, "events": pl.Int64, "patients": pl.Int64}
    return pl.DataFrame(rows, schema=schema, orient="row").with_columns(prevalence=pl.lit(0.1))


def choose(candidates: pl.DataFrame, excluded: list[int] = (), death: int = 99, **config):
    out = pl.Series(list(excluded), dtype=pl.UInt32)
    chosen, counts = choose_tasks(candidates, out, death, EhrConfig(**config), lambda _: pytest.fail("not asked for"))
    return chosen["code"].to_list(), counts


def test_the_published_check_value():
    assert entropy_score(np.array([0.2]), np.array([0.5]))[0] == pytest.approx(-0.33651, abs=5e-6)


def test_scores_are_negative_and_nothing_without_information():
    """Nobody, or everybody whose parent is known, has the code: w is 0 or 1 and the code is dropped."""
    p, b = np.array([0.0, 0.5, 0.6, 0.25, 0.5]), np.array([0.5, 0.5, 0.5, 0.5, 1.0])
    score = entropy_score(p, b)
    assert np.isnan(score[:3]).all()
    assert score[3] == pytest.approx(-0.5 * math.log(2))
    assert score[4] == pytest.approx(-math.log(2))


def test_mirrored_shares_tie_exactly():
    assert len(set(entropy_score(np.array([0.1, 0.9, 0.3, 0.7]), np.ones(4)).round(15))) == 2


def test_b_is_the_least_parent_prevalence_and_at_most_one():
    prevalence = np.array([0.1, 0.5, 0.3, 0.9])
    b = parent_prevalence(prevalence, np.array([0, 0, 2]), np.array([1, 2, 3]))
    assert b.tolist() == [0.3, 1.0, 0.9, 1.0]


def test_lowest_score_first_ties_by_code_then_cut():
    candidates = table((1, -0.2, 50, 50), (2, -0.6, 50, 50), (3, -0.2, 50, 50), (4, -0.1, 50, 50))
    codes, counts = choose(candidates, num_tasks=3)
    assert codes == [2, 1, 3]
    assert counts["beyond_num_tasks"] == 1


def test_each_filter_takes_its_own_and_says_how_many():
    candidates = table((1, -9, 19, 19), (2, -8, 20, 10), (3, -0.7, 20, 11), (4, math.nan, 50, 50), (5, -0.5, 50, 50))
    codes, counts = choose(candidates, excluded=[5])
    assert codes == [3]
    assert counts == {
        "candidates": 5, "too_few_events": 1, "too_few_patients": 1, "excluded": 1, "no_information": 1,
        "beyond_num_tasks": 0, "tasks": 1,
    }  # fmt: skip


def test_death_is_pinned_first_on_top_of_num_tasks_whatever_the_filters_say():
    candidates = table((1, -0.2, 50, 50), (2, -0.6, 50, 50), (7, -0.9, 1, 1))
    codes, counts = choose(candidates, excluded=[7], death=7, num_tasks=1)
    assert codes == [7, 2]
    assert counts["tasks"] == 2


def test_without_a_train_death_there_is_nothing_to_pin():
    assert choose(table((1, -0.2, 50, 50), (7, -0.9, 0, 0)), death=7)[0] == [1]


def test_excluded_phenotypes_take_ancestors_and_descendants_with_them(tmp_path, meds, label):
    """root <- {a <- a1, b}: excluding a leaves b alone; diagnoses are excluded even when prognoses are not."""
    t0, day = T0, DAY
    rows = [(s, t0 + (5 + s) * day, code) for s, code in ((1, "V/a1"), (2, "V/b"), (3, "V/a"), (4, "V/b"))]
    rows += [(s, t0 + 90 * day, "V/z") for s in (1, 2, 3, 4, 5)]
    folder = meds.write(tmp_path / "ehr", [rows], {"V/a1": ["V/a"], "V/a": ["V/root"], "V/b": ["V/root"]})
    studies = meds.studies([(s, t0, "train") for s in (1, 2, 3, 4, 5)])
    prognosis, diagnosis = ({"p": {"codes": ["V/a"], "kind": kind}} for kind in ("prognosis", "diagnosis"))
    assert label(folder, studies, prognosis).tasks.codes == ("V/b",)
    assert set(label(folder, studies, prognosis, exclude_phenotypes=False).tasks.codes) == {
        "V/root",
        "V/a",
        "V/a1",
        "V/b",
    }
    assert label(folder, studies, diagnosis, exclude_phenotypes=False).tasks.codes == ("V/b",)
    assert label(folder, studies, {"p": {"codes": ["V/none"]}}, exclude=["V/a1"]).tasks.codes == ("V/b",)
    twin = {"p": {"codes": ["V/none"], "twins": ["V/a*"]}}
    assert label(folder, studies, twin).tasks.codes == ("V/b",)
    assert "V/a" in label(folder, studies, twin, exclude_phenotypes=False).tasks.codes
    with pytest.raises(BadDataError, match=r"ehr\.min_events"):
        label(folder, studies, min_events=3)


def test_prevalence_counts_a_subject_once_and_its_descendants(tmp_path, meds, label):
    """Five of ten subjects have parent or child, two the child: p = .2 and b = .5 give the check value."""
    t0, day = T0, DAY
    rows = [(s, t0 + 20 * day, "V/child") for s in (1, 1, 2, 2)] + [(s, t0 - 9 * day, "V/parent") for s in (2, 3, 4, 5)]
    rows += [(s, t0 + 90 * day, "V/z") for s in range(1, 11)]
    folder = meds.write(tmp_path / "ehr", [rows], {"V/child": ["V/parent"]})
    result = label(folder, meds.studies([(s, t0, "train") for s in range(1, 11)]), {"p": {"codes": ["V/none"]}})
    tasks = {task.code: task for task in result.tasks.tasks}
    assert tasks["V/parent"].prevalence == 0.5
    assert tasks["V/child"].prevalence == 0.2
    assert tasks["V/child"].score == pytest.approx(-0.33651, abs=5e-6)
    assert (tasks["V/child"].events, tasks["V/child"].patients) == (2, 2)
    assert tasks["V/child"].description == "about V/child"
