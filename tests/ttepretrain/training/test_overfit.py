"""Every arm and every encoder can learn eight studies of 32 x 32 x 32 voxels by heart.

A plain loop with the optimizer's groups. What is asked: does the loss fall below what any model could reach that does
not look at the volumes, and do gradients reach all of the encoder?
"""

import math

import numpy as np
import pytest
import torch

from ttepretrain.batch import Batch
from ttepretrain.labels import LabelTable
from ttepretrain.models.config import CONVOLUTIONAL, ENCODERS, ModelConfig
from ttepretrain.models.encoder import build_encoder
from ttepretrain.models.head import FactorisedHead
from ttepretrain.tasks import TaskSet
from ttepretrain.testing import random_labels, random_task_set
from ttepretrain.training.config import ARMS, TrainConfig
from ttepretrain.training.optim import EPSILON, parameter_groups

STUDIES, SIZE, STEPS = 8, 32, 40
SENSITIVE = (("swin_unetr", "group"), ("resnet152", "group_ws"), ("segresnet", "group_ws"))  # docs/models.md
QUICK = [("resnet18", arm, "group") for arm in ARMS if arm != "tte"]
QUICK += [(encoder, "tte", "group") for encoder in ENCODERS]
ALL = [(encoder, arm, "group") for encoder in ENCODERS for arm in ARMS]
ALL += [(encoder, "tte", "group_ws") for encoder in CONVOLUTIONAL]
LEFT = {"tte": 0.95, "visit": 0.7, "mtl": 0.9, "ssl": 0.6}  # of the blind model's loss: where a run ends, learnt


def exam() -> tuple[Batch, LabelTable, TaskSet]:
    """Studies of noise, smoothed, so that blocks can be told from their neighbours; labels without any reason."""
    tasks = random_task_set(np.random.default_rng(0), num_tasks=6)
    labels = random_labels(np.random.default_rng(1), STUDIES, tasks, event_share=0.5)
    noise = torch.randn(STUDIES, 1, 4, 4, 4, generator=torch.Generator().manual_seed(2)) * 400
    volume_BDHW = torch.nn.functional.interpolate(noise, (SIZE,) * 3, mode="trilinear")[:, 0].to(torch.int16)
    return Batch.collate(volume_BDHW, torch.arange(STUDIES), labels), labels, tasks


def least_blind_hazards(labels: LabelTable, tasks: TaskSet) -> float:
    """Least NLL over all hazards that are the same for every study: events / exposure in every (bin, task)."""
    low, high = np.maximum(tasks.bin_edges_days[:-1], tasks.blackout_days), np.array(tasks.bin_edges_days[1:])
    left_out = set(zip(labels.history.row.tolist(), labels.history.index.tolist()))
    left_out = left_out if tasks.recurrence == "incident" else set()
    happened = dict(zip(zip(labels.events.row.tolist(), labels.events.index.tolist()), labels.event_days.tolist()))
    least = 0.0
    for k in range(tasks.num_tasks):
        rows = [i for i in range(len(labels)) if (i, k) not in left_out]
        end = np.array([happened.get((i, k), labels.censor_days[i]) for i in rows])
        event = np.array([(i, k) in happened for i in rows])
        exposure = np.clip(np.minimum(end[:, None], high) - low, 0, None).sum(0)
        events = ((end[:, None] <= high) & (end[:, None] > tasks.bin_edges_days[:-1]) & event[:, None]).sum(0)
        least += sum(d - d * math.log(d / x) for d, x in zip(events, exposure) if d)
    return least


def least_blind_answers(yes: np.ndarray, no: np.ndarray) -> float:
    """Least cross-entropy over all probabilities that are the same for every study."""
    return float(sum(-n * math.log(n / (y + m)) for y, m in zip(yes, no) for n in (y, m) if n))


def least_blind_loss(objective, labels: LabelTable, tasks: TaskSet, batch: Batch) -> float:
    """Summed loss of the best model that is blind to the volumes (`ssl`: of one that knows each window's mean)."""
    if objective.arm == "tte":
        return least_blind_hazards(labels, tasks)
    if objective.arm == "visit":
        coded = np.bincount(labels.visit.index, minlength=tasks.num_tasks)
        return least_blind_answers(coded, STUDIES - coded)
    if objective.arm == "mtl":
        yes, no = ((objective.table.label_RQ == answer).sum(0) for answer in (1, 0))
        return least_blind_answers(yes, no) + least_blind_hazards(objective.table.timed, objective.tasks)
    target = objective.example(batch.volume_BDHW, batch.study_rank_B, batch)[1]
    seen = target.windows_BCDHW[target.hidden_B1DHW.expand_as(target.windows_BCDHW)]
    return float((seen - seen.mean()).square().sum())


def standardise(model, batch: Batch) -> None:
    """As training starts: the head's first linear sees what differs between studies."""
    with torch.no_grad():
        features_BF = model.features(batch.volume_BDHW)
    for head in model.head.modules():
        if isinstance(head, FactorisedHead):
            head.standardise(features_BF.mean(0), features_BF.std(0))


def learns_by_heart(encoder: str, arm: str, norm: str, objective_on) -> None:
    batch, labels, tasks = exam()
    rate = 0.001 if (encoder, norm) in SENSITIVE else 0.02
    config = TrainConfig(arm=arm, lr=rate, head_lr=0.5, weight_decay=0.0)
    built = build_encoder(ModelConfig(encoder, norm=norm), 1, seed=0)
    objective = objective_on(built, config, labels, STUDIES, tasks)
    blind = least_blind_loss(objective, labels, tasks, batch)
    model = objective.model.train()
    standardise(model, batch)
    before = {name: weight.detach().clone() for name, weight in model.encoder.named_parameters()}
    optimizer = torch.optim.AdamW(parameter_groups(model, config), lr=0.0, eps=EPSILON, fused=True)
    losses = [math.inf]
    for step in range(STEPS):
        if losses[-1] < LEFT[arm] * blind:
            break
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * min(1, (step + 1) / 3)
        given, target = objective.example(batch.volume_BDHW, batch.study_rank_B, batch)
        loss_sum, cells = objective.loss_sum(model(given), target)
        optimizer.zero_grad()
        (loss_sum / cells).backward()
        optimizer.step()
        losses.append(loss_sum.item())
    print(f"{encoder} {arm} {norm}: loss over the blind model's", *(f"{loss / blind:.3f}" for loss in losses[1:]))
    assert losses[-1] < LEFT[arm] * blind
    still = [name for name, weight in model.encoder.named_parameters() if torch.equal(weight, before[name])]
    assert not still, "no gradient reaches these"


@pytest.mark.slow
@pytest.mark.parametrize(("encoder", "arm", "norm"), QUICK)
def test_eight_studies_are_learnt_by_heart(encoder, arm, norm, objective_on):
    learns_by_heart(encoder, arm, norm, objective_on)


@pytest.mark.chaos
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("encoder", "arm", "norm"), [pair for pair in ALL if pair not in QUICK])
def test_every_encoder_learns_eight_studies_by_heart_under_every_arm(encoder, arm, norm, objective_on):
    learns_by_heart(encoder, arm, norm, objective_on)
