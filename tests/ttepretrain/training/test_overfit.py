"""Every arm and every encoder can learn eight studies of 32 x 32 x 32 voxels by heart.

A plain loop with the optimizer's groups: what is asked here is whether gradients reach the whole network.
"""

import numpy as np
import pytest
import torch

from ttepretrain.batch import Batch
from ttepretrain.models.config import ENCODERS, ModelConfig
from ttepretrain.models.encoder import build_encoder
from ttepretrain.testing import random_labels, random_task_set
from ttepretrain.training.config import ARMS, TrainConfig
from ttepretrain.training.optim import EPSILON, parameter_groups

STUDIES, SIZE, STEPS = 8, 32, 12
QUICK = [("resnet18", arm) for arm in ARMS] + [("densenet121", "tte")]
# Of the reference loss. A log-likelihood with few events has no floor at zero that a dozen steps could near.
LEFT = {"tte": 0.9, "visit": 0.5, "mtl": 0.8, "ssl": 0.3}


def exam() -> tuple[Batch, object, object]:
    """Studies of noise, smoothed, so that blocks can be told from their neighbours; labels without any reason."""
    tasks = random_task_set(np.random.default_rng(0), num_tasks=6)
    labels = random_labels(np.random.default_rng(1), STUDIES, tasks, event_share=0.5)
    noise = torch.randn(STUDIES, 1, 4, 4, 4, generator=torch.Generator().manual_seed(2)) * 400
    volume_BDHW = torch.nn.functional.interpolate(noise, (SIZE,) * 3, mode="trilinear")[:, 0].to(torch.int16)
    return Batch.collate(volume_BDHW, torch.arange(STUDIES), labels), labels, tasks


def course(encoder: str, arm: str, objective_on) -> list[float]:
    """Loss at every step."""
    batch, labels, tasks = exam()
    config = TrainConfig(arm=arm, lr=0.2, head_lr=0.5, weight_decay=0.0)
    objective = objective_on(build_encoder(ModelConfig(encoder), 1, seed=0), config, labels, STUDIES, tasks)
    model = objective.model.train()
    optimizer = torch.optim.AdamW(parameter_groups(model, config), lr=0.0, eps=EPSILON, fused=True)
    losses = []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * min(1, (step + 1) / 3)
        given, target = objective.example(batch.volume_BDHW, batch.study_rank_B, batch)
        loss_sum, cells = objective.loss_sum(model(given), target)
        loss = loss_sum / cells
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def overfits(encoder: str, arm: str, objective_on) -> bool:
    losses = course(encoder, arm, objective_on)
    return min(losses[-3:]) < LEFT[arm] * losses[0]


@pytest.mark.slow
@pytest.mark.parametrize(("encoder", "arm"), QUICK)
def test_eight_studies_are_learnt_by_heart(encoder, arm, objective_on):
    assert overfits(encoder, arm, objective_on)


@pytest.mark.chaos
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("encoder", "arm"), [(encoder, arm) for encoder in ENCODERS for arm in ARMS if (encoder, arm) not in QUICK]
)
def test_every_encoder_learns_eight_studies_by_heart_under_every_arm(encoder, arm, objective_on):
    assert overfits(encoder, arm, objective_on)
