"""From log hazards to cumulative incidence (docs/explanation/likelihood.md).

B rows, K tasks, T bins (lo, hi]. Hazards are per day and constant within a bin. Time starts at the blackout b, as in
the likelihood: events in (0, b] are not modelled.

    L_k(t) = sum_t l_kt D_t(t)          D_t(t): days of bin t between b and t
    S_k(t) = exp(-L_k(t))               k alone, if nobody died first: 1 - F_k without a death task
    F_k(t) = sum_t S(lo_t) l_kt / (l_kt + l_Dt) (1 - exp(-(l_kt + l_Dt) D_t))      S of k and death D together

F is the probability that k happens by t and before death (cause-specific hazards). Other tasks do not end follow-up.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ttepretrain.survival.likelihood import exposure_days


def cumulative_incidence(
    log_hazard_BTK: Tensor,
    horizon_days: float,
    bin_edges_days: Sequence[float],
    blackout_days: float,
    death_task: int | None,
) -> Tensor:
    """float64 [B, K]: F_k(horizon), death competing; of death itself, and of all without a death task, 1 - S_k."""
    days_T = _days_in_bins(log_hazard_BTK, horizon_days, bin_edges_days, blackout_days)
    hazard_BTK = log_hazard_BTK.double().exp()
    both_BTK = hazard_BTK.clone()
    if death_task is not None:
        both_BTK += hazard_BTK[:, :, death_task, None]
        both_BTK[:, :, death_task] = hazard_BTK[:, :, death_task]
    passed_BTK = _passed(both_BTK, days_T)
    before_BTK = torch.cat([torch.zeros_like(passed_BTK[:, :1]), passed_BTK[:, :-1].cumsum(1)], 1)
    by_k_BTK = torch.where(both_BTK > 0, hazard_BTK / both_BTK, 0.0)
    return (torch.exp(-before_BTK) * by_k_BTK * -torch.expm1(-passed_BTK)).sum(1)


def _passed(hazard_BTK: Tensor, days_T: Tensor) -> Tensor:
    """Hazard times days; 0 for a hazard of 0, however long."""
    return torch.where(hazard_BTK == 0, 0.0, hazard_BTK * days_T[:, None])


def _days_in_bins(
    log_hazard_BTK: Tensor, horizon_days: float, bin_edges_days: Sequence[float], blackout_days: float
) -> Tensor:
    edges = torch.as_tensor(bin_edges_days, dtype=torch.float64, device=log_hazard_BTK.device)
    horizon = torch.tensor([horizon_days], dtype=torch.float64, device=edges.device)
    return exposure_days(horizon, edges, blackout_days)[0]
