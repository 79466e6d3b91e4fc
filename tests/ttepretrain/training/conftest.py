"""A run small enough to start in half a second: 40 studies of 9 x 10 x 11 voxels, two convolutions."""

import json
import os
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch

from ttepretrain.batch import Batch
from ttepretrain.files import write_json
from ttepretrain.labels import LabelTable
from ttepretrain.models.encoder import Encoder
from ttepretrain.models.head import FactorisedHead, PiecewiseExponentialHead
from ttepretrain.models.model import ScanModel, TTEModel
from ttepretrain.models.reconstruction import ReconstructionModel
from ttepretrain.survival.prefit import bias_table
from ttepretrain.tasks import TaskSet
from ttepretrain.testing import (
    MORTALITY_START,
    TINY_WINDOW,
    random_labels,
    random_phenotypes,
    random_task_set,
    tiny_encoder,
)
from ttepretrain.training.config import TrainConfig
from ttepretrain.training.distributed import connect
from ttepretrain.training.objectives.base import Objective
from ttepretrain.training.objectives.mtl import PhenotypeHead, Phenotypes, hazard_table
from ttepretrain.training.objectives.ssl import MaskedReconstruction
from ttepretrain.training.objectives.tte import TimeToEvent
from ttepretrain.training.objectives.visit import VisitCodes, base_rate_logits, log_odds
from ttepretrain.training.signals import StopSignals
from ttepretrain.training.trainer import Supply, Trainer, TrainState

SHAPE_DHW = (9, 10, 11)


@dataclass
class TinyRun:
    """A run in `folder`; `start` is what one process does."""

    folder: Path
    config: TrainConfig = field(
        default_factory=lambda: TrainConfig(epochs=2, batch_size=4, lr=0.1, head_lr=0.3, precision="fp32")
    )
    identity: dict = field(default_factory=lambda: {"model.width": 6, "train.lr": 3e-3})
    signal_at: tuple[int, int, int] | None = None  # (rank, step, signal) sent before that step's batch
    poison: tuple[int, ...] = ()  # studies with an infinite follow-up: their loss is infinite
    num_train: int = 24
    num_tuning: int = 5  # with batches of four and two ranks, the tail leaves rank 1 without a study

    def start(self) -> tuple[TrainState, np.ndarray]:
        """Train until the end, or until something ends it: the state, and the bias table it started from."""
        ranks = connect()
        with StopSignals() as signals:
            tasks = random_task_set(np.random.default_rng(0), num_tasks=5)
            labels = random_labels(np.random.default_rng(1), self.num_train + self.num_tuning, tasks, event_share=0.5)
            bias_TK = bias_table(labels.take(np.arange(self.num_train)), tasks)
            self._labels, self._ranks = labels, ranks
            batches = self._train_batches, self._fit_batches, self._tuning_batches
            supply = Supply(self.num_train, *batches, _write_weights, self.identity, {})
            objective = objective_on(tiny_encoder(), self.config, labels, self.num_train, tasks)
            trainer = Trainer(self.folder, objective, self.config, supply, ranks, signals)
            trainer.resume()
            state = trainer.run()
        ranks.close()
        return state, bias_TK

    def batch(self, rows: np.ndarray) -> Batch:
        volume_BDHW = torch.from_numpy(
            np.stack([_volume(row) for row in rows]) if len(rows) else np.empty((0, *SHAPE_DHW), np.int16)
        )
        batch = Batch.collate(volume_BDHW, torch.from_numpy(rows.astype(np.int64)), self._labels.take(rows))
        bad = torch.isin(batch.study_rank_B, torch.tensor(self.poison, dtype=torch.int64))
        return replace(batch, censor_days_B=batch.censor_days_B.masked_fill(bad, torch.inf))

    def _train_batches(self, epoch: int, position: int):
        order = np.random.default_rng([7, epoch]).permutation(self.num_train)
        size, ranks = self.config.batch_size, self._ranks
        for start in range(position, self.num_train - size + 1, size):
            step = epoch * (self.num_train // size) + start // size
            if self.signal_at is not None and self.signal_at[:2] == (ranks.rank, step):
                os.kill(os.getpid(), self.signal_at[2])
            yield self.batch(order[start : start + size][ranks.rank :: ranks.world])

    def _fit_batches(self):
        return self._in_order(np.arange(min(self.config.head_fit_studies, self.num_train)))

    def _tuning_batches(self):
        return self._in_order(self.num_train + np.arange(self.num_tuning))

    def _in_order(self, rows: np.ndarray):
        size, ranks = self.config.batch_size, self._ranks
        for start in range(0, len(rows), size):
            yield self.batch(rows[start : start + size][ranks.rank :: ranks.world])

    def with_config(self, **changes) -> "TinyRun":
        return replace(self, config=replace(self.config, **changes))

    def weights(self) -> str:
        """Hash of the weights in export-last."""
        return json.loads((self.folder / "export-last" / "said.json").read_text())["weights"]

    def rows(self) -> list[dict]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]

    def commits(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "checkpoints").iterdir())

    def elsewhere(self, name: str) -> "TinyRun":
        folder = self.folder.with_name(name)
        folder.mkdir(exist_ok=True)
        return replace(self, folder=folder)


def objective_on(
    encoder: Encoder, config: TrainConfig, labels: LabelTable, num_train: int, tasks: TaskSet
) -> Objective:
    """The objective of `config.arm`, biases fitted on the first `num_train` rows."""
    rows = np.arange(num_train)

    def head(bias_TK: np.ndarray, kind: type[FactorisedHead] = FactorisedHead) -> FactorisedHead:
        return kind(encoder.feature_dim, 6, torch.from_numpy(bias_TK), 0)

    if config.arm == "tte":
        hazards = head(bias_table(labels.take(rows), tasks), PiecewiseExponentialHead)
        model = TTEModel(encoder, hazards, (TINY_WINDOW,))
        return TimeToEvent(model, tasks, config.head_fit_deviation)
    if config.arm == "ssl":
        return MaskedReconstruction(ReconstructionModel(encoder, torch.zeros(1), (TINY_WINDOW,)))
    if config.arm == "visit":
        bias_1K = base_rate_logits(labels.take(rows), tasks.num_tasks)
        return VisitCodes(ScanModel(encoder, head(bias_1K), (TINY_WINDOW,)))
    table = random_phenotypes(np.random.default_rng(5), labels, tasks.blackout_days)
    timed = table.timed({"mortality": MORTALITY_START}, rows, tasks)
    known = table.label_RQ[rows]
    answers = head(log_odds((known == 1).sum(0), (known == 0).sum(0))[None])
    hazards = head(hazard_table(timed, rows, tasks.num_bins))
    return Phenotypes(ScanModel(encoder, PhenotypeHead(answers, hazards), (TINY_WINDOW,)), table, timed)


def digest(weights: dict[str, torch.Tensor]) -> str:
    joined = sha256()
    for name in sorted(weights):
        joined.update(weights[name].contiguous().numpy().tobytes())
    return joined.hexdigest()


def _volume(row: int) -> np.ndarray:
    rng = np.random.default_rng([3, row])
    return (rng.integers(-600, 600, SHAPE_DHW) + rng.integers(-400, 400)).astype(np.int16)


def _write_weights(folder: Path, model: torch.nn.Module, facts: dict) -> None:
    folder.mkdir(exist_ok=True)
    write_json(folder / "said.json", facts | {"weights": digest(dict(model.state_dict()))})


@pytest.fixture(scope="session", name="objective_on")
def _objective_on():
    return objective_on


@pytest.fixture(scope="session")
def tiny_run_in():
    """Makes a run in a folder whose name has spaces and letters outside ASCII."""

    def make(parent: Path) -> TinyRun:
        folder = parent / "run of tte é"
        folder.mkdir()
        return TinyRun(folder)

    return make


@pytest.fixture
def tiny_run(tmp_path, tiny_run_in) -> TinyRun:
    return tiny_run_in(tmp_path)
