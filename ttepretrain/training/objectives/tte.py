"""Arm `tte`: time to the first event of every task, by the piecewise-exponential likelihood."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ttepretrain.batch import Batch
from ttepretrain.models.head import PiecewiseExponentialHead
from ttepretrain.models.model import TTEModel
from ttepretrain.survival.likelihood import nll_sum
from ttepretrain.tasks import TaskSet
from ttepretrain.training.distributed import Ranks
from ttepretrain.training.head_start import fit_head
from ttepretrain.training.objectives.base import Features, Objective


class TimeToEvent(Objective):
    """Cells: (study, task, bin), less the pairs that the likelihood leaves out."""

    arm = "tte"
    unit = "negative log-likelihood per (study, task, bin)"
    reference = "bias table alone"

    def __init__(self, model: TTEModel, tasks: TaskSet, deviation: float):
        """deviation: `train.head_fit_deviation`."""
        super().__init__(model)
        self.tasks, self.deviation = tasks, deviation
        self.edges_days = torch.tensor(tasks.bin_edges_days, dtype=torch.float32)

    def loss_sum(self, output: Tensor, target: Batch) -> tuple[Tensor, Tensor]:
        self.edges_days = self.edges_days.to(output.device)  # once: a copy at every step would wait for the device
        return nll_sum(output, target, self.edges_days, self.tasks.blackout_days, self.tasks.recurrence)

    def start(self, features: Features, batches: Iterable[Batch], ranks: Ranks) -> bool:
        head = self.model.head
        assert isinstance(head, PiecewiseExponentialHead)
        fit_head(head, features, batches, self.loss_sum, self.deviation, ranks)
        return True
