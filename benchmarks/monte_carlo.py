"""Does the likelihood find the hazards that made the data? Bias and coverage over simulated studies.

    python -m benchmarks.monte_carlo                200 repeats of 800 studies: a minute on one core

Every study has two features f ~ N(0, 1); task k has hazard exp(a_kt + f b_k) per day in bin t. Event times are drawn by
inverting the cumulative hazard, blackout and all: a study is followed if neither death nor the last contact came before
the blackout, and a task with an event inside the blackout is left out of that study (recurrence: incident). Death is
the last task; it ends follow-up, and so does a uniform last contact. a and b are fitted by maximising `nll_sum`, all
tasks at once; standard errors are from the inverse of the observed information. Coverage: share of the intervals
estimate +- 1.96 standard errors that hold the truth.
"""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ttepretrain.batch import Batch
from ttepretrain.labels import LabelTable, Ragged
from ttepretrain.survival.likelihood import nll_sum

EDGES = (0.0, 30.0, 120.0, 365.0, float("inf"))
BLACKOUT = 5.0
LAST_CONTACT = (60.0, 900.0)  # days
# log hazard a day of task k in bin t; the last task is death
LEVEL_KT = np.log([[4e-3, 2e-3, 1e-3, 8e-4], [1e-3, 1e-3, 2e-3, 2e-3], [2e-3, 6e-4, 4e-4, 3e-4]])
SLOPE_KF = np.array([[0.7, 0.0], [-0.4, 0.3], [0.0, 0.5]])
NORMAL_95 = 1.959964


@dataclass(frozen=True)
class Simulated:
    feature_NF: Tensor  # float64
    batch: Batch


def simulate(studies: int, rng: np.random.Generator) -> Simulated:
    """The followed ones of `studies` patients."""
    num_tasks = len(LEVEL_KT)
    feature_NF = rng.normal(size=(studies, SLOPE_KF.shape[1]))
    days_NK = np.stack(
        [event_days(LEVEL_KT[k], feature_NF @ SLOPE_KF[k], rng.exponential(size=studies)) for k in range(num_tasks)], 1
    )
    censor_N = np.minimum(days_NK[:, -1], rng.uniform(*LAST_CONTACT, studies))
    followed = censor_N > BLACKOUT
    feature_NF, days_NK, censor_N = feature_NF[followed], days_NK[followed], censor_N[followed]
    early_NK = days_NK <= BLACKOUT
    event_NK = ~early_NK & (days_NK <= censor_N[:, None])
    labels = LabelTable(
        censor_days=censor_N,
        events=Ragged.of_mask(event_NK),
        event_days=days_NK[event_NK],
        history=Ragged.of_mask(early_NK),
        visit=Ragged.of_mask(np.zeros_like(event_NK)),
    )
    batch = Batch.collate(torch.zeros(len(labels), 1, 1, 1), torch.arange(len(labels)), labels)
    return Simulated(torch.from_numpy(feature_NF), batch)


def event_days(level_T: np.ndarray, shift_N: np.ndarray, unit_exponential_N: np.ndarray) -> np.ndarray:
    """Days at which the cumulative hazard of (0, t] reaches the draws."""
    low, widths = np.array(EDGES[:-1]), np.diff(EDGES[:-1])
    wanted_N = unit_exponential_N / np.exp(shift_N)
    reached_T = np.concatenate([[0], np.cumsum(np.exp(level_T[:-1]) * widths)])
    bin_N = np.searchsorted(reached_T, wanted_N, side="right") - 1
    return low[bin_N] + (wanted_N - reached_T[bin_N]) / np.exp(level_T)[bin_N]


def fit(data: Simulated) -> tuple[np.ndarray, np.ndarray]:
    """Estimates and standard errors [K (T + F)]: levels, then slopes, of one task after the other."""
    num_tasks, num_bins = LEVEL_KT.shape

    def nll(theta: Tensor) -> Tensor:
        level_KT, slope_KF = theta.view(num_tasks, -1).split([num_bins, SLOPE_KF.shape[1]], 1)
        z_NTK = level_KT.T + (data.feature_NF @ slope_KF.T)[:, None]
        return nll_sum(z_NTK, data.batch, EDGES, BLACKOUT, "incident")[0]

    theta = torch.cat([torch.full((num_tasks, num_bins), -6.5), torch.zeros(SLOPE_KF.shape)], 1).double().flatten()
    change = torch.tensor([1.0])
    while change.abs().max() > 1e-6:  # Newton on a convex function: its next change would be of the order of 1e-12
        slope, information = gradient_and_information(nll, theta)
        change = torch.linalg.solve(information, slope)
        theta = theta - change
    return theta.numpy(), torch.linalg.inv(information).diagonal().sqrt().numpy()


def gradient_and_information(nll, theta: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient, and its central differences: the likelihood's own backward pass is made for one derivative."""

    def gradient(at: Tensor) -> Tensor:
        at = at.clone().requires_grad_()
        return torch.autograd.grad(nll(at), at)[0]

    step = 1e-5
    shifts = step * torch.eye(len(theta), dtype=torch.float64)
    columns = [(gradient(theta + shift) - gradient(theta - shift)) / (2 * step) for shift in shifts]
    information = torch.stack(columns)
    return gradient(theta), (information + information.T) / 2


def monte_carlo(repeats: int, studies: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Per parameter [K (T + F)]: truth, mean bias and its standard error, standard deviation, mean SE, coverage."""
    truth = np.concatenate([LEVEL_KT, SLOPE_KF], 1).ravel()
    fits = [fit(simulate(studies, np.random.default_rng([seed, repeat]))) for repeat in range(repeats)]
    estimate_RP, error_RP = (np.stack(part) for part in zip(*fits))
    return {
        "truth": truth,
        "bias": (estimate_RP - truth).mean(0),
        "bias_standard_error": estimate_RP.std(0, ddof=1) / np.sqrt(repeats),
        "standard_deviation": estimate_RP.std(0, ddof=1),
        "mean_standard_error": error_RP.mean(0),
        "coverage": (np.abs(estimate_RP - truth) < NORMAL_95 * error_RP).mean(0),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--studies", type=int, default=800)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/monte_carlo.json"))
    arguments = parser.parse_args()
    found = monte_carlo(arguments.repeats, arguments.studies)
    result = {
        "date": date.today().isoformat(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "repeats": arguments.repeats,
        "studies": arguments.studies,
        "parameters": "per task: log hazard of each bin, then slopes of the features; the last task is death",
        **{name: values.round(5).tolist() for name, values in found.items()},
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    z = found["bias"] / found["bias_standard_error"]
    ratio = found["mean_standard_error"] / found["standard_deviation"]
    print(
        f"largest |bias| {np.abs(found['bias']).max():.4f}, |bias / its error| up to {np.abs(z).max():.2f}, "
        f"coverage {found['coverage'].min():.3f} to {found['coverage'].max():.3f}, "
        f"mean {found['coverage'].mean():.4f}, mean SE / SD {ratio.mean():.3f}"
    )


if __name__ == "__main__":
    main()
