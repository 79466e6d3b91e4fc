"""Likelihood of the piecewise-exponential model on ragged labels (docs/likelihood.md).

B rows, K tasks, T bins (lo, hi], N observed events. Row i enters at the blackout and leaves at C_i, or at the event.

    x_ikt = max(0, min(T_ik, hi_t) - max(lo_t, blackout))      T_ik = time of the event, else C_i
    NLL   = sum_ikt x_ikt exp(z_itk)  -  sum over events of z_itk in the event's bin
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ttepretrain.batch import Batch


def nll_sum(
    log_hazard_BTK: Tensor,
    batch: Batch,
    bin_edges_days: Sequence[float] | Tensor,
    blackout_days: float,
    recurrence: str,
) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood summed over the cells that count, and their number (int64): T x (row, task) pairs.

    Under `incident` pairs with history leave the sum and the count. Computed in fp32, or in the hazards' own float64;
    a log hazard above 88 gives infinity, which the trainer refuses. The backward pass runs once per forward pass.
    """
    num_rows, num_bins, num_tasks = log_hazard_BTK.shape
    with torch.autocast(log_hazard_BTK.device.type, enabled=False):
        z_BTK = log_hazard_BTK if log_hazard_BTK.dtype == torch.float64 else log_hazard_BTK.float()
        edges = torch.as_tensor(bin_edges_days, dtype=z_BTK.dtype, device=z_BTK.device)
        event_days_N = batch.event_days_N.to(z_BTK.dtype)
        exposure_BT = exposure_days(batch.censor_days_B.to(z_BTK.dtype), edges, blackout_days)
        exposure_NT = exposure_days(event_days_N, edges, blackout_days)
        # right=False puts an event on an edge into the bin that ends there.
        bin_N = torch.searchsorted(edges, event_days_N) - 1
        event_NT = torch.nn.functional.one_hot(bin_N, num_bins).to(z_BTK.dtype)

        event_N = batch.event_row_N * num_tasks + batch.event_task_N
        left_out_M = batch.history_row_M * num_tasks + batch.history_task_M
        if recurrence == "incident":
            counts_N = ~torch.isin(event_N, left_out_M)  # a mask, not a selection: no wait for the device
            exposure_NT, event_NT = exposure_NT * counts_N[:, None], event_NT * counts_N[:, None]
        else:
            left_out_M = left_out_M[:0]
        nll = _PiecewiseExponential.apply(
            z_BTK.contiguous(),
            exposure_BT,
            _positions(event_N, num_bins, num_tasks),
            exposure_NT,
            event_NT,
            _positions(left_out_M, num_bins, num_tasks),
        )
    cells = torch.tensor(num_bins * (num_rows * num_tasks - len(left_out_M)), device=z_BTK.device)
    return nll, cells


def exposure_days(end_days_N: Tensor, bin_edges_days: Tensor, blackout_days: float) -> Tensor:
    """Days at risk [N, T] in every bin of a row that enters at the blackout and leaves at `end_days_N`."""
    low_T, high_T = bin_edges_days[:-1].clamp(min=blackout_days), bin_edges_days[1:]
    return (torch.minimum(end_days_N[:, None], high_T) - low_T).clamp(min=0)


def _positions(pair_N: Tensor, num_bins: int, num_tasks: int) -> Tensor:
    """Where the T bins of the pairs `row * K + task` lie in a flat [B, T, K] tensor: [N, T]."""
    row_N, task_N = pair_N // num_tasks, pair_N % num_tasks
    bins_T = torch.arange(num_bins, device=pair_N.device)
    return (row_N[:, None] * num_bins + bins_T) * num_tasks + task_N[:, None]


class _PiecewiseExponential(torch.autograd.Function):
    """A row's exposure is the same for every task without an event, so the only [B, T, K] tensor besides z is exp(z):
    exponentiated once, turned into dz in place. Pairs with an event or left out are cut from it and added one by one.
    """

    @staticmethod
    def forward(ctx, z_BTK, exposure_BT, at_event_NT, exposure_NT, event_NT, at_left_out_MT):
        z_NT = z_BTK.view(-1)[at_event_NT]
        hazard_NT, hazard_BTK = z_NT.exp(), z_BTK.exp()
        hazard_BTK.view(-1)[at_event_NT] = 0
        hazard_BTK.view(-1)[at_left_out_MT] = 0
        ctx.save_for_backward(hazard_BTK, exposure_BT, at_event_NT, hazard_NT * exposure_NT - event_NT)
        return (hazard_BTK.sum(2) * exposure_BT).sum() + (hazard_NT * exposure_NT).sum() - (z_NT * event_NT).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_nll):
        hazard_BTK, exposure_BT, at_event_NT, dz_NT = ctx.saved_tensors
        dz_BTK = hazard_BTK.mul_((exposure_BT * grad_nll)[:, :, None])
        dz_BTK.view(-1)[at_event_NT] = dz_NT * grad_nll
        return dz_BTK, None, None, None, None, None
