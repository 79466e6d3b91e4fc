"""Probes: a planted signal is found, the event flag means event, only train and tuning decide."""

import numpy as np
import pytest

from ttepretrain.evaluation.concordance import harrell_c
from ttepretrain.evaluation.outcome import Outcome
from ttepretrain.probe import selection
from ttepretrain.probe.estimators import FeatureSpace, NotFitted, fit_cox, fit_logistic
from ttepretrain.probe.selection import fit_probes

N, F = 500, 40


@pytest.fixture
def planted():
    """Features with one direction that drives the hazard; splits 300/80/120."""
    random = np.random.default_rng(11)
    features = random.normal(size=(N, F)) * np.linspace(3, 0.5, F) + 7
    signal = (features[:, 4] - 7) / features[:, 4].std()
    time = random.exponential(300 * np.exp(-signal))
    censor = random.exponential(400, size=N)
    event, time = time <= censor, np.minimum(time, censor)
    split = np.repeat(["train", "tuning", "held_out"], [300, 80, 120])
    survival = Outcome("edema", None, "harrell_c", np.ones(N, bool), event, time)
    known = event | (time >= 180)
    binary = Outcome("edema", 180.0, "auroc", known, event & (time <= 180), np.full(N, np.nan))
    return features, split, [survival, binary], signal


def c_index(outcome, risk, rows):
    return harrell_c(outcome.event_N[rows], outcome.time_N[rows], risk[rows])


def test_a_planted_direction_is_found_and_inverting_the_risk_gives_one_minus_c(planted):
    features, split, outcomes, _ = planted
    risk = fit_probes(features, split, outcomes).risks[0]
    held_out = split == "held_out"
    value = c_index(outcomes[0], risk, held_out)
    assert value > 0.7
    assert c_index(outcomes[0], -risk, held_out) == pytest.approx(1 - value)


def test_shuffled_outcomes_give_a_half(planted):
    features, split, (survival, _), _ = planted
    values = []
    for seed in range(8):
        order = np.random.default_rng(seed).permutation(N)
        shuffled = Outcome("x", None, "harrell_c", survival.known_N, survival.event_N[order], survival.time_N[order])
        values.append(c_index(shuffled, fit_probes(features, split, [shuffled]).risks[0], split == "held_out"))
    assert np.mean(values) == pytest.approx(0.5, abs=0.04)


def test_held_out_outcomes_change_no_risk(planted):
    features, split, outcomes, _ = planted
    before = fit_probes(features, split, outcomes)
    flipped = [
        Outcome(o.phenotype, o.horizon_days, o.metric, o.known_N, np.where(split == "held_out", ~o.event_N, o.event_N),
                o.time_N)
        for o in outcomes
    ]  # fmt: skip
    after = fit_probes(features, split, flipped)
    assert before.chosen == after.chosen
    for index in (0, 1):
        np.testing.assert_array_equal(before.risks[index], after.risks[index])


def test_tuning_decides_the_setting(planted):
    features, split, outcomes, signal = planted
    result = fit_probes(features, split, outcomes)
    chosen = result.chosen["cox"]
    tuning = split == "tuning"
    assert chosen["tuning_score"] == pytest.approx(c_index(outcomes[0], result.risks[0], tuning))
    assert 0.6 < chosen["tuning_score"] <= 0.95
    assert result.chosen["logistic"]["tuning_score"] > 0.6
    assert np.corrcoef(result.risks[0], signal)[0, 1] > 0.8


def test_cox_coefficient_equals_the_closed_form_of_a_two_group_model():
    """Four rows, one binary feature, no penalty: the partial likelihood is
    theta/(2 theta + 2) * 1/(theta + 2) * theta/(theta + 1), maximal where 2/theta = 2/(theta + 1) + 1/(theta + 2)."""
    from scipy.optimize import brentq

    x = np.array([[1.0], [0.0], [1.0], [0.0]])
    theta = brentq(lambda t: 2 / t - 2 / (t + 1) - 1 / (t + 2), 0.1, 50)
    risk = fit_cox(x, np.array([True, True, True, False]), np.array([1.0, 2.0, 3.0, 4.0]), ridge=1e-9)
    assert risk(np.array([[1.0]]))[0] == pytest.approx(np.log(theta), abs=1e-4)


def test_ridge_means_the_same_per_row_in_both_probes():
    """Every row twice leaves the fit where it was."""
    random = np.random.default_rng(1)
    x, label = random.normal(size=(80, 3)), random.random(80) < 0.4
    once, twice = fit_logistic(x, label, 0.1), fit_logistic(x.repeat(2, axis=0), label.repeat(2), 0.1)
    np.testing.assert_allclose(once(x), twice(x), atol=1e-4)


def test_ridge_shrinks_the_directions_that_hardly_vary_most_in_both_probes():
    """A feature in a hundredth of the unit has a hundred times the coefficient, and pays 10,000 times the penalty."""
    random = np.random.default_rng(6)
    x = random.normal(size=(400, 2))
    event, time = np.ones(400, bool), random.exponential(np.exp(-x.sum(axis=1)))
    probe_x = np.array([[0, 0], [1, 0], [1, 0.01]])
    log_hazard = fit_cox(x * [1, 0.01], event, time, 0.1)(probe_x)
    probability = fit_logistic(x * [1, 0.01], time < 0.7, 0.1)(probe_x)
    for score in (log_hazard, np.log(probability / (1 - probability))):
        assert score[1] - score[0] > 0.5
        assert score[2] - score[1] < 0.02


def test_feature_space_is_uncorrelated_on_train_and_drops_constant_and_duplicate_directions():
    random = np.random.default_rng(2)
    x = random.normal(size=(90, 5))
    x = np.column_stack([x, x[:, 0] * 3, np.full(90, 4.0)])
    space = FeatureSpace.fit(x, max_components=96)
    scores = space.transform(x)
    assert scores.shape == (90, 5)
    covariance = np.cov(scores.T)
    np.testing.assert_allclose(covariance, np.diag(np.diag(covariance)), atol=1e-8)
    assert (np.diff(np.diag(covariance)) < 0).all()
    with pytest.raises(NotFitted, match="no feature varies"):
        FeatureSpace.fit(np.ones((10, 3)), 4)


def test_too_few_train_events_leave_the_outcome_out_with_a_reason(planted):
    features, split, (survival, binary), _ = planted
    rare = Outcome("rare", None, "harrell_c", survival.known_N, survival.event_N & (np.arange(N) % 100 == 0),
                   survival.time_N)  # fmt: skip
    result = fit_probes(features, split, [survival, rare, binary])
    assert set(result.risks) == {0, 2}
    assert "train studies with the event" in result.missing[1]


def test_a_fit_that_fails_is_recorded_and_its_ridge_not_chosen(planted):
    """Without a penalty a perfectly separating feature has no finite coefficient."""
    _, split, (survival, _), _ = planted
    separating = survival.event_N[:, None] * 1.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "RIDGES", (1.0, 0.0))
        result = fit_probes(separating, split, [survival])
    assert result.chosen["cox"]["ridge"] == 1.0
    (failed,) = result.dropped
    assert "Cox" in failed.pop("reason")
    assert failed == {"phenotype": "edema", "horizon_days": None, "probe": "cox", "ridge": 0.0}


def test_complete_separation_is_a_failed_fit_and_not_a_warning():
    """Without a penalty the coefficient of a perfectly separating feature runs off to infinity."""
    x = np.repeat([[1.0], [0.0]], 20, axis=0)
    event, time = x[:, 0] > 0, np.arange(1.0, 41.0)
    with pytest.raises(NotFitted, match="Cox"):
        fit_cox(x, event, time, ridge=0.0)
