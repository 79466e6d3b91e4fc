"""Where the head starts: fitted to the features of the untrained encoder, before the encoder's first step.

B studies of a batch, N studies of this rank, F features, D head dimension, T bins, K tasks.

A last linear of zeros passes no gradient to the encoder, and one that has seen a few batches passes noise. Fitted
first, it passes what the labels ask for (linear probing before fine-tuning, arXiv 2202.10054;
docs/explanation/training.md).
While the head is alike in all bins, the piecewise-exponential model is a Poisson regression per task:

    z_itk = bias_tk + h_i w_k      NLL = sum_ik E_ik exp(h_i w_k) - d_ik h_i w_k + const

E_ik: events that the bias table expects of study i's days at risk; d_ik: whether one was observed. A normal prior on w
with h w of standard deviation s adds |w|^2 D / (2 s^2), for |h|^2 = D after RMSNorm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from ttepretrain.batch import Batch
from ttepretrain.errors import NumericsError
from ttepretrain.models.head import FactorisedHead, PiecewiseExponentialHead
from ttepretrain.training.distributed import Ranks

ITERATIONS = 40  # of L-BFGS; the loss of held-back studies has settled by 25

NllSum = Callable[[Tensor, Batch], tuple[Tensor, Tensor]]


def fit_head(
    head: PiecewiseExponentialHead,
    features: Callable[[Tensor], Tensor],
    batches: Iterable[Batch],
    nll_sum: NllSum,
    deviation: float,
    ranks: Ranks,
) -> None:
    """Standardise the head's first linear and fit its last one, in place; every rank ends with the same weights.

    batches: this rank's share of some train studies. deviation: s, of a task's log hazard between studies. Collective.
    A study with a feature or an expectation that is not finite is left out; NumericsError when none is left.
    """
    features_NF, expected_NK, observed_NK = _gathered(head, features, batches, nll_sum)
    mean_F, std_F, count = _moments(features_NF, ranks)
    head.standardise(mean_F, std_F)
    with torch.no_grad():
        hidden_ND = head.norm(head.expand(features_NF).unflatten(1, (head.num_bins, -1))[:, 0])
    penalty = hidden_ND.shape[1] / (2 * deviation**2 * count)
    weight_KD = head.project.weight
    weight_KD.data.copy_(_map_estimate(hidden_ND, expected_NK, observed_NK, penalty, count, ranks))


@torch.no_grad()
def standardise_heads(
    heads: Sequence[FactorisedHead],
    features: Callable[[Tensor], Tensor],
    batches: Iterable[Batch],
    ranks: Ranks,
) -> None:
    """The first half of `fit_head` alone, for heads of any output: their last linears stay as they are. Collective."""
    rows = [torch.empty(0, heads[0].expand.in_features, device=ranks.device)]
    rows += [features(batch.volume_BDHW.to(ranks.device)).float() for batch in batches if len(batch.study_rank_B)]
    features_NF = torch.cat(rows)
    mean_F, std_F, _count = _moments(features_NF[features_NF.isfinite().all(1)], ranks)
    for head in heads:
        head.standardise(mean_F, std_F)


@torch.no_grad()
def _gathered(
    head: FactorisedHead, features: Callable[[Tensor], Tensor], batches: Iterable[Batch], nll_sum: NllSum
) -> tuple[Tensor, Tensor, Tensor]:
    device, (_, num_tasks) = head.bias_TK.device, head.bias_TK.shape
    rows = [(torch.empty(0, head.expand.in_features), *torch.empty(2, 0, num_tasks))]
    rows = [tuple(part.to(device) for part in rows[0])]
    for batch in batches:
        if len(batch.study_rank_B):
            batch = batch.to(device)
            rows.append((features(batch.volume_BDHW).float(), *_expected_and_observed(head.bias_TK, batch, nll_sum)))
    features_NF, expected_NK, observed_NK = (torch.cat(parts) for parts in zip(*rows))
    finite_N = features_NF.isfinite().all(1) & expected_NK.isfinite().all(1)
    return features_NF[finite_N], expected_NK[finite_N], observed_NK[finite_N]


def _expected_and_observed(bias_TK: Tensor, batch: Batch, nll_sum: NllSum) -> tuple[Tensor, Tensor]:
    """E and d, [B, K], by the likelihood's own rules: its slope in a shift c of all bins is E exp(c) - d."""

    @torch.enable_grad()
    def slope_BK(shift: float) -> Tensor:
        z_BTK = (bias_TK.detach() + shift).expand(len(batch.study_rank_B), -1, -1).clone().requires_grad_()
        nll, _cells = nll_sum(z_BTK, batch)
        return torch.autograd.grad(nll, z_BTK)[0].sum(1)

    at_table_BK = slope_BK(0.0)
    expected_BK = slope_BK(math.log(2)) - at_table_BK
    return expected_BK, expected_BK - at_table_BK


def _moments(features_NF: Tensor, ranks: Ranks) -> tuple[Tensor, Tensor, int]:
    sums = features_NF.double()
    count = ranks.total(torch.tensor([len(sums)], dtype=torch.float64, device=sums.device))
    if not count:
        raise NumericsError("no train study has finite features; look at the volumes, or set train.head_fit_studies=0")
    mean_F = ranks.total(sums.sum(0)) / count
    variance_F = ranks.total((sums - mean_F).square().sum(0)) / count
    return mean_F.float(), variance_F.sqrt().float(), int(count)


def _map_estimate(
    hidden_ND: Tensor, expected_NK: Tensor, observed_NK: Tensor, penalty: float, count: int, ranks: Ranks
) -> Tensor:
    """Weights [K, D] of least mean NLL + penalty |w|^2 over all ranks' studies. Convex; the start is zero."""
    weight_KD = torch.zeros(observed_NK.shape[1], hidden_ND.shape[1], device=hidden_ND.device, requires_grad=True)
    solver = torch.optim.LBFGS([weight_KD], max_iter=ITERATIONS, history_size=10, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        shift_NK = hidden_ND @ weight_KD.detach().T
        hazard_NK = expected_NK * shift_NK.exp()
        nll = (hazard_NK - observed_NK * shift_NK).sum(dtype=torch.float64)
        slope_KD = (hazard_NK - observed_NK).T @ hidden_ND
        # One message: equal sums on every rank make every rank take the same path.
        total = ranks.total(torch.cat([nll[None], slope_KD.flatten().double()])) / count
        weight_KD.grad = total[1:].view_as(weight_KD).float() + 2 * penalty * weight_KD.detach()
        return total[0] + penalty * weight_KD.detach().double().square().sum()

    solver.step(objective)
    return weight_KD.detach()
