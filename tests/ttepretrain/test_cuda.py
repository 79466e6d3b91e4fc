"""What only a CUDA device can show. Needs torch, numpy and safetensors alone; MONAI for its encoders."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn

from ttepretrain.models.config import ENCODERS, ModelConfig
from ttepretrain.models.encoder import build_encoder
from ttepretrain.models.model import ScanModel
from ttepretrain.survival.likelihood import nll_sum
from ttepretrain.testing import random_batch, random_labels, random_task_set
from ttepretrain.training.precision import MAX_DIFFERENCE, bf16_difference
from ttepretrain.volume.spec import SOFT_TISSUE

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture(params=ENCODERS)
def model(request) -> ScanModel:
    if request.param != "vit_liere":
        pytest.importorskip("monai")
    encoder = build_encoder(ModelConfig(request.param), in_channels=1, seed=0)
    return ScanModel(encoder, nn.Identity(), (SOFT_TISSUE,))


@pytest.fixture
def volume_BDHW() -> torch.Tensor:
    noise = torch.Generator().manual_seed(1)
    return torch.randint(-1000, 1000, (2, 64, 60, 70), generator=noise, dtype=torch.int16)


@contextmanager
def exact_fp32():
    """Without TF32, whose products have ten bits."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield


def features_and_gradients(model: ScanModel, volume_BDHW: torch.Tensor) -> list[torch.Tensor]:
    features_BF = model.features(volume_BDHW)
    gradients = torch.autograd.grad(features_BF.square().sum(), list(model.parameters()))
    return [tensor.detach().cpu() for tensor in (features_BF, *gradients)]


def assert_alike(ours: list[torch.Tensor], theirs: list[torch.Tensor], tolerance: float) -> None:
    """Relative to each tensor's size; a gradient that is nothing but rounding is compared with the largest."""
    floor = 1e-6 * max(float(tensor.norm()) for tensor in theirs)
    for a, b in zip(ours, theirs):
        assert float((a - b).norm()) <= tolerance * float(b.norm()) + floor


def test_bf16_passes_its_self_test_on_every_encoder(model, volume_BDHW):
    assert bf16_difference(model.cuda(), volume_BDHW.cuda()) <= MAX_DIFFERENCE


def test_the_memory_format_changes_nothing_but_rounding(model, volume_BDHW):
    model, volume_BDHW = model.cuda(), volume_BDHW.cuda()
    with exact_fp32():
        given = features_and_gradients(model, volume_BDHW)
        model.encoder.channels_last = False
        assert_alike(given, features_and_gradients(model, volume_BDHW), 1e-3)


def test_features_and_gradients_are_those_of_the_cpu(model, volume_BDHW):
    on_cpu = features_and_gradients(model, volume_BDHW)
    with exact_fp32():
        assert_alike(features_and_gradients(model.cuda(), volume_BDHW.cuda()), on_cpu, 1e-3)


@pytest.mark.parametrize("recurrence", ["all", "incident"])
def test_loss_and_dz_are_those_of_the_cpu(recurrence):
    rng = np.random.default_rng(0)
    tasks = random_task_set(rng, 300, recurrence=recurrence)
    batch = random_batch(rng, random_labels(rng, 16, tasks), (2, 2, 2))
    z_BTK = torch.from_numpy(rng.normal(-8, 1, (16, tasks.num_bins, 300)).astype(np.float32))
    found = []
    for device in ("cpu", "cuda"):
        z = z_BTK.to(device).requires_grad_()
        nll, cells = nll_sum(z, batch.to(device), tasks.bin_edges_days, tasks.blackout_days, recurrence)
        found.append([tensor.detach().cpu() for tensor in (nll, *torch.autograd.grad(nll, z), cells)])
    for ours, theirs in zip(*found):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
