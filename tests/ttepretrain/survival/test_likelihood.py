"""The likelihood against hand-counted vectors, a loop written apart, pycox, finite differences and its invariances."""

import dataclasses
import math
import warnings

import numpy as np
import pytest
import torch

from ttepretrain.batch import Batch
from ttepretrain.labels import LabelTable, Ragged
from ttepretrain.survival.likelihood import nll_sum
from ttepretrain.testing import random_batch, random_labels, random_task_set

EDGES = (0.0, 30.0, 180.0, 365.0, math.inf)
MODES = ["all", "incident"]


def loop_nll(log_hazard, batch: Batch, edges, blackout: float, recurrence: str) -> tuple[float, int]:
    """docs/explanation/likelihood.md, cell by cell in float64."""
    num_rows, num_bins, num_tasks = log_hazard.shape
    event = {
        (int(i), int(k)): float(days) for i, k, days in zip(batch.event_row_N, batch.event_task_N, batch.event_days_N)
    }
    history = {(int(i), int(k)) for i, k in zip(batch.history_row_M, batch.history_task_M)}
    total, cells = 0.0, 0
    for i in range(num_rows):
        for k in range(num_tasks):
            if recurrence == "incident" and (i, k) in history:
                continue
            end = event.get((i, k), float(batch.censor_days_B[i]))
            for b in range(num_bins):
                lo, hi = edges[b], edges[b + 1]
                z = float(log_hazard[i, b, k])
                cells += 1
                total += max(0.0, min(end, hi) - max(lo, blackout)) * math.exp(z)
                if (i, k) in event and lo < end <= hi:
                    total -= z
    return total, cells


def random_case(seed: int, recurrence: str = "all", num_rows: int = 6, num_tasks: int = 11):
    rng = np.random.default_rng(seed)
    tasks = random_task_set(rng, num_tasks, EDGES, recurrence=recurrence)
    batch = random_batch(rng, random_labels(rng, num_rows, tasks))
    log_hazard_BTK = torch.from_numpy(rng.normal(-6, 1.5, (num_rows, len(EDGES) - 1, num_tasks)))
    return log_hazard_BTK, batch


def one_row(censor_days: float, event_days: float | None) -> Batch:
    empty = np.array([], np.int32)
    events = Ragged(np.array([0, event_days is not None]), np.array([0] if event_days else [], np.int32))
    days = np.array([event_days] if event_days else [])
    none = Ragged(np.array([0, 0]), empty)
    labels = LabelTable(np.array([censor_days]), events, days, history=none, visit=none)
    return random_batch(np.random.default_rng(0), labels)


def log_hazards(*hazards: float) -> torch.Tensor:
    return torch.tensor(hazards, dtype=torch.float64).log().reshape(1, -1, 1)


@pytest.mark.parametrize(("blackout", "expected"), [(0.0, 4.112023), (1.0, 4.102023)])
def test_event_at_15_days_with_rising_hazards(blackout, expected):
    nll, cells = nll_sum(log_hazards(0.01, 0.02, 0.03), one_row(15, 15), (0, 10, 20, math.inf), blackout, "all")
    assert nll.item() == pytest.approx(expected, abs=5e-7)
    assert cells.item() == 3


def test_without_an_event_the_likelihood_is_survival_to_the_censoring_time():
    nll, _ = nll_sum(log_hazards(0.01, 0.02, 0.03), one_row(15, None), (0, 10, 20, math.inf), 0.0, "all")
    assert math.exp(-nll.item()) == pytest.approx(0.818731, abs=5e-7)


def test_an_event_on_an_edge_belongs_to_the_bin_that_ends_there():
    nll, _ = nll_sum(log_hazards(0.01, 0.02, 0.03), one_row(90, 10), (0, 10, 20, math.inf), 0.0, "all")
    assert nll.item() == pytest.approx(0.01 * 10 - math.log(0.01))
    # 91.3 is no binary number: the batch's fp32 time lies a little after the edge in float64
    nll, _ = nll_sum(log_hazards(0.01, 0.1), one_row(200, 91.3), (0, 91.3, math.inf), 0.0, "all")
    assert nll.item() == pytest.approx(0.01 * 91.3 - math.log(0.01))


@pytest.mark.parametrize("recurrence", MODES)
@pytest.mark.parametrize("seed", range(8))
def test_ragged_batches_equal_the_loop_over_cells(seed, recurrence):
    """Events on edges, at the censoring time, in rows without any, and together with history."""
    log_hazard_BTK, batch = random_case(seed, recurrence)
    expected, cells = loop_nll(log_hazard_BTK, batch, EDGES, 1.0, recurrence)
    nll, counted = nll_sum(log_hazard_BTK, batch, EDGES, 1.0, recurrence)
    assert nll.dtype == torch.float64
    assert nll.item() == pytest.approx(expected, rel=1e-9)
    assert counted.item() == cells
    assert counted.dtype == torch.int64
    single, _ = nll_sum(log_hazard_BTK.float(), batch, EDGES, 1.0, recurrence)
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("recurrence", MODES)
def test_gradients_equal_finite_differences(recurrence):
    log_hazard_BTK, batch = random_case(3, recurrence, num_rows=3, num_tasks=5)

    def loss(z_BTK):
        nll, cells = nll_sum(z_BTK, batch, EDGES, 1.0, recurrence)
        return 7 * nll / cells

    z_BTK = log_hazard_BTK.clone().requires_grad_()
    loss(z_BTK).backward()
    step = 1e-6
    for i in range(log_hazard_BTK.numel()):
        shift = torch.zeros(log_hazard_BTK.numel(), dtype=torch.float64)
        shift[i] = step
        shift = shift.view_as(log_hazard_BTK)
        slope = (loss(log_hazard_BTK + shift) - loss(log_hazard_BTK - shift)) / (2 * step)
        assert z_BTK.grad.flatten()[i].item() == pytest.approx(slope.item(), rel=1e-6, abs=1e-8)


def test_incident_leaves_pairs_with_history_without_gradient():
    log_hazard_BTK, batch = random_case(1, "incident")
    z_BTK = log_hazard_BTK.requires_grad_()
    nll_sum(z_BTK, batch, EDGES, 1.0, "incident")[0].backward()
    assert len(batch.history_row_M) > 3
    assert (z_BTK.grad[batch.history_row_M, :, batch.history_task_M] == 0).all()
    assert (z_BTK.grad != 0).any()


def test_splitting_a_bin_at_constant_hazard_changes_nothing():
    log_hazard_BTK, batch = random_case(5)
    whole, _ = nll_sum(log_hazard_BTK, batch, EDGES, 1.0, "all")
    split = (0.0, 30.0, 99.5, 180.0, 365.0, math.inf)
    parts, _ = nll_sum(log_hazard_BTK[:, [0, 1, 1, 2, 3]], batch, split, 1.0, "all")
    assert parts.item() == pytest.approx(whole.item(), rel=1e-12)


def test_measuring_time_in_hours_shifts_log_hazards_by_minus_log_24():
    log_hazard_BTK, batch = random_case(6)
    days, _ = nll_sum(log_hazard_BTK, batch, EDGES, 1.0, "all")
    hours = dataclasses.replace(
        batch, censor_days_B=batch.censor_days_B.double() * 24, event_days_N=batch.event_days_N.double() * 24
    )
    edges = [24 * edge for edge in EDGES]
    shifted, _ = nll_sum(log_hazard_BTK - math.log(24), hours, edges, 24.0, "all")
    density = len(batch.event_days_N) * math.log(24)  # a density per hour instead of per day
    assert shifted.item() == pytest.approx(days.item() + density, rel=1e-12)


def test_order_of_tasks_does_not_matter():
    log_hazard_BTK, batch = random_case(7, "incident")
    nll, _ = nll_sum(log_hazard_BTK, batch, EDGES, 1.0, "incident")
    order = torch.randperm(log_hazard_BTK.shape[2], generator=torch.Generator().manual_seed(0))
    place = order.argsort()
    permuted = dataclasses.replace(
        batch, event_task_N=place[batch.event_task_N], history_task_M=place[batch.history_task_M]
    )
    again, _ = nll_sum(log_hazard_BTK[:, :, order], permuted, EDGES, 1.0, "incident")
    assert again.item() == pytest.approx(nll.item(), rel=1e-12)


def test_with_a_finite_last_edge_it_is_the_pc_hazard_loss_of_pycox():
    """pycox: softplus(phi) is hazard times bin width, so the two differ by the events' log widths."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pycox imports what its dependencies deprecate
        from pycox.models.loss import nll_pc_hazard_loss
    rng = np.random.default_rng(0)
    edges = np.array([0.0, 30.0, 180.0, 365.0, 1100.0])
    widths = np.diff(edges)
    tasks = random_task_set(rng, 1, blackout_days=0.0)
    labels = random_labels(rng, 40, tasks, event_share=0.6)
    batch = random_batch(rng, labels, (2, 3, 4))
    log_hazard_BTK = torch.from_numpy(rng.normal(-6, 1, (40, 4, 1)))

    days = labels.censor_days.copy()
    days[labels.events.row] = labels.event_days
    events = np.zeros(40)
    events[labels.events.row] = 1
    assert 5 < events.sum() < 35
    bins = np.array([next(b for b in range(4) if edges[b] < t <= edges[b + 1]) for t in days])
    per_bin = log_hazard_BTK[:, :, 0].exp() * torch.from_numpy(widths)
    loss = nll_pc_hazard_loss(
        per_bin.expm1().log(),  # inverse of softplus
        torch.from_numpy(bins),
        torch.from_numpy(events),
        torch.from_numpy((days - edges[bins]) / widths[bins]),
        reduction="sum",
    )
    nll, _ = nll_sum(log_hazard_BTK, batch, edges.tolist(), 0.0, "all")
    assert nll.item() == pytest.approx(loss.item() + (events * np.log(widths[bins])).sum(), rel=1e-6)


def test_times_and_exponentials_stay_fp32_under_bf16_autocast():
    log_hazard_BTK, batch = random_case(2)
    rounded_BTK = log_hazard_BTK.bfloat16()
    exact, _ = nll_sum(rounded_BTK.float(), batch, EDGES, 1.0, "all")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        nll, _ = nll_sum(rounded_BTK, batch, EDGES, 1.0, "all")
    assert nll.dtype == torch.float32
    assert nll.item() == exact.item()


def test_a_batch_without_events_has_the_integrated_hazard_as_loss():
    rng = np.random.default_rng(0)
    tasks = random_task_set(rng, 4, EDGES)
    batch = random_batch(rng, random_labels(rng, 3, tasks, event_share=0.0))
    z_BTK = torch.full((3, 4, 4), math.log(0.01), dtype=torch.float64, requires_grad=True)
    nll, _ = nll_sum(z_BTK, batch, EDGES, 1.0, "all")
    nll.backward()
    assert nll.item() == pytest.approx(4 * 0.01 * (batch.censor_days_B.double() - 1).sum().item(), rel=1e-9)
    assert torch.isfinite(z_BTK.grad).all()


def test_no_cell_that_counts_is_zero_loss_and_zero_gradient():
    rng = np.random.default_rng(0)
    tasks = random_task_set(rng, 4, EDGES, recurrence="incident")
    batch = random_batch(rng, random_labels(rng, 3, tasks, history_share=1.1))
    z_BTK = torch.zeros(3, 4, 4, requires_grad=True)
    nll, cells = nll_sum(z_BTK, batch, EDGES, 1.0, "incident")
    nll.backward()
    assert (nll.item(), cells.item()) == (0.0, 0)
    assert (z_BTK.grad == 0).all()


def test_a_rank_without_rows_contributes_zero():
    rng = np.random.default_rng(0)
    tasks = random_task_set(rng, 4, EDGES)
    nobody = random_labels(rng, 2, tasks).take(np.array([], np.int64))
    z_BTK = torch.zeros(0, 4, 4, requires_grad=True)
    nll, cells = nll_sum(z_BTK, random_batch(rng, nobody), EDGES, 1.0, "all")
    nll.backward()
    assert (nll.item(), cells.item()) == (0.0, 0)


def test_an_overflowing_hazard_is_not_hidden():
    log_hazard_BTK, batch = random_case(0)
    log_hazard_BTK[0, 0, 0] = 100.0
    assert not torch.isfinite(nll_sum(log_hazard_BTK.float(), batch, EDGES, 1.0, "all")[0])


def test_one_tensor_of_the_size_of_the_hazards_is_kept_and_the_input_is_not_changed():
    log_hazard_BTK, batch = random_case(4)
    z_BTK, before = log_hazard_BTK.clone().requires_grad_(), log_hazard_BTK.clone()
    kept = []

    def remember(tensor):
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        nll, _ = nll_sum(z_BTK, batch, EDGES, 1.0, "all")
    nll.backward()
    assert sum(size >= z_BTK.numel() for size in kept) == 1
    assert torch.equal(z_BTK.detach(), before)


def test_a_second_backward_pass_is_refused():
    """The first one turned the kept hazards into the gradient."""
    log_hazard_BTK, batch = random_case(4)
    nll, _ = nll_sum(log_hazard_BTK.requires_grad_(), batch, EDGES, 1.0, "all")
    nll.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        nll.backward()
