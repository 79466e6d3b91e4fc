"""The rows of metrics.csv: pairing, means, the closed gap, and null with a reason."""

import math

import numpy as np
import pytest

from ttepretrain.evaluation.bootstrap import patient_weights
from ttepretrain.evaluation.outcome import Outcome
from ttepretrain.evaluation.table import score_split

N = 400


@pytest.fixture
def study():
    """Two phenotypes and death, driven by a signal that arms see to different degrees."""
    random = np.random.default_rng(5)
    signal = random.normal(size=N)
    outcomes = []
    for name in ("edema", "effusion", "mortality"):
        time = random.exponential(np.exp(-signal))
        censor = random.exponential(2.0, size=N)
        outcomes.append(Outcome(name, None, "harrell_c", np.ones(N, bool), time <= censor, np.minimum(time, censor)))
    blur = {"base_random": 5.0, "tte": 1.0, "demographics": 9.0, "oracle": 0.0}
    risks = {(a, i): signal + b * random.normal(size=N) for a, b in blur.items() for i in range(3)}
    return outcomes, risks, np.arange(N) >= 100, patient_weights(np.arange(N) // 2, 200, seed=0)


def find(rows, **wanted):
    (row,) = [r for r in rows if all(getattr(r, k) == v for k, v in wanted.items())]
    return row


def test_differences_are_paired_and_means_leave_death_out(study):
    outcomes, risks, rows_N, weights = study
    rows = score_split("held_out", rows_N, outcomes, risks, {}, weights)
    value = {(r.arm, r.phenotype): r.value for r in rows if r.baseline is None}
    difference = find(rows, arm="tte", baseline="base_random", phenotype="edema")
    assert difference.value == pytest.approx(value["tte", "edema"] - value["base_random", "edema"])
    assert difference.lo < difference.value < difference.hi
    assert value["tte", "mean"] == pytest.approx((value["tte", "edema"] + value["tte", "effusion"]) / 2)
    assert find(rows, arm="tte", baseline=None, phenotype="mean").n == 2 * 300


def test_an_arm_against_itself_differs_by_exactly_nothing(study):
    outcomes, risks, rows_N, weights = study
    risks |= {("tte", i): risks["base_random", i] for i in range(3)}
    row = find(score_split("s", rows_N, outcomes, risks, {}, weights), arm="tte", baseline="base_random",
               phenotype="edema")  # fmt: skip
    assert (row.value, row.lo, row.hi) == (0, 0, 0)


def test_closed_gap_is_the_ratio_of_the_mean_differences(study):
    outcomes, risks, rows_N, weights = study
    rows = score_split("held_out", rows_N, outcomes, risks, {}, weights)
    mean = {a: find(rows, arm=a, baseline=None, phenotype="mean").value for a in ("tte", "base_random", "oracle")}
    gap = find(rows, metric="closed_gap")
    expected = (mean["tte"] - mean["base_random"]) / (mean["oracle"] - mean["base_random"])
    assert gap.value == pytest.approx(expected)
    assert (gap.arm, gap.baseline, gap.phenotype) == ("tte", "base_random", "mean")
    assert 0 < gap.lo < gap.value < gap.hi < 1.5


def test_without_a_gap_there_is_no_share_of_it(study):
    outcomes, risks, rows_N, weights = study
    risks |= {("oracle", i): -risks["oracle", i] for i in range(3)}
    gap = find(score_split("s", rows_N, outcomes, risks, {}, weights), metric="closed_gap")
    assert math.isnan(gap.value)
    assert "no gap" in gap.reason


def test_rows_without_a_value_say_why_and_leave_the_mean_of_every_arm(study):
    outcomes, risks, rows_N, weights = study
    risks["tte", 0] = np.where(np.arange(N) == 200, np.nan, risks["tte", 0])
    del risks["demographics", 2]
    rows = score_split("s", rows_N, outcomes, risks, {("demographics", 2): "too few"}, weights)
    broken = find(rows, arm="tte", baseline=None, phenotype="edema")
    assert math.isnan(broken.value)
    assert broken.reason == "risk is not finite"
    assert find(rows, arm="demographics", baseline=None, phenotype="mortality").reason == "too few"
    assert find(rows, arm="tte", baseline="demographics", phenotype="mortality").reason == "demographics: too few"
    only = find(rows, arm="base_random", baseline=None, phenotype="effusion").value
    assert find(rows, arm="base_random", baseline=None, phenotype="mean").value == only


def test_no_comparable_pairs_is_null_with_a_reason(study):
    outcomes, risks, rows_N, weights = study
    empty = Outcome("ph", None, "harrell_c", np.ones(N, bool), np.zeros(N, bool), np.ones(N))
    risks |= {(arm, 3): risk for (arm, i), risk in risks.items() if i == 0}
    rows = score_split("s", rows_N, [*outcomes, empty], risks, {}, weights)
    row = find(rows, arm="tte", baseline=None, phenotype="ph")
    assert math.isnan(row.value)
    assert (row.reason, row.events, row.n) == ("no comparable pairs", 0, 300)
