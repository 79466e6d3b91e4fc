"""Arm `mtl`: the downstream phenotypes themselves, all at once.

B studies, Q yes-or-no outcomes (phenotype at a horizon, or a diagnosis), P phenotypes as time to event, T bins.

    loss = sum over known answers of the cross-entropy  +  piecewise-exponential NLL of the P phenotypes

Days at risk of a phenotype begin at its own start, where that is later than the blackout, and end with its own time.
Both are negative log-likelihoods, added as they are, over the number of answers plus the (study, phenotype, bin) cells.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ttepretrain.batch import Batch
from ttepretrain.models.head import FactorisedHead
from ttepretrain.models.model import ScanModel
from ttepretrain.phenotypes import PhenotypeTable, TimedPhenotype
from ttepretrain.survival.likelihood import nll_sum
from ttepretrain.survival.prefit import bias_table
from ttepretrain.training.distributed import Ranks
from ttepretrain.training.head_start import standardise_heads
from ttepretrain.training.objectives.base import Features, Objective


class PhenotypeHead(nn.Module):
    """[B, F] -> logits [B, Q], log hazards [B, T, P]."""

    def __init__(self, answers: FactorisedHead, hazards: FactorisedHead):
        super().__init__()
        self.answers, self.hazards = answers, hazards

    def forward(self, features_BF: Tensor) -> tuple[Tensor, Tensor]:
        return self.answers(features_BF)[:, 0], self.hazards(features_BF)


class Phenotypes(Objective):
    """Cells: known answers, and (study, phenotype, bin) of the studies at risk of the phenotype."""

    arm = "mtl"
    unit = "negative log-likelihood per answer or (study, phenotype, bin)"
    reference = "base rates alone"

    def __init__(self, model: ScanModel, table: PhenotypeTable, timed: Sequence[TimedPhenotype]):
        """timed: the table's phenotypes in their order."""
        super().__init__(model)
        self.table, self.timed = table, timed

    def example(self, hu_BDHW: Tensor, seeds_B: Tensor, batch: Batch) -> tuple[Tensor, tuple[Tensor, list[Batch]]]:
        del seeds_B
        rank_B = batch.study_rank_B.cpu().numpy()
        label_BQ = torch.from_numpy(self.table.label_RQ[rank_B]).to(hu_BDHW.device)
        labels = (part.labels.take(rank_B) for part in self.timed)
        timed = [Batch.collate(batch.volume_BDHW, batch.study_rank_B, part).to(hu_BDHW.device) for part in labels]
        return hu_BDHW, (label_BQ, timed)

    def loss_sum(self, output: tuple[Tensor, Tensor], target: tuple[Tensor, list[Batch]]) -> tuple[Tensor, Tensor]:
        (logit_BQ, log_hazard_BTP), (label_BQ, timed) = output, target
        known_BQ = ~label_BQ.isnan()
        entropy_BQ = functional.binary_cross_entropy_with_logits(logit_BQ, label_BQ.nan_to_num(), reduction="none")
        loss, cells = (entropy_BQ * known_BQ).sum(), known_BQ.sum()
        for column, (phenotype, batch) in enumerate(zip(self.timed, timed)):
            tasks, z_BT1 = phenotype.tasks, log_hazard_BTP[:, :, column : column + 1]
            # Studies not at risk of a phenotype are its history, and left out as incident tasks leave theirs.
            nll, pairs = nll_sum(z_BT1, batch, tasks.bin_edges_days, tasks.blackout_days, tasks.recurrence)
            loss, cells = loss + nll, cells + pairs
        return loss, cells

    def start(self, features: Features, batches: Iterable[Batch], ranks: Ranks) -> bool:
        head = self.model.head
        assert isinstance(head, PhenotypeHead)
        standardise_heads([head.answers, head.hazards], features, batches, ranks)
        return False


def hazard_table(timed: Sequence[TimedPhenotype], train_rank: np.ndarray, num_bins: int) -> np.ndarray:
    """Float32 [T, P]: the log hazards that the train studies start from. P may be 0."""
    columns = (bias_table(each.labels.take(train_rank), each.tasks) for each in timed)
    return np.concatenate([np.empty((num_bins, 0), np.float32), *columns], axis=1)
