"""Every arm and every encoder passes an overfitting test: eight studies of the cohort `tiny`, at 32 x 32 x 32 voxels.

The head is no part of the learning: it starts from the best answers that need no volume, its last linear is drawn at
random and nothing of it moves after that. What all studies share is taken from the features. So a model blind to the
volumes scores 0, an encoder that does not move stays where it starts, and 1 is what features free to be anything, study
by study, reach under the same head.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import torch
from torch import Tensor

from data.batches.loader import EvaluationLoader
from data.cohort.build import make_images, write_cohort
from data.given.study import Study
from data.given.study_table import read_studies
from data.labels.stage import make_labels
from data.prepared import schema
from data.prepared.opened import PreparedStudies
from data.prepared.write import volume_table, write_prepared
from data.subjects.keys import fitted_on, key_table
from data.volumes.prepare_study import prepare_study
from jobs.config import RunConfig, read_run_config
from jobs.objectives import objective_of
from ttepretrain.models.config import CONVOLUTIONAL, ENCODERS, ModelConfig
from ttepretrain.models.head import FactorisedHead
from ttepretrain.models.reconstruction import CellDecoder
from ttepretrain.training.config import ARMS, TrainConfig
from ttepretrain.training.optim import EPSILON, parameter_groups

STUDIES, STEPS = 8, 40
LEARNT = {"tte": 0.25, "visit": 0.25, "mtl": 0.25, "ssl": 0.15}  # of what there is to learn: where a run ends
SPREAD = 0.5  # standard deviation of what the random head says of one output
GRID = ["volume.shape_DHW=[32,32,32]", "volume.spacing_mm=[9.0,10.5,10.5]"]  # the extent of configs/tiny.yaml
QUICK = [("resnet18", arm, "group") for arm in ARMS if arm != "tte"]
QUICK += [(encoder, "tte", "group") for encoder in ENCODERS]
ALL = [(encoder, arm, "group") for encoder in ENCODERS for arm in ARMS]
ALL += [(encoder, "tte", "group_ws") for encoder in CONVOLUTIONAL]


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return read_run_config(["configs/tiny.yaml", *GRID], "jobs.prepare", "")


@pytest.fixture(scope="module")
def studies(config, tmp_path_factory) -> PreparedStudies:
    """The first train studies of eight subjects; tasks and labels are those of the whole cohort."""
    folder = tmp_path_factory.mktemp("tiny")
    cohort, prepared = folder / "cohort", folder / "prepared"
    (prepared / "volumes").mkdir(parents=True)
    orders = write_records(cohort, config)
    table = read_studies(cohort / "studies.parquet", config.ehr.date_only, config.ehr.timezone, False).frame
    keys = key_table(bytes(32), table)
    fit = fitted_on(bytes(32), keys.filter(split="train")["subject_id"])
    stage = make_labels(prepared, cohort / "ehr", None, table, config.ehr, fit, lambda f, items: list(map(f, items)))
    labels = pl.read_parquet(prepared / "labels.parquet").filter(split="train")
    # Two CTs of one subject look alike.
    chosen = labels.unique("subject_id", keep="first", maintain_order=True)["study_id"][:STUDIES]
    spec = config.volume.resolve()
    images = make_images(cohort / "images", [orders[study_id] for study_id in chosen])
    rows = [Study(study_id, f"images/{name}") for study_id, (_, name, *_) in zip(chosen, images)]
    volumes = volume_table([prepare_study(row, cohort, prepared / "volumes", spec) for row in rows], set())
    write_prepared(prepared, {schema.VOLUMES: volumes, schema.KEYS: keys}, stage.files, spec)
    return PreparedStudies.open(prepared, "train")


def write_records(cohort: Path, config: RunConfig) -> dict:
    """The cohort without its images; what each study's image is made from."""
    orders = {}

    def no_images(_, chunks):
        for order in (order for chunk in chunks for order in chunk):
            orders[order.identity.study_id] = dataclasses.replace(order, damage_order=None)
            yield [(order.row, f"{order.identity.study_id}.nii.gz", "site", None)]

    write_cohort(cohort, config.cohort, no_images)
    return orders


class Exam:
    """One encoder, one arm, the same batch of eight studies at every step."""

    def __init__(self, config: RunConfig, studies: PreparedStudies):
        [batch] = EvaluationLoader(studies, STUDIES)
        self.config = config.train.resolve(config.model.encoder, "fp32")
        self.objective = objective_of(config, studies)
        self.model = self.objective.model.train()
        self.head, self.encoder = self.model.head, self.model.encoder
        given, self.target = self.objective.example(batch.volume_BDHW, batch.study_rank_B, batch)
        self.windows_BCDHW = self.model.channels(given)
        features = self.features().detach()
        self.common = features.mean((0, *range(2, features.ndim)), keepdim=True)
        self.blind = least(lambda: self.loss(features), self.answers_that_need_no_volume())
        self.fix_the_head(features)
        own = features.clone(memory_format=torch.contiguous_format).requires_grad_()
        self.overfitted = least(lambda: self.loss(own), [own])

    def features(self) -> Tensor:
        """[B, F], or the map [B, F, d, h, w] where the head reads that."""
        of_map = isinstance(self.head, CellDecoder)
        return (self.encoder.feature_map if of_map else self.encoder.features)(self.windows_BCDHW)

    def loss(self, features: Tensor) -> Tensor:
        """What the head makes of how each study differs from what all have in common."""
        differing = features - features.mean(0) + self.common
        loss_sum, cells = self.objective.loss_sum(self.head(differing), self.target)
        return loss_sum / cells

    def answers_that_need_no_volume(self) -> list[Tensor]:
        """While the last linears are zero, the head says these of every study."""
        return [weight for name, weight in self.head.named_parameters() if name.endswith(("bias_TK", "project.bias"))]

    @torch.no_grad()
    def fix_the_head(self, features: Tensor) -> None:
        """Its answers at the studies' common features stay the best that need no volume."""
        random = torch.Generator().manual_seed(1)
        for part in self.head.modules():
            if isinstance(part, FactorisedHead):
                part.standardise(features.mean(0), features.std(0))
            if isinstance(part, FactorisedHead | CellDecoder):
                weight = part.project.weight
                weight.copy_(torch.randn(weight.shape, generator=random) * SPREAD / weight.shape[1] ** 0.5)
        if isinstance(self.head, CellDecoder):
            self.head.project.bias -= self.head.project.weight @ self.head.norm(self.common.flatten())
        self.head.requires_grad_(False)

    def enough(self, learnt: list[float]) -> bool:
        """Beyond a blind model by that much, and beyond what the random head makes of the encoder's start by chance."""
        return learnt[-1] > LEARNT[self.objective.arm] + max(0.0, learnt[0])

    def run(self, steps: int) -> list[float]:
        """What was learnt before every step, until it is enough: 0 without the volumes, 1 when overfitted."""
        optimizer = torch.optim.AdamW(parameter_groups(self.model, self.config), lr=0.0, eps=EPSILON, fused=True)
        learnt = []
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * min(1, (step + 1) / 3)
            loss = self.loss(self.features())
            learnt.append((self.blind - loss.item()) / (self.blind - self.overfitted))
            if self.enough(learnt):
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return learnt


def least(loss: Callable[[], Tensor], free: list[Tensor]) -> float:
    """The loss after L-BFGS has moved `free`, in place."""
    solver = torch.optim.LBFGS(free, max_iter=100, history_size=10, line_search_fn="strong_wolfe")

    def slopes() -> Tensor:
        solver.zero_grad()
        value = loss()
        value.backward()
        return value

    solver.step(slopes)
    return loss().item()


def exam(config: RunConfig, studies: PreparedStudies, encoder: str, arm: str, norm: str) -> Exam:
    model = ModelConfig(encoder, norm=norm, head_dim=64)
    train = TrainConfig(arm=arm, lr=0.02, weight_decay=0.0)
    return Exam(dataclasses.replace(config, model=model, train=train), studies)


def overfits(exam: Exam) -> None:
    before = {name: weight.detach().clone() for name, weight in exam.encoder.named_parameters()}
    learnt = exam.run(STEPS)
    print(*(f"{share:.2f}" for share in learnt))
    assert exam.enough(learnt)
    still = [name for name, weight in exam.encoder.named_parameters() if torch.equal(weight, before[name])]
    assert not still, "no gradient reaches these"


@pytest.mark.slow
@pytest.mark.parametrize(("encoder", "arm", "norm"), QUICK)
def test_an_encoder_overfits_eight_studies(config, studies, encoder, arm, norm):
    overfits(exam(config, studies, encoder, arm, norm))


@pytest.mark.slow
@pytest.mark.parametrize("arm", ARMS)
def test_the_exam_is_failed_without_volumes_and_without_learning(config, studies, arm):
    """Volumes that are all alike score 0; an encoder that is never updated stays where it starts."""
    blind, frozen = (exam(config, studies, "resnet18", arm, "group") for _ in range(2))
    blind.windows_BCDHW = blind.windows_BCDHW[:1].expand_as(blind.windows_BCDHW)
    assert blind.run(3) == pytest.approx([0.0] * 3, abs=0.02)
    for weight in frozen.encoder.parameters():
        weight.register_hook(torch.zeros_like)
    learnt = frozen.run(3)
    assert learnt == [learnt[0]] * 3
    assert not frozen.enough(learnt)


@pytest.mark.chaos
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("encoder", "arm", "norm"), [pair for pair in ALL if pair not in QUICK])
def test_every_encoder_overfits_eight_studies_under_every_arm(config, studies, encoder, arm, norm):
    overfits(exam(config, studies, encoder, arm, norm))
