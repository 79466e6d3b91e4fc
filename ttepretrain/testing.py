"""Tiny task sets, labels, batches and models for tests, and several processes in a second."""

from __future__ import annotations

import math
import os
import socket
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ttepretrain.labels import LabelTable, Ragged
from ttepretrain.tasks import Task, TaskSet
from ttepretrain.volume.spec import LUNG, SOFT_TISSUE, VolumeSpec

if TYPE_CHECKING:
    from ttepretrain.batch import Batch
    from ttepretrain.models.encoder import Encoder
    from ttepretrain.models.model import TTEModel
    from ttepretrain.phenotypes import PhenotypeTable

TINY_WINDOW = (0.0, 2000.0)
MORTALITY_START = 50.0  # days, of `random_phenotypes`


def random_task_set(
    rng: np.random.Generator,
    num_tasks: int,
    bin_edges_days: Sequence[float] = (0.0, 30.0, 180.0, 365.0, math.inf),
    blackout_days: float = 1.0,
    recurrence: str = "all",
) -> TaskSet:
    """Tasks with distinct codes and rates between 1e-4 and 1e-2 a day; the last one is death."""
    tasks = tuple(
        Task(
            code="MEDS_DEATH" if k == num_tasks - 1 else f"TEST/{k}",
            description=f"condition {k}",
            prevalence=0.1,
            score=-0.3,
            patients=50,
            events=60,
            rate_per_day=float(10 ** rng.uniform(-4, -2)),
        )
        for k in range(num_tasks)
    )
    return TaskSet(
        tasks, tuple(bin_edges_days), blackout_days, recurrence, num_tasks - 1, {"hash": "0" * 64, "count": 100}
    )


def random_labels(
    rng: np.random.Generator, num_rows: int, tasks: TaskSet, event_share: float = 0.3, history_share: float = 0.2
) -> LabelTable:
    """Ragged labels that hit the corners: a row without events, events on bin edges, an event at the censoring time."""
    low, finite = tasks.blackout_days, [edge for edge in tasks.bin_edges_days[1:-1] if edge > tasks.blackout_days]
    censor_days = low + rng.uniform(0.5, 1000, num_rows)
    event_tasks, event_days, history, visit = [], [], [], []
    for row in range(num_rows):
        chosen = np.flatnonzero(rng.random(tasks.num_tasks) < (0 if row == 0 else event_share))
        days = low + (censor_days[row] - low) * (1 - rng.random(len(chosen)))
        for i, edge in enumerate([e for e in finite if e <= censor_days[row]][: len(chosen)]):
            days[i] = edge
        if len(chosen):
            days[-1] = censor_days[row]
        event_tasks.append(chosen)
        event_days.append(days)
        history.append(np.flatnonzero(rng.random(tasks.num_tasks) < history_share))
        visit.append(history[-1][::2])
    return LabelTable(censor_days, _ragged(event_tasks), np.concatenate(event_days), _ragged(history), _ragged(visit))


def random_phenotypes(rng: np.random.Generator, labels: LabelTable, blackout_days: float) -> PhenotypeTable:
    """Two yes-or-no outcomes and two as time to event for the rows of `labels`, with unknown answers and history.

    `mortality` counts from MORTALITY_START on; some rows are followed for less.
    """
    from ttepretrain.phenotypes import PhenotypeTable

    rows = len(labels)
    label_RQ = rng.integers(0, 2, (rows, 2)).astype(np.float32)
    label_RQ[rng.random((rows, 2)) < 0.2] = np.nan
    event_RP, at_risk_RP = rng.random((rows, 2)) < 0.5, rng.random((rows, 2)) < 0.9
    left_RP = labels.censor_days[:, None] - [blackout_days, MORTALITY_START]  # days at risk, or fewer than none
    event_RP &= left_RP > 0
    days_RP = labels.censor_days[:, None] - np.where(event_RP, left_RP * rng.uniform(0, 0.95, (rows, 2)), 0)
    days_RP[~at_risk_RP] = np.nan
    names = np.array(["seen", "died within 30 days"]), np.array(["edema", "mortality"])
    return PhenotypeTable(names[0], label_RQ, names[1], days_RP, event_RP & at_risk_RP, labels.censor_days)


def random_batch(rng: np.random.Generator, labels: LabelTable, shape_DHW: tuple[int, int, int] = (9, 10, 11)) -> Batch:
    """Batch of all rows of `labels` with volumes of noise in HU."""
    import torch

    from ttepretrain.batch import Batch

    volume_BDHW = torch.from_numpy(rng.integers(-1024, 1500, (len(labels), *shape_DHW), dtype=np.int16))
    return Batch.collate(volume_BDHW, torch.arange(len(labels)), labels)


def write_tiny_export(folder: Path, seed: int = 0, tasks: TaskSet | None = None) -> TTEModel:
    """Export of an untrained DenseNet-121 on volumes of 29 x 30 x 31 voxels; returns the model that was written."""
    import torch

    from ttepretrain.export.write import write_export
    from ttepretrain.models.config import ModelConfig
    from ttepretrain.models.model import build_model

    rng = np.random.default_rng(seed)
    tasks = tasks or random_task_set(rng, num_tasks=5)
    spec = VolumeSpec((12.0, 11.0, 10.0), (29, 30, 31), (-1024, 3071), (LUNG, SOFT_TISSUE))
    config = ModelConfig(head_dim=3)
    bias_TK = torch.from_numpy(rng.normal(-8, 1, (tasks.num_bins, tasks.num_tasks)).astype(np.float32))
    model = build_model(config, spec, bias_TK, seed).eval()
    write_export(folder, model, config, spec, tasks, {"synthetic": True, "seed": seed}, min_patients=11)
    return model


def tiny_model(bias_TK: np.ndarray, width: int = 6, seed: int = 0) -> TTEModel:
    """TTEModel of TINY_WINDOW with `tiny_encoder`: a few hundred weights besides the table."""
    import torch

    from ttepretrain.models.head import PiecewiseExponentialHead
    from ttepretrain.models.model import TTEModel

    encoder = tiny_encoder(width, seed)
    head = PiecewiseExponentialHead(encoder.feature_dim, width, torch.from_numpy(bias_TK), seed)
    return TTEModel(encoder, head, (TINY_WINDOW,))


def tiny_encoder(width: int = 6, seed: int = 0) -> Encoder:
    """Two small convolutions of one window."""
    import torch
    from torch import nn

    from ttepretrain.models.encoder import Encoder

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        trunk = nn.Sequential(
            nn.Conv3d(1, width, 3, stride=2),
            nn.GroupNorm(2, width),
            nn.ReLU(),
            nn.Conv3d(width, 2 * width, 3),
            nn.ReLU(),
        )
    return Encoder(trunk, 2 * width, min_voxels=1, freeze_statistics=False)


@dataclass
class RankOutcome:
    """How one process of `run_ranks` ended."""

    value: Any = None  # what the function returned
    error: BaseException | None = None  # what it raised
    traceback: str = ""
    exit_code: int | None = 0  # negative: the signal that killed it


def run_distributed(function: Callable, world: int, *arguments: Any) -> list[Any]:
    """`function(*arguments)` of `world` processes on loopback; raises the first rank's error."""
    outcomes = run_ranks(function, world, *arguments)
    for rank, outcome in enumerate(outcomes):
        if outcome.error is not None:
            raise outcome.error from RuntimeError(f"rank {rank} of {world}:\n{outcome.traceback}")
        if outcome.exit_code:
            raise RuntimeError(f"rank {rank} of {world} ended with exit code {outcome.exit_code}")
    return [outcome.value for outcome in outcomes]


def run_ranks(
    function: Callable, world: int, *arguments: Any, environment: dict[str, str] | None = None, timeout: float = 120
) -> list[RankOutcome]:
    """How `world` forked processes with torchrun's environment end. Ranks still running after `timeout` s are killed.

    A fork of a process that has imported everything takes half a second, a fresh interpreter seven.
    """
    import multiprocessing

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch._dynamo
        import torch._inductor  # noqa: F401
        from matplotlib.figure import Figure  # noqa: F401

    fork = multiprocessing.get_context("fork")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        common = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    pipes, processes = [], []
    for rank in range(world):
        receiver, sender = fork.Pipe(duplex=False)
        variables = common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} | (environment or {})
        process = fork.Process(target=_rank_main, args=(function, arguments, variables, sender), daemon=True)
        process.start()
        sender.close()
        pipes.append(receiver)
        processes.append(process)
    outcomes = []
    for receiver, process in zip(pipes, processes):
        outcome = RankOutcome()
        try:
            if receiver.poll(timeout):
                outcome = receiver.recv()
        except EOFError:  # killed before it could tell
            pass
        process.join(5)
        if process.is_alive():
            process.kill()
            process.join()
        outcome.exit_code = process.exitcode
        outcomes.append(outcome)
    return outcomes


def _rank_main(function: Callable, arguments: tuple, variables: dict[str, str], sender: Any) -> None:
    import torch

    warnings.simplefilter("ignore")  # of torch and DeepSpeed about each other
    os.environ.update(variables)
    torch.set_num_threads(1)
    outcome = RankOutcome()
    try:
        outcome.value = function(*arguments)
    except BaseException as error:
        outcome.error, outcome.traceback = error, traceback.format_exc()
    sender.send(outcome)
    sender.close()
    os._exit(0)


def _ragged(rows: list[np.ndarray]) -> Ragged:
    offset = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    return Ragged(offset, np.concatenate(rows).astype(np.int32))
