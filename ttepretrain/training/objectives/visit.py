"""Arm `visit`: which tasks are coded in the scan's own visit; what a report would be mined for, without any future.

B studies, K tasks, V (study, task) pairs coded.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ttepretrain.batch import Batch
from ttepretrain.labels import LabelTable
from ttepretrain.models.head import FactorisedHead
from ttepretrain.models.model import ScanModel
from ttepretrain.training.distributed import Ranks
from ttepretrain.training.head_start import standardise_heads
from ttepretrain.training.objectives.base import Features, Objective


class VisitCodes(Objective):
    """Cells: (study, task). The head is the one of `tte` with a single bin, its outputs are logits."""

    arm = "visit"
    unit = "cross-entropy per (study, task)"
    reference = "base rates alone"

    def __init__(self, model: ScanModel):
        super().__init__(model)

    def loss_sum(self, output: Tensor, target: Batch) -> tuple[Tensor, Tensor]:
        logit_BK = output[:, 0]
        coded_BK = torch.zeros_like(logit_BK)
        coded_BK[target.visit_row_V, target.visit_task_V] = 1
        loss = functional.binary_cross_entropy_with_logits(logit_BK, coded_BK, reduction="sum")
        return loss, torch.tensor(logit_BK.numel(), device=logit_BK.device)

    def start(self, features: Features, batches: Iterable[Batch], ranks: Ranks) -> bool:
        head = self.model.head
        assert isinstance(head, FactorisedHead)
        standardise_heads([head], features, batches, ranks)
        return False


def base_rate_logits(labels: LabelTable, num_tasks: int) -> np.ndarray:
    """Float32 [1, K]: log odds that a task is coded in the visit, half a study added to either side."""
    coded_K = np.bincount(labels.visit.index, minlength=num_tasks)
    return log_odds(coded_K, len(labels) - coded_K)[None]


def log_odds(yes_K: np.ndarray, no_K: np.ndarray) -> np.ndarray:
    """Float32 [K], finite: half a study is added to either side."""
    return np.log((yes_K + 0.5) / (no_K + 0.5)).astype(np.float32)
