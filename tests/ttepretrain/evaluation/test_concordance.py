"""Harrell's C and AUROC: by hand, against lifelines, scikit-survival and scikit-learn, and their invariants."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ttepretrain.evaluation import concordance
from ttepretrain.evaluation.auroc import auroc, auroc_weighted
from ttepretrain.evaluation.concordance import NoComparablePairs, harrell_c, harrell_c_weighted


@pytest.mark.parametrize(
    ("event", "time", "risk", "expected"),
    [
        pytest.param([1, 1, 0], [1, 2, 3], [3, 2, 1], 1.0, id="right order"),
        pytest.param([1, 1, 0], [1, 2, 3], [1, 2, 3], 0.0, id="reversed"),
        pytest.param([1, 1, 0], [1, 2, 3], [2, 3, 1], 2 / 3, id="one of three pairs wrong"),
        pytest.param([1, 0, 1], [1, 2, 3], [3, 9, 1], 0.5, id="nobody follows the censored row: two pairs"),
        pytest.param([1, 0], [2, 2], [2, 1], 1.0, id="event and censoring at one time: the event came first"),
        pytest.param([1, 1, 0], [2, 2, 3], [5, 1, 3], 0.5, id="two events at one time are not comparable"),
        pytest.param([1, 0, 0], [1, 2, 3], [2, 2, 1], 0.75, id="equal risks count half"),
    ],
)
def test_pairs_counted_by_hand(event, time, risk, expected):
    assert harrell_c(np.array(event, bool), np.array(time), np.array(risk)) == pytest.approx(expected, abs=1e-12)


def random_survival(seed, n=60):
    """Few distinct times and risks, so that every kind of tie occurs."""
    random = np.random.default_rng(seed)
    return random.random(n) < 0.5, random.integers(1, 12, n).astype(float), random.integers(0, 9, n) / 8


@pytest.mark.parametrize("seed", range(20))
def test_c_equals_lifelines_and_scikit_survival_with_ties(seed):
    from lifelines.utils import concordance_index
    from sksurv.metrics import concordance_index_censored

    event, time, risk = random_survival(seed)
    value = harrell_c(event, time, risk)
    assert value == pytest.approx(concordance_index(time, -risk, event), abs=1e-12)
    assert value == pytest.approx(concordance_index_censored(event, time, risk)[0], abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_auroc_equals_scikit_learn_with_ties_and_weights(seed):
    from sklearn.metrics import roc_auc_score

    label, _, risk = random_survival(seed)
    weights = np.random.default_rng(seed).integers(0, 4, (1, len(label)))
    assert auroc(label, risk) == pytest.approx(roc_auc_score(label, risk), abs=1e-12)
    expected = roc_auc_score(label, risk, sample_weight=weights[0])
    assert auroc_weighted(label, risk, weights)[0] == pytest.approx(expected, abs=1e-12)


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**32 - 1))
def test_weighted_c_is_the_c_of_the_repeated_rows(seed):
    event, time, risk = random_survival(seed, n=25)
    weights = np.random.default_rng(seed + 1).integers(0, 4, (3, len(event)))
    values = harrell_c_weighted(event, time, risk, weights)
    for weight, value in zip(weights, values):
        repeated = np.repeat(np.arange(len(event)), weight)
        try:
            assert value == harrell_c(event[repeated], time[repeated], risk[repeated])
        except NoComparablePairs:
            assert np.isnan(value)


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**32 - 1))
def test_c_ignores_row_order_time_unit_and_monotone_changes_of_risk_and_turns_with_its_sign(seed):
    event, time, risk = random_survival(seed)
    value = harrell_c(event, time, risk)
    order = np.random.default_rng(seed).permutation(len(event))
    assert 0 <= value <= 1
    assert harrell_c(event[order], time[order] * 24, np.exp(risk[order])) == value
    assert harrell_c(event, time, -risk) == pytest.approx(1 - value, abs=1e-12)


def test_blocks_of_event_rows_do_not_change_the_value(monkeypatch):
    event, time, risk = random_survival(3)
    whole = harrell_c(event, time, risk)
    monkeypatch.setattr(concordance, "EVENT_BLOCK", 7)
    assert harrell_c(event, time, risk) == whole


@pytest.mark.parametrize(
    ("event", "time"),
    [([0, 0, 0], [1, 2, 3]), ([0, 1, 0], [1, 3, 2]), ([1, 1], [2, 2]), ([], [])],
    ids=["all censored", "the event is last", "all at one time", "empty"],
)
def test_without_comparable_pairs_c_is_undefined_and_not_a_half(event, time):
    with pytest.raises(NoComparablePairs, match="no comparable pairs"):
        harrell_c(np.array(event, bool), np.array(time, float), np.arange(len(time), dtype=float))


def test_one_class_has_no_auroc():
    with pytest.raises(NoComparablePairs, match="one class"):
        auroc(np.ones(3, bool), np.arange(3.0))


def test_a_nan_risk_is_refused():
    with pytest.raises(ValueError, match="not finite"):
        harrell_c(np.array([True, False]), np.array([1.0, 2.0]), np.array([np.nan, 1.0]))
