import numpy as np
import pytest
import torch

from ttepretrain.models.config import ENCODERS, ModelConfig
from ttepretrain.models.encoder import build_encoder
from ttepretrain.models.model import ScanModel
from ttepretrain.testing import tiny_model
from ttepretrain.training.precision import (
    MAX_DIFFERENCE,
    MixedPrecision,
    _input_shapes,
    bf16_difference,
    choose_precision,
)

SHAPE_DHW = (9, 10, 11)


@pytest.fixture
def model():
    return tiny_model(np.full((4, 5), -9.03, np.float32))


@pytest.fixture
def volume_BDHW():
    return torch.randint(-1000, 1000, (2, *SHAPE_DHW), generator=torch.Generator().manual_seed(0), dtype=torch.int16)


class WrongInBf16(torch.nn.Conv3d):
    """A kernel with an error that fp32 does not have."""

    def forward(self, x):
        return super().forward(x) * (1.2 if torch.is_autocast_enabled("cpu") else 1.0)


def test_right_kernels_pass_the_self_test_and_wrong_ones_fail(model, volume_BDHW):
    assert 0 < bf16_difference(model, volume_BDHW) < MAX_DIFFERENCE
    model.encoder.trunk[3].__class__ = WrongInBf16
    assert bf16_difference(model, volume_BDHW) == pytest.approx(0.2, abs=0.02)


class LinearWrongInBf16(torch.nn.Linear):
    def forward(self, x):
        return super().forward(x) * (1.2 if torch.is_autocast_enabled("cpu") else 1.0)


def test_linear_layers_are_tested_too_and_tokens_that_are_alike_are_no_fault(model):
    """After attention tokens hardly differ: a pattern of both signs would leave their gradient to rounding."""

    class TokensAlike(torch.nn.Module):
        def forward(self, x_BCDHW):
            return x_BCDHW.movedim(1, -1) * 1e-3 + 1

    linear = torch.nn.Linear(1, 6)
    model.encoder.trunk = torch.nn.Sequential(TokensAlike(), linear)
    volume_BDHW = torch.zeros(2, *SHAPE_DHW, dtype=torch.int16)
    assert 0 < bf16_difference(model, volume_BDHW) < MAX_DIFFERENCE
    linear.__class__ = LinearWrongInBf16
    assert bf16_difference(model, volume_BDHW) == pytest.approx(0.2, abs=0.02)


def test_bf16_keeps_the_table_of_log_hazards_exact(model, volume_BDHW):
    """bf16 would round -9.03 to -9.0."""
    log_hazard_BTK = MixedPrecision(model, bf16=True)(volume_BDHW)
    assert torch.equal(log_hazard_BTK, torch.full((2, 4, 5), -9.03))


def test_auto_is_bf16_where_its_kernels_are_right_and_fp32_with_a_warning_where_one_is_wrong(
    model, monkeypatch, caplog
):
    monkeypatch.setattr("ttepretrain.training.precision._native_bf16", lambda _: True)  # of this machine's processor
    assert choose_precision("auto", model, SHAPE_DHW, torch.device("cpu")) == "bf16"
    assert caplog.text == ""
    model.encoder.trunk[3].__class__ = WrongInBf16
    assert choose_precision("auto", model, SHAPE_DHW, torch.device("cpu")) == "fp32"
    assert "bf16 is off by 2" in caplog.text
    assert "in trunk.3 (" in caplog.text  # the layer and its map
    monkeypatch.setattr("ttepretrain.training.precision._native_bf16", lambda _: False)
    assert choose_precision("auto", model, SHAPE_DHW, torch.device("cpu")) == "fp32"


def test_chosen_precision_is_the_given_one(model):
    assert choose_precision("bf16", model, SHAPE_DHW, torch.device("cpu")) == "bf16"
    assert choose_precision("fp32", model, SHAPE_DHW, torch.device("cpu")) == "fp32"


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_self_test_sees_the_maps_of_the_volumes_own_shape(encoder):
    """Of every encoder, without arithmetic: the deepest map is the one that training has."""
    trunk = build_encoder(ModelConfig(encoder), in_channels=1, seed=0)
    model = ScanModel(trunk, torch.nn.Identity(), [(0.0, 1000.0)])
    found = _input_shapes(model, (32, 64, 96))
    assert {name for name, _ in found} <= set(dict(trunk.named_modules()))
    assert all(shape[0] % 2 == 0 and shape.numel() > 0 for _, shape in found)
    assert not next(trunk.parameters()).is_meta


@pytest.mark.skipif(not torch.cpu._is_avx512_bf16_supported(), reason="no bf16 in this processor")
@pytest.mark.parametrize("shape_DHW", [(32, 64, 96), (64, 96, 32), (96, 32, 64)])
def test_bf16_is_right_on_deepest_maps_of_one_to_three_voxels_an_axis(shape_DHW, caplog):
    model = ScanModel(build_encoder(ModelConfig("resnet18"), 1, 0), torch.nn.Identity(), [(0.0, 1000.0)])
    assert choose_precision("auto", model, shape_DHW, torch.device("cpu")) == "bf16", caplog.text
