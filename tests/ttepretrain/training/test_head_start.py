"""The head's start against a plain float64 Poisson regression, one task at a time."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from ttepretrain.errors import NumericsError
from ttepretrain.models.head import PiecewiseExponentialHead
from ttepretrain.survival.likelihood import nll_sum
from ttepretrain.survival.prefit import bias_table
from ttepretrain.testing import random_batch, random_labels, random_task_set, run_distributed
from ttepretrain.training.distributed import connect
from ttepretrain.training.head_start import fit_head

STUDIES, FEATURES, DIMENSION, DEVIATION = 30, 7, 3, 0.6


def features_of(volume_BDHW: torch.Tensor) -> torch.Tensor:
    """A common mean, a spread of a hundredth of it."""
    return 4 + volume_BDHW.flatten(1)[:, :FEATURES] / 20000


def exam(recurrence: str):
    tasks = random_task_set(np.random.default_rng(0), num_tasks=4, recurrence=recurrence)
    labels = random_labels(np.random.default_rng(1), STUDIES, tasks)
    return tasks, labels, bias_table(labels, tasks), random_batch(np.random.default_rng(2), labels)


def fitted(recurrence: str, poison: bool = False) -> dict[str, np.ndarray]:
    """The head's weights as `fit_head` leaves it; every rank gets every world-th study."""
    ranks = connect()
    tasks, labels, bias_TK, batch = exam(recurrence)
    head = PiecewiseExponentialHead(FEATURES, DIMENSION, torch.from_numpy(bias_TK), seed=0)
    share = np.arange(STUDIES)[ranks.rank :: ranks.world]
    mine = type(batch).collate(batch.volume_BDHW[share], batch.study_rank_B[share], labels.take(share))
    fit_head(
        head, lambda volume: features_of(volume) * (math.nan if poison else 1), [mine],
        lambda z, b: nll_sum(z, b, tasks.bin_edges_days, tasks.blackout_days, tasks.recurrence), DEVIATION, ranks,
    )  # fmt: skip
    ranks.close()
    return {name: value.numpy() for name, value in head.state_dict().items()}


def slow_weights(hidden_ND: np.ndarray, recurrence: str) -> np.ndarray:
    """Loops over the formula of the likelihood, and scipy's minimum of it plus the prior."""
    tasks, labels, bias_TK, _ = exam(recurrence)
    edges, rows = tasks.bin_edges_days, []
    for k in range(tasks.num_tasks):
        expected, observed = np.zeros(STUDIES), np.zeros(STUDIES)
        for i in range(STUDIES):
            start, end = labels.history.offset[i : i + 2]
            if recurrence == "incident" and k in labels.history.index[start:end]:
                continue
            start, end = labels.events.offset[i : i + 2]
            days = dict(zip(labels.events.index[start:end].tolist(), labels.event_days[start:end].tolist()))
            time, observed[i] = days.get(k, labels.censor_days[i]), k in days
            for t in range(tasks.num_bins):
                exposure = max(0.0, min(time, edges[t + 1]) - max(edges[t], tasks.blackout_days))
                expected[i] += exposure * math.exp(bias_TK[t, k])

        def objective(w, expected=expected, observed=observed):
            shift = hidden_ND @ w
            return (expected * np.exp(shift) - observed * shift).sum() + w @ w * DIMENSION / (2 * DEVIATION**2)

        rows.append(minimize(objective, np.zeros(DIMENSION), method="BFGS", options={"gtol": 1e-10}).x)
    return np.array(rows)


@pytest.mark.slow
@pytest.mark.parametrize("recurrence", ["all", "incident"])
def test_the_fit_is_the_poisson_regression_of_each_task(recurrence):
    """One process and two; the features are z-scored before, whatever their mean."""
    [alone] = run_distributed(fitted, 1, recurrence)
    _, _, bias_TK, batch = exam(recurrence)
    head = PiecewiseExponentialHead(FEATURES, DIMENSION, torch.from_numpy(bias_TK), seed=0)
    scores = features_of(batch.volume_BDHW).double()
    scores = ((scores - scores.mean(0)) / scores.std(0, correction=0)).float()
    hidden_ND = head.norm(head.expand(scores).unflatten(1, (head.num_bins, -1)))[:, 0].detach().double().numpy()
    weights = slow_weights(hidden_ND, recurrence)
    assert np.abs(weights).max() > 0.1
    np.testing.assert_allclose(alone["project.weight"], weights, atol=2e-4)
    for share in run_distributed(fitted, 2, recurrence):
        for name, value in share.items():
            np.testing.assert_allclose(value, alone[name], atol=2e-5, rtol=1e-5)


@pytest.mark.slow
def test_no_finite_feature_is_an_error():
    with pytest.raises(NumericsError, match="no train study has finite features"):
        run_distributed(fitted, 1, "all", True)
