"""The arms' losses against float64 loops written apart, and the same whatever the number of ranks."""

import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from ttepretrain.errors import BadDataError, ConfigError
from ttepretrain.phenotypes import PhenotypeTable
from ttepretrain.testing import (
    MORTALITY_START,
    random_batch,
    random_labels,
    random_task_set,
    run_distributed,
    tiny_encoder,
)
from ttepretrain.training.config import ARMS, TrainConfig
from ttepretrain.training.objectives.mtl import Phenotypes, hazard_table
from ttepretrain.training.objectives.ssl import BLOCKS, hidden_blocks

ROWS, TRAIN, TASKS = 12, 9, 5


def exam(arm: str, objective_on, recurrence: str = "all"):
    """Objective, its labels and task set, one batch of all rows."""
    tasks = random_task_set(np.random.default_rng(0), TASKS, recurrence=recurrence)
    labels = random_labels(np.random.default_rng(1), ROWS, tasks, event_share=0.5)
    objective = objective_on(tiny_encoder(), TrainConfig(arm=arm), labels, TRAIN, tasks)
    return objective, labels, tasks, random_batch(np.random.default_rng(2), labels)


def entropy(logit: float, yes: bool) -> float:
    """-log of the probability of the answer."""
    return math.log1p(math.exp(-logit)) if yes else math.log1p(math.exp(logit))


def test_visit_is_the_cross_entropy_of_every_task(objective_on):
    objective, labels, _, batch = exam("visit", objective_on)
    logits_B1K = torch.from_numpy(np.random.default_rng(3).normal(-1, 2, (ROWS, 1, TASKS)))
    expected = 0.0
    for i in range(ROWS):
        start, end = labels.visit.offset[i : i + 2]
        coded = set(labels.visit.index[start:end].tolist())
        expected += sum(entropy(float(logits_B1K[i, 0, k]), k in coded) for k in range(TASKS))
    assert len(labels.visit.index) > 5
    loss, cells = objective.loss_sum(logits_B1K, batch)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert cells.item() == ROWS * TASKS


def slow_survival(log_hazard_BTK, days_BK, event_BK, tasks, start_K=(1.0,) * TASKS) -> tuple[float, int]:
    """Piecewise-exponential; NaN days leave the sum and the count. start_K: days from which a column is at risk."""
    total, cells, edges = 0.0, 0, tasks.bin_edges_days
    for i, row in enumerate(np.float32(days_BK)):
        for k, days in enumerate(row):
            if days != days:
                continue
            for t in range(len(edges) - 1):
                z = float(log_hazard_BTK[i, t, k])
                total += max(0.0, min(days, edges[t + 1]) - max(edges[t], start_K[k])) * math.exp(z)
                total -= z if event_BK[i, k] and edges[t] < days <= edges[t + 1] else 0.0
                cells += 1
    return total, cells


@pytest.mark.parametrize("recurrence", ["all", "incident"])
def test_tte_is_the_likelihood_of_the_pairs_that_the_tasks_recurrence_counts(recurrence, objective_on):
    """Under `incident` a task that a study has in its history leaves the sum and the count, event or none."""
    objective, labels, tasks, batch = exam("tte", objective_on, recurrence)
    days_BK, event_BK = np.repeat(labels.censor_days[:, None], TASKS, axis=1), np.zeros((ROWS, TASKS), bool)
    days_BK[labels.events.row, labels.events.index] = labels.event_days
    event_BK[labels.events.row, labels.events.index] = True
    past = labels.history.row, labels.history.index
    assert event_BK[past].any()
    assert not event_BK[past].all()
    if recurrence == "incident":
        days_BK[past] = np.nan
    log_hazard_BTK = torch.from_numpy(np.random.default_rng(3).normal(-6, 1, (ROWS, tasks.num_bins, TASKS)))
    expected, counted = slow_survival(log_hazard_BTK, days_BK, event_BK, tasks)
    loss, cells = objective.loss_sum(log_hazard_BTK, batch)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert cells.item() == counted


def slow_mtl(logits_BQ, log_hazard_BTP, table: PhenotypeTable, tasks) -> tuple[float, int]:
    starts = {"edema": 1.0, "mortality": MORTALITY_START}
    start_P = [starts[name] for name in table.phenotypes]
    total, cells = slow_survival(log_hazard_BTP, table.days_RP, table.event_RP, tasks, start_P)
    for i in range(len(logits_BQ)):
        for q, label in enumerate(table.label_RQ[i]):
            if label == label:
                total, cells = total + entropy(float(logits_BQ[i, q]), label == 1), cells + 1
    return total, cells


def test_mtl_is_the_likelihood_of_every_known_outcome(objective_on):
    """Unknown answers and studies not at risk leave the sum and the count; days at risk begin at each one's start."""
    objective, _, tasks, batch = exam("mtl", objective_on)
    censor_days = objective.table.censor_days_R
    assert (censor_days < MORTALITY_START).any()  # whose follow-up ends before mortality counts: no exposure
    rng = np.random.default_rng(3)
    output = (
        torch.from_numpy(rng.normal(0, 2, (ROWS, 2))),
        torch.from_numpy(rng.normal(-6, 1, (ROWS, tasks.num_bins, 2))),
    )
    expected, counted = slow_mtl(*output, objective.table, tasks)
    assert np.isnan(objective.table.label_RQ).any()
    assert np.isnan(objective.table.days_RP).any()
    _, target = objective.example(batch.volume_BDHW, batch.study_rank_B, batch)
    loss, cells = objective.loss_sum(output, target)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert cells.item() == counted


def test_mtl_follows_each_phenotype_for_its_own_time(objective_on):
    """Label tables may end before the records of a study, and after them."""
    objective, _, tasks, batch = exam("mtl", objective_on)
    rng = np.random.default_rng(4)
    days_RP = objective.table.days_RP * rng.choice([0.6, 3], objective.table.days_RP.shape)
    event_RP = objective.table.event_RP & (days_RP > MORTALITY_START)
    table = replace(objective.table, days_RP=days_RP, event_RP=event_RP)
    starts = {"edema": 1.0, "mortality": MORTALITY_START}
    other = Phenotypes(objective.model, table, table.timed(starts, np.arange(TRAIN), tasks))
    assert (event_RP & (days_RP > table.censor_days_R[:, None])).any()
    output = torch.zeros(ROWS, 2).double(), torch.full((ROWS, tasks.num_bins, 2), -6.0).double()
    _, target = other.example(batch.volume_BDHW, batch.study_rank_B, batch)
    loss, cells = other.loss_sum(output, target)
    assert (loss.item(), cells.item()) == pytest.approx(slow_mtl(*output, table, tasks), rel=1e-6)


def test_mtl_learns_answers_alone_where_no_phenotype_has_times(objective_on):
    objective, _, tasks, batch = exam("mtl", objective_on)
    table = objective.table
    table = replace(table, **{name: getattr(table, name)[..., :0] for name in ("phenotypes", "days_RP", "event_RP")})
    timed = table.timed({}, np.arange(TRAIN), tasks)
    hazards_BT0 = torch.from_numpy(hazard_table(timed, np.arange(TRAIN), tasks.num_bins)).expand(ROWS, -1, -1)
    output = torch.zeros(ROWS, 2).double(), hazards_BT0
    other = Phenotypes(objective.model, table, timed)
    _, target = other.example(batch.volume_BDHW, batch.study_rank_B, batch)
    loss, cells = other.loss_sum(output, target)
    assert (loss.item(), cells.item()) == pytest.approx(slow_mtl(*output, table, tasks), rel=1e-6)


def test_first_losses_are_those_of_the_base_rates(objective_on):
    """A coin of each task's own rate; the train mean's squared error for hidden voxels."""
    objective, labels, _, batch = exam("visit", objective_on)
    rate_K = (np.bincount(labels.take(np.arange(TRAIN)).visit.index, minlength=TASKS) + 0.5) / (TRAIN + 1)
    coded_K = np.bincount(labels.visit.index, minlength=TASKS)
    expected = -(coded_K * np.log(rate_K) + (ROWS - coded_K) * np.log(1 - rate_K)).sum()
    assert first_loss(objective, batch)[0] == pytest.approx(expected, rel=1e-6)

    objective, _, tasks, batch = exam("mtl", objective_on)
    known = objective.table.label_RQ[:TRAIN]
    odds_Q = (np.nansum(known == 1, axis=0) + 0.5) / (np.nansum(known == 0, axis=0) + 0.5)
    answers = np.tile(np.log(odds_Q), (ROWS, 1))
    hazards = objective.model.head.hazards.bias_TK.detach().expand(ROWS, -1, -1)
    assert first_loss(objective, batch)[0] == pytest.approx(
        slow_mtl(answers, hazards, objective.table, tasks)[0], rel=1e-6
    )

    objective, _, _, batch = exam("ssl", objective_on)
    hidden = hidden_blocks(batch.study_rank_B, batch.volume_BDHW.shape[1:])
    windowed = (batch.volume_BDHW.double() / 1000).clamp(-1, 1)  # centre 0, width 2000; the mean given is 0
    assert first_loss(objective, batch) == pytest.approx((windowed[hidden].square().sum().item(), int(hidden.sum())))


def first_loss(objective, batch) -> tuple[float, int]:
    with torch.no_grad():
        given, target = objective.example(batch.volume_BDHW, batch.study_rank_B, batch)
        loss, cells = objective.loss_sum(objective.model(given), target)
    return loss.item(), cells.item()


def test_hidden_blocks_are_the_studys_own_and_what_they_hide_is_not_seen(objective_on):
    seeds_B = torch.tensor([7, 8, 9])
    hidden = hidden_blocks(seeds_B, (16, 24, 40))
    assert torch.equal(hidden_blocks(seeds_B[[2, 0]], (16, 24, 40)), hidden[[2, 0]])
    assert hidden.flatten(1).sum(1).tolist() == [round(0.6 * BLOCKS**3) * 2 * 3 * 5] * 3
    blocks = hidden.view(3, BLOCKS, 2, BLOCKS, 3, BLOCKS, 5).float()
    assert torch.equal(blocks.amax((2, 4, 6)), blocks.amin((2, 4, 6)))  # whole blocks of 2 x 3 x 5 voxels

    objective, _, _, batch = exam("ssl", objective_on)
    other = batch.volume_BDHW.clone()
    hidden = hidden_blocks(batch.study_rank_B, other.shape[1:])
    other[hidden] = 50
    first, second = (objective.example(v, batch.study_rank_B, batch)[0] for v in (batch.volume_BDHW, other))
    assert torch.equal(first, second)
    assert torch.equal(first[~hidden], batch.volume_BDHW[~hidden].float())


@pytest.mark.slow
@pytest.mark.parametrize("arm", [arm for arm in ARMS if arm != "tte"])
def test_two_ranks_equal_one(arm, tiny_run):
    """Losses, gradients and what is logged; the optimizer shared out, weights too."""
    alone = tiny_run.with_config(arm=arm)
    run_distributed(alone.start, 1)
    for stage in (0, 3):
        shared = tiny_run.elsewhere(f"{arm} {stage}").with_config(arm=arm, zero_stage=stage)
        run_distributed(shared.start, 2)
        for column in ("loss", "loss_tuning", "grad_norm", "cells"):
            values = [[row[column] for row in run.rows() if row[column] is not None] for run in (alone, shared)]
            np.testing.assert_allclose(*values, rtol=2e-5, atol=0)
    losses = [row["loss_tuning"] for row in alone.rows() if row["loss_tuning"] is not None]
    assert len(losses) == 3  # the reference and two epochs: no head is fitted


def test_phenotypes_are_read_for_the_splits_that_may_be_looked_at(tmp_path):
    """Null answers, absent rows and held-out studies are unknown; order of rows does not matter."""
    study = {"study_id": ["a", "b", "c", "d"], "subject_id": [1, 2, 3, 4]}
    none = pl.Series([[]] * 4, dtype=pl.List(pl.Int32))
    empty = dict.fromkeys(("task_index", "history_index", "visit_index"), none)
    pl.DataFrame(
        study
        | {"split": ["train", "train", "held_out", "tuning"], "censor_days": [100.0, 50.0, 70.0, 9.0]}
        | empty
        | {"event_days": none.cast(pl.List(pl.Float64))}
    ).write_parquet(tmp_path / "labels.parquet")
    rows = [
        ("b", "mortality", "prognosis", 30.0, None, False, 50.0),
        ("a", "mortality", "prognosis", 30.0, True, True, 20.0),
        ("d", "mortality", "prognosis", 30.0, False, False, 9.0),
        ("c", "mortality", "prognosis", 30.0, True, True, 3.0),
        ("a", "mortality", "prognosis", None, True, True, 20.0),
        ("c", "mortality", "prognosis", None, True, True, 3.0),
        ("d", "mortality", "prognosis", None, False, False, 9.0),
        ("a", "embolism", "diagnosis", None, False, False, None),
        ("b", "embolism", "diagnosis", None, True, True, None),
        ("a", "edema", "prognosis", None, None, False, 100.0),
    ]
    names = ["study_id", "phenotype", "kind", "horizon_days", "label", "event", "time_days"]
    pl.DataFrame(rows, schema=names, orient="row").write_parquet(tmp_path / "phenotypes.parquet")
    table = PhenotypeTable.read(tmp_path, ("train", "tuning"))
    nan = math.nan
    assert table.answers.tolist() == ["embolism", "mortality within 30 days"]
    np.testing.assert_array_equal(table.label_RQ, [[0, 1], [1, nan], [nan, nan], [nan, 0]])
    assert table.phenotypes.tolist() == ["edema", "mortality"]
    np.testing.assert_array_equal(table.days_RP, [[100, 20], [nan, nan], [nan, nan], [nan, 9]])
    assert table.event_RP.tolist() == [[False, True], [False, False], [False, False], [False, False]]

    varying = table.learnable(np.array([0, 1]))
    assert varying.answers.tolist() == ["embolism"]  # mortality within 30 days: one yes, one unknown
    assert varying.phenotypes.tolist() == ["mortality"]  # edema never happens
    tasks = random_task_set(np.random.default_rng(0), 3)
    [timed] = varying.timed({}, np.array([0, 1]), tasks)
    assert [task.rate_per_day for task in timed.tasks.tasks] == [pytest.approx(1 / 19)]
    [later] = varying.timed({"mortality": 5.0}, np.array([0, 1]), tasks)
    assert [task.rate_per_day for task in later.tasks.tasks] == [pytest.approx(1 / 15)]
    with pytest.raises(ConfigError, match=r"mortality happened before start_days in phenotypes\.parquet"):
        varying.timed({"mortality": 20.0}, np.array([0, 1]), tasks)
    with pytest.raises(BadDataError, match="no phenotype varies"):
        table.learnable(np.array([3]))
