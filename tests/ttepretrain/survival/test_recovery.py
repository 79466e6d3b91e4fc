"""Hazards that made the data are found again; lifelines finds the same on real data (docs/performance.md)."""

import warnings

import numpy as np
import pytest
import torch

from benchmarks.monte_carlo import BLACKOUT, LEVEL_KT, SLOPE_KF, event_days, fit, monte_carlo, simulate
from ttepretrain.batch import Batch
from ttepretrain.labels import LabelTable, Ragged
from ttepretrain.survival.likelihood import nll_sum

EDGES_WEEKS = (0.0, 10.5, 25.5, 40.5, float("inf"))  # no event on an edge: lifelines puts it into the next bin


def test_simulated_times_have_the_cumulative_hazard_of_a_slow_integral():
    level_T = LEVEL_KT[1]
    shift, wanted = 0.3, np.array([0.01, 0.03, 0.2, 0.7])
    days = event_days(level_T, np.full(4, shift), wanted)
    for end, target in zip(days, wanted):
        grid = (np.arange(200_000) + 0.5) / 200_000 * end
        hazard = np.exp(level_T + shift)[np.searchsorted([30.0, 120.0, 365.0], grid)]
        assert hazard.mean() * end == pytest.approx(target, rel=1e-3)


def test_every_kind_of_row_is_simulated():
    batch = simulate(400, np.random.default_rng(0)).batch
    death = len(LEVEL_KT) - 1
    dead = batch.event_row_N[batch.event_task_N == death]
    assert 20 < len(dead) < len(batch.censor_days_B) - 20
    assert len(batch.history_row_M) > 3  # events inside the blackout
    assert (batch.event_days_N > BLACKOUT).all()
    assert torch.equal(batch.censor_days_B[dead], batch.event_days_N[batch.event_task_N == death])


def test_estimates_are_unbiased_and_their_intervals_hold_the_truth():
    """The committed run has 200 repeats; here, few enough for a suite, within four standard errors."""
    found = monte_carlo(repeats=12, studies=600, seed=1)
    assert (np.abs(found["bias"]) < 4 * found["bias_standard_error"] + 0.02).all()
    assert found["coverage"].mean() > 0.88
    assert found["mean_standard_error"] == pytest.approx(found["standard_deviation"], rel=1)


def test_leaving_the_blackout_out_of_the_likelihood_would_be_seen():
    """The check has teeth: half of the first bin's true hazard is what a wrong exposure of that size would give."""
    estimate, error = fit(simulate(4000, np.random.default_rng(0)))
    truth = np.concatenate([LEVEL_KT, SLOPE_KF], 1).ravel()
    assert (np.abs(estimate - truth) < 4 * error).all()
    days_without = 30 - BLACKOUT
    shift = np.log(30 / days_without)  # of a first-bin level with exposure counted from day 0
    assert shift > 2 * error[0]


def rossi():
    """432 convicts followed for a year, 114 arrests (Rossi et al. 1980), as lifelines ships them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lifelines and pandas about each other
        from lifelines.datasets import load_rossi

        return load_rossi()[["week", "arrest", "fin", "age", "prio"]].astype(float)


def test_piecewise_exponential_regression_equals_that_of_lifelines():
    """lifelines models 1 / hazard = exp(x b_t) in bin t: a coefficient there is ours with the other sign."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lifelines import PiecewiseExponentialRegressionFitter

        frame = rossi()
        frame[["age", "prio"]] = (frame[["age", "prio"]] - frame[["age", "prio"]].mean()) / frame[["age", "prio"]].std()
        fitter = PiecewiseExponentialRegressionFitter(breakpoints=list(EDGES_WEEKS[1:-1]))
        fitter.fit(frame, "week", "arrest", fit_options={"ftol": 1e-14})
    columns = ["fin", "age", "prio", "Intercept"]
    theirs_TF = np.array([[fitter.params_[f"lambda_{t}_", c] for c in columns] for t in range(len(EDGES_WEEKS) - 1)])

    event = frame["arrest"].to_numpy() > 0
    none = Ragged.of_mask(np.zeros((len(frame), 1), bool))
    week = frame["week"].to_numpy()
    labels = LabelTable(week, Ragged.of_mask(event[:, None]), week[event], history=none, visit=none)
    batch = Batch.collate(torch.zeros(len(frame), 1, 1, 1), torch.arange(len(frame)), labels)
    x_NF = torch.from_numpy(frame.assign(Intercept=1.0)[columns].to_numpy())
    beta_TF = torch.zeros(theirs_TF.shape, dtype=torch.float64, requires_grad=True)

    def nll(beta_TF: torch.Tensor) -> torch.Tensor:
        return nll_sum((x_NF @ beta_TF.T)[:, :, None], batch, EDGES_WEEKS, 0.0, "all")[0]

    solver = torch.optim.LBFGS([beta_TF], max_iter=300, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        solver.zero_grad()
        loss = nll(beta_TF)
        loss.backward()
        return loss

    with torch.no_grad():
        beta_TF[:, -1] = -5.0
    solver.step(closure)
    assert -nll(beta_TF).item() == pytest.approx(fitter.log_likelihood_, rel=1e-7)
    np.testing.assert_allclose(beta_TF.detach().numpy(), -theirs_TF, atol=2e-3)
