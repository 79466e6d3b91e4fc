"""Encoders: shapes, sizes, norms, initialisation as a pure function, strict loading."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ttepretrain.errors import ConfigError, IntegrityError
from ttepretrain.models.config import ENCODERS, WEIGHT_FILES, ModelConfig, ViTConfig
from ttepretrain.models.encoder import TRUNKS, build_encoder
from ttepretrain.models.weights import load_strict
from ttepretrain.testing import tiny_encoder

# Features and millions of parameters with one input channel and no classifier.
SIZES = {
    "densenet121": (1024, 11.2), "resnet18": (512, 33.2), "resnet50": (2048, 46.2), "resnet152": (2048, 117.4),
    "i3resnet152": (2048, 117.3), "segresnet": (512, 77.8), "swin_unetr": (768, 8.1), "vit_liere": (768, 88.4),
}  # fmt: skip
SMALL_VIT = ViTConfig(patch=[8, 10, 6], depth=2, width=48, heads=3, block=4)


def noise(batch: int, channels: int = 2, shape=(29, 31, 32)) -> torch.Tensor:
    return torch.randn(batch, channels, *shape, generator=torch.Generator().manual_seed(1))


def test_every_name_of_the_configuration_has_a_trunk():
    assert set(TRUNKS) == set(ENCODERS) == set(SIZES)


@pytest.fixture(scope="module", params=ENCODERS)
def encoder_of_one_window(request):
    return request.param, build_encoder(ModelConfig(encoder=request.param), in_channels=1, seed=0)


def test_pooled_features_of_the_published_size_and_every_parameter_used(encoder_of_one_window):
    name, encoder = encoder_of_one_window
    feature_dim, millions = SIZES[name]
    features_BF = encoder.features(noise(1, 1))
    assert features_BF.shape == (1, feature_dim)
    assert encoder.feature_dim == feature_dim
    assert features_BF.dtype == torch.float32
    assert sum(p.numel() for p in encoder.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)
    features_BF.square().sum().backward()
    assert all(p.grad is not None for p in encoder.parameters()), "a classifier was left in"
    encoder.zero_grad()  # the fixture lives on: half a gigabyte of the largest


def test_torch_export_gives_the_encoder_that_it_was_given(encoder_of_one_window):
    """The exported graph's features are the eager ones, bit for bit; every size of the network is in it."""
    _, encoder = encoder_of_one_window
    x_BCDHW = noise(1, 1, (32, 30, 31))
    with torch.no_grad():
        exported = torch.export.export(Features(encoder.eval()), (x_BCDHW,)).module()
        assert torch.equal(exported(x_BCDHW), encoder.features(x_BCDHW))


def test_a_map_in_bf16_is_averaged_in_fp32():
    """Rounding the mean to bf16 would be off by .2 %."""
    encoder, x_BCDHW = tiny_encoder(), noise(2, 1, (13, 14, 15))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        map_BFdhw, features_BF = encoder.feature_map(x_BCDHW), encoder.features(x_BCDHW)
    assert map_BFdhw.dtype == torch.bfloat16
    assert features_BF.dtype == torch.float32
    torch.testing.assert_close(features_BF.double(), map_BFdhw.double().mean((2, 3, 4)), rtol=1e-6, atol=1e-7)


# | `densenet121` | 1024 | 11.2 M | 0.46 | 29 voxels along each axis |
ROW = re.compile(r"^\| `(\w+)` \| (\d+) \| ([\d.]+) M \| ([\d.]+) \|", re.MULTILINE)


@pytest.mark.source
def test_features_parameters_and_flop_are_those_of_the_documents_table(encoder_of_one_window):
    """Forward of one window at 224^3 on tensors without data; 2 FLOP per multiply-add, attention as plain matrices."""
    name, encoder = encoder_of_one_window
    document = (Path(__file__).parents[3] / "docs" / "reference" / "encoders.md").read_text()
    rows = {row[0]: [float(value) for value in row[1:]] for row in ROW.findall(document)}
    assert tuple(rows) == ENCODERS
    assert all(f"`{layout}:PATH`" in document for layout in WEIGHT_FILES)
    counter = FlopCounterMode(display=False)
    with FakeTensorMode(allow_non_fake_inputs=True), sdpa_kernel(SDPBackend.MATH), counter, torch.no_grad():
        features_BF = encoder.features(torch.empty(1, 1, 224, 224, 224))
    features, millions, teraflop = rows[name]
    assert features_BF.shape == (1, features)
    assert sum(p.numel() for p in encoder.parameters()) / 1e6 == pytest.approx(millions, abs=0.051)
    assert counter.get_total_flops() / 1e12 == pytest.approx(teraflop, abs=0.0051)


class Features(nn.Module):
    """torch.export wants a `forward`."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, x_BCDHW):
        return self.encoder.features(x_BCDHW)


@pytest.mark.parametrize("name", ["densenet121", "resnet18", "resnet50"])
def test_the_stem_halves_every_axis(name):
    trunk = build_encoder(ModelConfig(encoder=name), 1, 0).trunk
    assert trunk[0](noise(1, 1, (30, 34, 40))).shape[2:] == (15, 17, 20)


@pytest.mark.parametrize("norm", ["group", "group_ws"])
@pytest.mark.parametrize("name", ["densenet121", "resnet18", "swin_unetr", "vit_liere"])
def test_group_norm_makes_a_studys_features_independent_of_its_batch(name, norm):
    encoder = build_encoder(ModelConfig(encoder=name, norm=norm, vit=SMALL_VIT), 2, 0)
    assert not any(isinstance(module, nn.BatchNorm3d) for module in encoder.modules())
    x_BCDHW = noise(3)
    with torch.no_grad():
        together, alone = encoder.features(x_BCDHW), encoder.features(x_BCDHW[1:2])
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "a_weight"),
    [
        ("resnet18", "trunk.conv1.weight"),
        ("swin_unetr", "trunk.layers2.0.blocks.1.attn.relative_position_bias_table"),
        ("vit_liere", "trunk.layers.1.liere.generators"),
    ],
)
def test_weights_are_a_function_of_configuration_channels_and_seed_alone(name, a_weight):
    config = ModelConfig(encoder=name, vit=SMALL_VIT)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = build_encoder(config, 2, seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), state), "the global random state was used"
    torch.manual_seed(2)
    again, other = build_encoder(config, 2, seed=3).state_dict(), build_encoder(config, 2, seed=4).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first[a_weight], other[a_weight])


def test_features_keep_their_scale_through_the_trunk():
    """Neither vanishing nor exploding, and different scans give different features."""
    for name in ("densenet121", "resnet18", "segresnet", "swin_unetr", "vit_liere"):
        with torch.no_grad():
            features_BF = build_encoder(ModelConfig(encoder=name, vit=SMALL_VIT), 2, 0).features(noise(2))
        assert 0.05 < features_BF.std() < 5
        assert (features_BF[0] - features_BF[1]).abs().max() > 1e-3


def test_a_volume_too_small_for_the_encoder_is_a_configuration_error():
    with pytest.raises(ConfigError, match=r"volume.shape_DHW must be at least 29 .* got \[28, 34, 40\]"):
        build_encoder(ModelConfig(encoder="densenet121"), 2, 0).features(noise(1, 2, (28, 34, 40)))


def test_batch_norm_statistics_are_frozen_where_weights_are_loaded_and_only_there():
    encoder = build_encoder(ModelConfig(encoder="resnet18", norm="batch"), 2, 0)
    encoder.train().features(noise(2))
    moved = encoder.trunk.bn1.running_mean.clone()
    assert (moved != 0).any()
    encoder.freeze_statistics = True
    encoder.train().features(3 * noise(2))
    assert torch.equal(encoder.trunk.bn1.running_mean, moved)
    assert encoder.training


class TestStrictLoading:
    def test_misnamed_and_missing_weights_are_both_listed(self):
        module = nn.Linear(3, 2)
        weights = {"weigth": module.weight.detach(), "bias": module.bias.detach()}
        with pytest.raises(IntegrityError, match="here: 1 of 2 weights match; missing: weight; unknown: weigth"):
            load_strict(module, weights, "here")

    def test_nothing_matched_says_so(self):
        with pytest.raises(IntegrityError, match="0 of 2 weights match"):
            load_strict(nn.Linear(3, 2), {}, "here")

    def test_another_width_is_listed_with_both_shapes(self):
        with pytest.raises(IntegrityError, match=r"weight float32\[2, 4\], expected float32\[2, 3\]"):
            load_strict(nn.Linear(3, 2), nn.Linear(4, 2).state_dict(), "here")

    def test_another_dtype_is_refused(self):
        with pytest.raises(IntegrityError, match=r"weight float64\[2, 3\], expected float32\[2, 3\]"):
            load_strict(nn.Linear(3, 2), nn.Linear(3, 2).double().state_dict(), "here")

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_weights_that_are_not_finite_are_refused(self, value):
        weights = nn.Linear(3, 2).state_dict()
        weights["bias"][1] = value
        module = nn.Linear(3, 2)
        before = module.bias.detach().clone()
        with pytest.raises(IntegrityError, match="1 weights hold NaN or infinity: bias"):
            load_strict(module, weights, "here")
        assert torch.equal(module.bias, before)

    def test_long_lists_are_cut(self):
        with pytest.raises(IntegrityError, match="unknown: n0, n1, n2, n3, n4, n5, n6, n7 and 2 more"):
            load_strict(nn.Linear(3, 2), {f"n{i}": torch.zeros(1) for i in range(10)}, "here")
