"""The objective of `train.arm`, its biases fitted on the train studies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from data.batches.loader import EvaluationLoader
from data.prepared.opened import PreparedStudies, verified_manifest
from ehr.config import EhrConfig
from ehr.phenotype_file import read_phenotypes
from jobs.config import RunConfig
from ttepretrain.export.initial_weights import read_initial_weights
from ttepretrain.models.encoder import build_encoder
from ttepretrain.models.head import FactorisedHead
from ttepretrain.models.model import ScanModel, build_model
from ttepretrain.models.reconstruction import ReconstructionModel
from ttepretrain.phenotypes import PhenotypeTable
from ttepretrain.survival.prefit import bias_table
from ttepretrain.training.objectives.base import Objective
from ttepretrain.training.objectives.mtl import PhenotypeHead, Phenotypes, hazard_table
from ttepretrain.training.objectives.ssl import MaskedReconstruction
from ttepretrain.training.objectives.tte import TimeToEvent
from ttepretrain.training.objectives.visit import VisitCodes, base_rate_logits, log_odds
from ttepretrain.volume.windows import apply_windows

VOLUMES_OF_THE_MEAN = 32  # train volumes behind the mean that reconstruction starts from


def objective_of(config: RunConfig, train: PreparedStudies) -> Objective:
    """The encoder's weights are the same for every arm."""
    model, seed, spec = config.model, config.train.seed, train.spec
    weights = read_initial_weights(model)
    if config.train.arm == "tte":
        bias_TK = torch.from_numpy(bias_table(train.labels, train.tasks))
        built = build_model(model, spec, bias_TK, seed, weights)
        return TimeToEvent(built, train.tasks, config.train.head_fit_deviation)
    encoder = build_encoder(model, spec.num_channels, seed, spec.spacing_mm, weights)
    if config.train.arm == "ssl":
        return MaskedReconstruction(ReconstructionModel(encoder, window_means(train), spec.windows))

    def head(bias_TK: np.ndarray) -> FactorisedHead:
        return FactorisedHead(encoder.feature_dim, model.head_dim, torch.from_numpy(bias_TK), seed)

    if config.train.arm == "visit":
        bias_1K = base_rate_logits(train.labels, train.tasks.num_tasks)
        return VisitCodes(ScanModel(encoder, head(bias_1K), spec.windows))
    verified_manifest(train.folder, ["phenotypes.parquet"])
    table = PhenotypeTable.read(train.folder, ("train", "tuning")).learnable(train.study_rank)
    timed = table.timed(phenotype_starts(config.ehr), train.study_rank, train.tasks)
    known = table.label_RQ[train.study_rank]
    answers = head(log_odds((known == 1).sum(0), (known == 0).sum(0))[None])
    hazards = head(hazard_table(timed, train.study_rank, train.tasks.num_bins))
    return Phenotypes(ScanModel(encoder, PhenotypeHead(answers, hazards), spec.windows), table, timed)


def phenotype_starts(config: EhrConfig) -> dict[str, float]:
    """Days from the scan before which events of a phenotype do not count, of those that start after the blackout."""
    declared = read_phenotypes(Path(config.phenotypes))
    return {name: day for name, p in declared.items() if (day := p.start_days or 0.0) > config.blackout_days}


def window_means(train: PreparedStudies) -> torch.Tensor:
    """float32 [C] in [-1, 1]: mean of every window over evenly spaced train volumes."""
    sums_C, count = torch.zeros(train.spec.num_channels, dtype=torch.float64), 0
    for batch in EvaluationLoader(train, batch_size=1, most=VOLUMES_OF_THE_MEAN):
        sums_C += apply_windows(batch.volume_BDHW, train.spec.windows)[0].flatten(1).mean(1, dtype=torch.float64)
        count += 1
    return (sums_C / count).float()
