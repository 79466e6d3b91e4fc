"""Cumulative incidence against the method's vectors, quadrature and simulation."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from ttepretrain.survival.curves import cumulative_incidence

EDGES = (0.0, 10.0, math.inf)
HAZARDS = np.array([[0.01, 0.005], [0.02, 0.01]])  # bins x (task, death)


def log_hazard(hazard_TK) -> torch.Tensor:
    return torch.tensor(np.log(hazard_TK), dtype=torch.float32)[None]


def survival(z_BTK: torch.Tensor, days: float, edges: tuple[float, ...], blackout_days: float) -> torch.Tensor:
    return 1 - cumulative_incidence(z_BTK, days, edges, blackout_days, None)


def test_vectors_of_the_method():
    three = log_hazard([[0.01], [0.02], [0.03]])
    assert survival(three, 15.0, (0.0, 10.0, 20.0, math.inf), 0.0).item() == pytest.approx(0.818731, abs=1e-6)
    z = log_hazard(HAZARDS)
    assert cumulative_incidence(z, 15.0, EDGES, 0.0, 1)[0, 0].item() == pytest.approx(0.172788, abs=1e-6)
    assert cumulative_incidence(z, 15.0, EDGES, 1.0, 1)[0, 0].item() == pytest.approx(0.165324, abs=1e-6)


def test_death_has_no_competitor_and_without_death_nothing_competes():
    z = log_hazard(HAZARDS)
    dead = cumulative_incidence(z, 15.0, EDGES, 1.0, 1)[0, 1].item()
    assert dead == pytest.approx(1 - math.exp(-(9 * 0.005 + 5 * 0.01)))
    alone = cumulative_incidence(z, 15.0, EDGES, 1.0, None)[0, 0].item()
    assert alone == pytest.approx(1 - math.exp(-(9 * 0.01 + 5 * 0.02)))


@pytest.mark.parametrize("horizon", [0.5, 1.0, 4.0, 10.0, 37.0])
def test_incidence_is_the_integral_of_hazard_times_survival(horizon):
    rng = np.random.default_rng(0)
    edges, hazard_TK = (0.0, 3.0, 10.0, 30.0, math.inf), rng.uniform(0.01, 0.2, (4, 3))
    ours = cumulative_incidence(log_hazard(hazard_TK), horizon, edges, 1.0, 2)[0]

    def alive(t, hazard_T):
        points = [e for e in edges[1:-1] if 1 < e < t]
        return math.exp(-quad(lambda u: hazard_T[np.searchsorted(edges, u) - 1], 1.0, t, points=points or None)[0])

    def incidence(k):
        both_T = hazard_TK[:, k] + hazard_TK[:, 2]
        points = [e for e in edges[1:-1] if 1 < e < horizon]
        return quad(
            lambda t: hazard_TK[np.searchsorted(edges, t) - 1, k] * alive(t, both_T),
            1.0,
            horizon,
            points=points or None,
        )[0]

    for k in range(2):
        assert ours[k].item() == pytest.approx(incidence(k) if horizon > 1 else 0, abs=1e-6)


def test_hazards_of_zero_and_horizons_without_end():
    """No hazard, no event; for ever, the share of k is its share of the last bin's hazards among those who reach it."""
    none = torch.tensor([[[-math.inf, -4.6], [-math.inf, -math.inf]]])
    for days in (0.0, 1.0, 5.0, 1e6, math.inf):
        assert cumulative_incidence(none, days, EDGES, 1.0, 1)[0, 0] == 0
        assert survival(none, days, EDGES, 1.0)[0, 0] == 1
    z = log_hazard(HAZARDS)
    for horizon in (0.0, 1.0):  # nothing is said about (0, blackout]
        assert cumulative_incidence(z, horizon, EDGES, 1.0, 1).eq(0).all()
        assert survival(z, horizon, EDGES, 1.0).eq(1).all()
    ever = cumulative_incidence(z, math.inf, EDGES, 1.0, 1)[0]
    assert ever[0].item() == pytest.approx(2 / 3, abs=1e-7)  # .01 to .005 in the first bin, .02 to .01 in the second
    assert ever[1] == 1
    torch.testing.assert_close(cumulative_incidence(z, 1e9, EDGES, 1.0, 1)[0], ever)


def test_a_certain_event_keeps_its_small_predecessors_apart():
    """exp(40) a day in the second bin: S at its start is still that of the first."""
    z = torch.tensor([[[math.log(0.1), -50.0], [40.0, -50.0]]])
    assert cumulative_incidence(z, 1e4, EDGES, 0.0, 1)[0, 0].item() == pytest.approx(1, abs=1e-12)
    second = cumulative_incidence(z, 1e4, EDGES, 0.0, 1) - cumulative_incidence(z, 10.0, EDGES, 0.0, 1)
    assert second[0, 0].item() == pytest.approx(math.exp(-1), abs=1e-7)


def test_incidence_of_simulated_patients():
    """100,000 patients with two exponential clocks, restarted in the second bin: how often the task came first."""
    rng = np.random.default_rng(2)
    first = rng.exponential(1 / HAZARDS[0], (100_000, 2))
    second = 10 + rng.exponential(1 / HAZARDS[1], (100_000, 2))
    task, death = np.where(first < 10, first, second).T
    share = ((task <= 15) & (task < death)).mean()
    ours = cumulative_incidence(log_hazard(HAZARDS), 15.0, EDGES, 0.0, 1)[0, 0].item()
    assert ours == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 100_000))
