"""Head and whole model: the start at the bias table, precision, determinism, windows as channels."""

import numpy as np
import pytest
import torch

from ttepretrain.export.load import load_model
from ttepretrain.export.write import write_export
from ttepretrain.models.config import ModelConfig, ViTConfig
from ttepretrain.models.head import PiecewiseExponentialHead
from ttepretrain.models.model import build_model
from ttepretrain.testing import random_task_set
from ttepretrain.volume.spec import BONE, LUNG, VolumeSpec
from ttepretrain.volume.windows import apply_windows

SPEC = VolumeSpec((3.0, 2.0, 1.5), (9, 13, 17), (-1024, 3071), (LUNG, BONE))
CONFIG = ModelConfig(encoder="resnet18", head_dim=6)


@pytest.fixture(scope="module")
def bias_TK():
    return torch.randn(4, 7, generator=torch.Generator().manual_seed(0)) - 8


@pytest.fixture(scope="module")
def volume_BDHW():
    return torch.randint(-1024, 1500, (2, 9, 13, 17), dtype=torch.int16, generator=torch.Generator().manual_seed(0))


def trained(head: PiecewiseExponentialHead) -> PiecewiseExponentialHead:
    with torch.no_grad():
        head.project.weight.normal_(generator=torch.Generator().manual_seed(0))
    return head


def test_an_untrained_head_gives_the_bias_table_exactly_whatever_the_features(bias_TK):
    head = PiecewiseExponentialHead(20, 6, bias_TK, seed=0)
    assert torch.equal(head(torch.randn(3, 20)), bias_TK.expand(3, 4, 7))


def test_the_zero_start_lets_gradients_in(bias_TK):
    head = PiecewiseExponentialHead(20, 6, bias_TK, seed=0)
    head(torch.randn(3, 20)).square().sum().backward()
    assert (head.project.weight.grad != 0).any()
    assert (head.bias_TK.grad != 0).any()


def test_the_head_is_the_published_factorisation(bias_TK):
    """Linear(F, T*D), RMSNorm(D), one Linear(D, K) shared by all bins, bias table."""
    head = trained(PiecewiseExponentialHead(20, 6, bias_TK, seed=0))
    shapes = {name: tuple(p.shape) for name, p in head.named_parameters()}
    assert shapes == {
        "expand.weight": (24, 20), "expand.bias": (24,), "norm.weight": (6,), "project.weight": (7, 6),
        "bias_TK": (4, 7),
    }  # fmt: skip
    features_BF = torch.randn(3, 20)
    for t in range(4):
        hidden_BD = features_BF @ head.expand.weight[6 * t : 6 * t + 6].T
        hidden_BD = hidden_BD / (hidden_BD.square().mean(1, keepdim=True) + 1e-6).sqrt()
        expected_BK = hidden_BD @ head.project.weight.T + bias_TK[t]
        torch.testing.assert_close(head(features_BF)[:, t], expected_BK)


def test_all_bins_start_from_one_projection(bias_TK):
    """Proportional hazards first: whatever the last linear learns at once, it learns for every bin."""
    head = trained(PiecewiseExponentialHead(20, 6, bias_TK, seed=0))
    effect_BTK = head(torch.randn(3, 20)) - bias_TK
    torch.testing.assert_close(effect_BTK, effect_BTK[:, :1].expand_as(effect_BTK), atol=1e-5, rtol=0)


def test_a_standardised_head_sees_studies_and_not_their_common_mean(bias_TK):
    """Features of a tiny spread around a large mean give the same as their z-scores; a constant one is left out."""
    scores_NF = torch.randn(50, 20, generator=torch.Generator().manual_seed(1))
    scores_NF = (scores_NF - scores_NF.mean(0)) / scores_NF.std(0, correction=0)
    scores_NF[:, 3] = 0
    plain, standardised = (trained(PiecewiseExponentialHead(20, 6, bias_TK, seed=0)) for _ in range(2))
    features_NF = 7 + 0.02 * scores_NF
    standardised.standardise(features_NF.mean(0), features_NF.std(0, correction=0))
    torch.testing.assert_close(standardised(features_NF), plain(scores_NF), atol=2e-3, rtol=1e-3)


def test_log_hazards_are_fp32_under_bf16_autocast_and_not_rounded(bias_TK):
    head = trained(PiecewiseExponentialHead(20, 6, bias_TK, seed=0))
    features_BF = torch.randn(3, 20)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed_BTK = head(features_BF)
    assert mixed_BTK.dtype == torch.float32
    assert torch.equal(mixed_BTK, head(features_BF))


def test_int16_volumes_become_one_channel_per_window(bias_TK, volume_BDHW):
    model = build_model(CONFIG, SPEC, bias_TK, seed=0).eval()
    with torch.no_grad():
        features_BF = model.features(volume_BDHW)
        expected_BF = model.encoder.features(apply_windows(volume_BDHW, SPEC.windows))
        log_hazard_BTK = model(volume_BDHW)
    assert torch.equal(features_BF, expected_BF)
    assert features_BF.shape == (2, 512)
    assert log_hazard_BTK.shape == (2, 4, 7)


def test_the_model_is_a_function_of_its_arguments_alone(bias_TK):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = build_model(CONFIG, SPEC, bias_TK, seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again = build_model(CONFIG, SPEC, bias_TK, seed=3).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_memory_format_does_not_change_the_answer(bias_TK, volume_BDHW):
    model = build_model(CONFIG, SPEC, bias_TK, seed=0).eval()
    trained(model.head)
    with torch.no_grad():
        plain_BTK = model(volume_BDHW)
        last_BTK = model.to(memory_format=torch.channels_last_3d)(volume_BDHW)
    torch.testing.assert_close(last_BTK, plain_BTK, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "encoder",
    [
        {"encoder": "swin_unetr"},
        {"encoder": "vit_liere", "vit": ViTConfig([4, 8, 8], 2, 48, 3, 8)},
        {"encoder": "vit_liere", "vit": ViTConfig([4, 8, 8], 2, 48, 3, 2, 60.0), "activation_checkpointing": True},
        {"encoder": "resnet18", "norm": "batch"},
        {"encoder": "resnet18", "norm": "group_ws"},
    ],
    ids=["swin", "vit", "vit in mm", "batch norm", "standardised"],
)  # fmt: skip
def test_every_kind_of_encoder_comes_back_from_its_export_bit_for_bit(encoder, volume_BDHW, tmp_path):
    """Sizes, positions in mm and batch statistics travel with it."""
    config = ModelConfig(head_dim=6, **encoder)
    tasks = random_task_set(np.random.default_rng(0), 7)
    model = build_model(config, SPEC, torch.full((4, 7), -8.0), seed=3)
    trained(model.head)
    model.train().features(volume_BDHW)  # moves batch statistics
    write_export(tmp_path / "export", model.eval(), config, SPEC, tasks, {"synthetic": True}, min_patients=11)
    again = load_model(tmp_path / "export")
    expected, found = model.state_dict(), again.state_dict()
    assert list(expected) == list(found)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    with torch.no_grad():
        assert torch.equal(model(volume_BDHW), again(volume_BDHW))
