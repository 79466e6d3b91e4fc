"""Patient bootstrap: whole patients are drawn, draws are shared, intervals cover."""

import numpy as np
import pytest

from ttepretrain.evaluation.bootstrap import patient_weights, percentile_interval
from ttepretrain.evaluation.concordance import harrell_c_weighted


def test_studies_of_one_patient_are_drawn_together_and_every_resample_has_as_many_patients():
    subject = np.array(["b", "a", "c", "a", "d", "b", "a"])
    weights = patient_weights(subject, 50, seed=1)
    assert weights.shape == (51, 7)
    assert (weights[0] == 1).all()
    assert (weights[:, 1] == weights[:, 3]).all()
    assert (weights[:, 1] == weights[:, 6]).all()
    first_study = [1, 0, 2, 4]
    assert (weights[:, first_study].sum(axis=1) == 4).all()


def test_resamples_do_not_depend_on_the_order_of_the_rows():
    subject = np.array(["b", "a", "c", "a", "d"])
    order = np.array([4, 2, 0, 1, 3])
    assert (patient_weights(subject, 20, seed=2)[:, order] == patient_weights(subject[order], 20, seed=2)).all()


def test_interval_is_the_percentile_interval_and_absent_when_many_resamples_are_undefined():
    values = np.arange(1001.0)
    assert percentile_interval(values) == (25.0, 975.0)
    assert percentile_interval(np.append(values, np.nan)) == (25.0, 975.0)
    assert np.isnan(percentile_interval(np.where(values < 200, np.nan, values))).all()


def test_intervals_cover_the_population_c():
    """92-99 % of 200 samples of 120 patients with two studies each, at a nominal 95 %."""
    random = np.random.default_rng(7)

    def draw(patients):
        risk = random.normal(size=patients).repeat(2)
        time = random.exponential(np.exp(-risk))
        censor = random.exponential(2.0, size=len(risk))
        return time <= censor, np.minimum(time, censor), risk, np.arange(patients).repeat(2)

    event, time, risk, _ = draw(2000)
    population = harrell_c_weighted(event, time, risk, np.ones((1, len(event))))[0]
    covered = 0
    for seed in range(200):
        event, time, risk, patient = draw(120)
        lo, hi = percentile_interval(harrell_c_weighted(event, time, risk, patient_weights(patient, 300, seed))[1:])
        covered += lo <= population <= hi
    assert covered / 200 == pytest.approx(0.955, abs=0.035)
