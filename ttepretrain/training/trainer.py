"""Trainer: the spine of pretraining.

    step 0        tuning loss of the reference (the head's last weight is zero: for `tte` the bias table alone); the
                  head starts from the untrained encoder's features; tuning loss again where that has changed it
    every step    batch -> augment -> example -> network -> loss -> one reduction over ranks -> gradients -> update
    every epoch   tuning loss; the best so far goes to export/; checkpoint
    the end       export-last/

The objective decides what is learnt (training/objectives). A step consumes one global batch on any number of ranks.
B batch, D H W slices rows columns.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ttepretrain.batch import Batch
from ttepretrain.errors import ConfigError, Interrupted, NumericsError
from ttepretrain.log import log
from ttepretrain.models.model import ScanModel
from ttepretrain.training.checkpoint import CheckpointStore
from ttepretrain.training.config import TrainConfig
from ttepretrain.training.distributed import Ranks
from ttepretrain.training.engine import Engine
from ttepretrain.training.identity import check_identity
from ttepretrain.training.objectives.base import Objective
from ttepretrain.training.optim import apply_gradients, refresh_groups, set_learning_rates, start_engine
from ttepretrain.training.precision import MixedPrecision
from ttepretrain.training.signals import StopSignals
from ttepretrain.training.telemetry import MetricsRow, Telemetry
from ttepretrain.volume.augment import augment


@dataclass(frozen=True)
class Supply:
    """What a run consumes and leaves behind. It is handed in: the trainer knows neither cohorts nor data files."""

    num_train: int  # studies of an epoch
    train_batches: Callable[[int, int], Iterable[Batch]]  # (epoch, position): this rank's share of what is left of it
    fit_batches: Callable[[], Iterable[Batch]]  # this rank's share of the studies the head is fitted to; may be none
    tuning_batches: Callable[[], Iterable[Batch]]  # this rank's share; all ranks get equally many, some maybe empty
    write_export: Callable[[Path, ScanModel, dict], None]  # (folder, model, facts about its training)
    identity: dict[str, object]  # values that decide the weights (identity.py)
    identity_defaults: dict[str, object]  # what a key stood for in checkpoints from before it was there


@dataclass
class TrainState:
    """Where a run stands; all of it is in every checkpoint."""

    step: int = 0  # batches consumed, skipped ones included
    evaluated_step: int = -1  # of the last pass over the tuning split
    best_loss_tuning: float | None = None
    best_step: int | None = None
    bad_steps: int = 0  # skipped, since a loss or gradient was not finite


class Trainer:
    """One run in `folder`: `resume` takes up the newest checkpoint, if any; `run` trains to the last step."""

    def __init__(
        self,
        folder: Path,
        objective: Objective,
        config: TrainConfig,
        supply: Supply,
        ranks: Ranks,
        signals: StopSignals,
    ):
        """config: resolved (TrainConfig.resolve)."""
        assert config.precision in ("fp32", "bf16"), "TrainConfig.resolve sets it"
        self.steps_per_epoch = steps_per_epoch(config.batch_size, supply.num_train, ranks.world)
        self.total_steps = config.epochs * self.steps_per_epoch
        self.last_step = min(self.total_steps, config.max_steps or self.total_steps)
        self.folder, self.config, self.supply, self.ranks, self.signals = folder, config, supply, ranks, signals
        self.objective = objective
        self.model = objective.model.to(ranks.device)
        self.network = MixedPrecision(self.model, config.precision == "bf16")
        self._engine: Engine | None = None  # DeepSpeed's, from `resume` or `begin` on
        self.state = TrainState()
        self.saved_at = time.monotonic()
        self.store = CheckpointStore(folder / "checkpoints", ranks, config.keep_checkpoints)

    @property
    def engine(self) -> Engine:
        assert self._engine is not None, "`resume` or `begin` starts it"
        return self._engine

    def run(self) -> TrainState:
        """Train to the last step. Raises Interrupted after the save that a signal asked for, NumericsError."""
        done = self.finished
        if done:
            if self.ranks.rank == 0:
                log.info("already finished at step %d; nothing to do", self.state.step)
            return self.state
        self.telemetry = Telemetry(
            self.folder, self.objective.unit, self.objective.reference, self.ranks.rank == 0, self.state.step,
            self.state.evaluated_step, self.last_step, self.config.epochs, self.config.batch_size,
            self.config.log_seconds,
        )  # fmt: skip
        self.telemetry.say(self.greeting())
        try:
            if self._engine is None:
                self.begin()
            while not self.finished:
                if self.tuning_due():
                    self.end_epoch()
                else:
                    self.train_epoch()
        finally:
            self.telemetry.close()
        return self.state

    def begin(self) -> None:
        """The reference loss, the head's start, and DeepSpeed around what results."""
        self.evaluate()
        if self.config.head_fit_studies and self.objective.starts_from_features:
            self.telemetry.say("the head starts from the untrained encoder's features")
            if self.objective.start(self.network.features, self.supply.fit_batches(), self.ranks):
                self.evaluate()
        self._engine = start_engine(self.network, self.ranks, self.config)
        self.telemetry.resume_clock()

    def end_epoch(self) -> None:
        """Tuning loss, exports, checkpoint. The checkpoint comes last, when all that it counts as done is on disk."""
        self.evaluate()
        if self.state.step >= self.last_step:
            self.export("export-last")
        self.save()
        self.telemetry.resume_clock()

    def train_epoch(self) -> None:
        """From the position in the epoch to its end, or to the last step."""
        epoch, position = self.place()
        for batch in self.supply.train_batches(epoch, position):
            row, stop, save = self.train_step(batch)
            self.telemetry.step(row)
            if stop:
                self.stop()
            if save and not self.tuning_due():  # the end of the epoch saves anyway
                self.save()
                self.telemetry.resume_clock()
            if self.state.step >= self.last_step:
                return

    def train_step(self, batch: Batch) -> tuple[MetricsRow, bool, bool]:
        """One update from one global batch: its metrics, whether to stop, whether a checkpoint is due."""
        config, step = self.config, self.state.step
        epoch, position = self.place()
        seeds_B = study_seeds(config.seed, epoch, batch.study_rank_B)
        batch = batch.to(self.ranks.device)
        views = config.augment, config.augment_flip, config.augment_blur
        hu_BDHW = augment(batch.volume_BDHW, seeds_B, *views) if any(views) else batch.volume_BDHW

        self.engine.train()
        given, target = self.objective.example(hu_BDHW, seeds_B, batch)
        loss_sum, cells = self.objective.loss_sum(self.engine(given), target)
        # One reduction a step carries everything that all ranks must agree on.
        loss_all, cells_all, stop, save = self.ranks.sum(
            loss_sum.detach(), cells, self.signals.requested, self.checkpoint_due()
        )
        loss = loss_all / max(cells_all, 1)

        # DeepSpeed averages gradients over ranks: times world it is the gradient of `loss`. A loss that is not finite
        # on one rank makes every gradient NaN, so that the same guard skips the step on all ranks.
        scale = self.ranks.world / max(cells_all, 1) if math.isfinite(loss) else math.nan
        rate = set_learning_rates(self.engine, step, self.total_steps, config)
        self.engine.backward(loss_sum * scale)
        grad_norm = apply_gradients(self.engine, config.grad_clip)
        if grad_norm is None:
            self.count_bad_step(loss)

        self.state.step += 1
        epoch, position = self.place()
        row = MetricsRow(
            step=self.state.step, epoch=epoch, position=position, cells=int(cells_all), lr=rate, grad_norm=grad_norm,
            loss=loss if math.isfinite(loss) else None, loss_tuning=None, studies_per_second=None,
        )  # fmt: skip
        return row, stop > 0, save > 0

    @torch.no_grad()
    def evaluate(self) -> None:
        """Loss over the whole tuning split, without augmentation; the best so far is exported."""
        network = self._engine or self.network
        network.eval()
        total_loss = total_cells = 0.0
        for batch in self.supply.tuning_batches():
            seeds_B = study_seeds(self.config.seed, 0, batch.study_rank_B)  # the same examples every time
            batch = batch.to(self.ranks.device)
            given, target = self.objective.example(batch.volume_BDHW, seeds_B, batch)
            loss_sum, cells = self.objective.loss_sum(network(given), target)
            loss_all, cells_all, stop = self.ranks.sum(loss_sum, cells, self.signals.requested)
            total_loss, total_cells = total_loss + loss_all, total_cells + cells_all
            if stop:
                self.stop()
        loss = total_loss / max(total_cells, 1)

        state = self.state
        state.evaluated_step = state.step
        epoch, position = self.place()
        self.telemetry.tuning(
            MetricsRow(
                step=state.step, epoch=epoch, position=position, cells=int(total_cells), lr=None, grad_norm=None,
                loss=None, loss_tuning=loss if math.isfinite(loss) else None, studies_per_second=None,
            )
        )  # fmt: skip
        best = math.inf if state.best_loss_tuning is None else state.best_loss_tuning
        if state.step > 0 and loss < best:  # step 0 is the reference, not a candidate; NaN is less than nothing
            state.best_loss_tuning, state.best_step = loss, state.step
            self.export("export")

    def place(self) -> tuple[int, int]:
        """(epoch, position in studies) of the next batch."""
        epoch, steps = divmod(self.state.step, self.steps_per_epoch)
        return epoch, steps * self.config.batch_size

    def tuning_due(self) -> bool:
        step = self.state.step
        at_end = step % self.steps_per_epoch == 0 or step == self.last_step
        return at_end and self.state.evaluated_step != step

    def checkpoint_due(self) -> bool:
        """Rank 0's clock decides; the others learn of it by the step's reduction."""
        return self.ranks.rank == 0 and time.monotonic() - self.saved_at >= 60 * self.config.checkpoint_minutes

    @property
    def finished(self) -> bool:
        return self.state.step >= self.last_step and not self.tuning_due()

    def count_bad_step(self, loss: float) -> None:
        self.state.bad_steps += 1
        epoch, position = self.place()
        what = "gradient" if math.isfinite(loss) else "loss"
        where = f"epoch {epoch}, studies {position} to {position + self.config.batch_size}"
        if self.ranks.rank == 0:
            log.warning("%s is not finite; step %d is skipped (%s)", what, self.state.step, where)
        if self.state.bad_steps > self.config.max_bad_steps:
            raise NumericsError(
                f"{self.state.bad_steps} steps had a {what} that is not finite (train.max_bad_steps="
                f"{self.config.max_bad_steps}); the last checkpoint is from before. Lower train.lr, or look at the "
                f"studies of {where}"
            )

    def resume(self) -> None:
        """Continue from the newest intact checkpoint, if there is one."""
        found = self.store.newest()
        if found is None:
            return
        path, saved = found
        supply, allowed = self.supply, self.config.allow_change or []
        check_identity(saved["identity"], supply.identity, supply.identity_defaults, allowed)
        self._engine = start_engine(self.network, self.ranks, self.config)
        self.store.restore(path, saved, self.engine)
        refresh_groups(self.engine, self.config)
        self.state = TrainState(**saved["train"])

    def greeting(self) -> str:
        start = f"resuming from step {self.state.step}" if self.state.step else "starting"
        return (
            f"{start}: {self.last_step} steps of {self.config.batch_size} studies, peak rate "
            f"{self.config.encoder_lr:g}, {self.config.precision}, {self.ranks.world} process(es) on "
            f"{self.ranks.device.type}, ZeRO stage {self.config.zero_stage}"
        )

    def save(self) -> None:
        epoch, position = self.place()
        document = {
            "train": asdict(self.state),
            "epoch": epoch,
            "position": position,
            "world": self.ranks.world,
            "zero_stage": self.config.zero_stage,
            "identity": self.supply.identity,
        }
        self.store.save(self.engine, self.state.step, document)
        self.saved_at = time.monotonic()

    def stop(self) -> None:
        if self._engine is None:
            raise Interrupted("stopped before the first step; run the same command again")
        self.save()
        raise Interrupted(f"stopped after step {self.state.step}, which is saved; run the same command again to resume")

    def export(self, name: str) -> None:
        """Write the weights of this moment to the folder's `name`."""
        facts = {
            "step": self.state.step,
            "epoch": self.place()[0],
            "best_loss_tuning": self.state.best_loss_tuning,
            "precision": self.config.precision,
        }
        with gathered(self.engine, self.model):
            self.ranks.first(lambda: self.supply.write_export(self.folder / name, self.model, facts))


def steps_per_epoch(batch_size: int, num_train: int, world: int) -> int:
    """Whole batches in an epoch, at least one. Raises ConfigError for a batch that the processes cannot share out."""
    if batch_size % world:
        raise ConfigError(
            f"train.batch_size must be a multiple of the number of processes; got {batch_size} for {world}"
        )
    if num_train < batch_size:
        raise ConfigError(
            f"train.batch_size must be at most the number of train studies; got {batch_size} for {num_train}"
        )
    return num_train // batch_size


def gathered(engine: Engine, model: nn.Module) -> AbstractContextManager:
    """Context in which every rank sees whole weights (ZeRO 3 keeps a slice each)."""
    if engine.zero_optimization_stage() < 3:
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(list(model.parameters()))


def study_seeds(seed: int, epoch: int, study_rank_B: Tensor) -> Tensor:
    """int64 [B], of augmentation and of hidden blocks: a function of (run seed, epoch, study) alone."""
    drawn = [np.random.SeedSequence([seed, epoch, rank]).generate_state(1, np.uint64) for rank in study_rank_B.tolist()]
    words = np.concatenate([np.empty(0, np.uint64), *drawn])  # a rank may have no tuning study left
    return torch.from_numpy((words >> np.uint64(1)).astype(np.int64))
