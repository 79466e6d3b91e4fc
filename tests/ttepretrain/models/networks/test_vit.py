"""LieRE: what its rotations are, what they are relative to, and where the tokens are."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import expm
from torch import nn

from ttepretrain.errors import ConfigError
from ttepretrain.models.config import ModelConfig, ViTConfig
from ttepretrain.models.encoder import build_encoder
from ttepretrain.models.networks.vit import LieRE, LieRELayer, Positions
from ttepretrain.training.config import TrainConfig
from ttepretrain.training.optim import VECTOR_LR, parameter_groups

HEADS, PER_HEAD = 3, 16
INDEX = Positions(None)


def liere(block: int) -> LieRE:
    with torch.random.fork_rng():
        torch.manual_seed(block)
        return LieRE(HEADS, PER_HEAD, block)


def points(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, generator=torch.Generator().manual_seed(seed)) - 0.5


@pytest.mark.parametrize("block", [2, 8, PER_HEAD])
class TestRotations:
    def test_they_are_expm_of_the_skew_generators(self, block):
        """Against SciPy, block by block in float64."""
        encoding, positions_N3 = liere(block), points(3)
        found = encoding.rotations(positions_N3).detach().numpy()
        raw = encoding.generators.detach().double().numpy()
        for head, n, b in np.ndindex(HEADS, 3, PER_HEAD // block):
            exponent = np.zeros((block, block))
            for axis in range(3):
                for row in range(block):
                    for column in range(row + 1, block):
                        value = positions_N3[n, axis].item() * raw[axis, head, b, row, column]
                        exponent[row, column] += value
                        exponent[column, row] -= value
            np.testing.assert_allclose(found[head, n, b], expm(exponent), atol=2e-5)

    def test_they_are_orthogonal_and_keep_orientation(self, block):
        rotations = liere(block).rotations(points(7))
        identity = torch.eye(block).expand_as(rotations)
        torch.testing.assert_close(rotations.mT @ rotations, identity, atol=5e-5, rtol=0)
        determinants = torch.linalg.det(rotations)
        torch.testing.assert_close(determinants, torch.ones_like(determinants), atol=1e-4, rtol=0)

    def test_the_origin_is_the_identity_exactly(self, block):
        rotations = liere(block).rotations(torch.zeros(1, 3))
        assert torch.equal(rotations, torch.eye(block).expand_as(rotations))

    def test_generators_are_drawn_from_zero_to_two_pi(self, block):
        generators = liere(block).generators
        assert generators.shape == (3, HEADS, PER_HEAD // block, block, block)
        assert generators.min() >= 0
        assert 0.9 * 2 * math.pi < generators.max() < 2 * math.pi

    def test_commuting_generators_make_scores_relative_exactly(self, block):
        """A_i = c_i A: the score of a query at x and a key at y does not change when both move."""
        encoding = liere(block)
        with torch.no_grad():
            encoding.generators.copy_(encoding.generators[:1] * torch.tensor([1.0, -0.4, 0.7]).view(3, 1, 1, 1, 1))
        q, k = torch.randn(2, 1, HEADS, 1, PER_HEAD, generator=torch.Generator().manual_seed(1))

        def score(x_N3, y_N3):
            return encoding(q, encoding.rotations(x_N3)) @ encoding(k, encoding.rotations(y_N3)).mT

        x, y, move = points(1), points(1, 1), points(1, 2)
        torch.testing.assert_close(score(x + move, y + move), score(x, y), atol=2e-4, rtol=0)
        assert (score(x + move, y) - score(x, y)).abs().max() > 1e-2


def test_dense_generators_do_not_commute():
    """Else the test above would say nothing about the general case."""
    encoding = liere(8)
    q, k = torch.randn(2, 1, HEADS, 1, PER_HEAD, generator=torch.Generator().manual_seed(1))
    scores = [
        encoding(q, encoding.rotations(points(1) + m)) @ encoding(k, encoding.rotations(points(1, 1) + m)).mT
        for m in (0, 0.5)
    ]
    assert (scores[0] - scores[1]).abs().max() > 1e-2


def test_blocks_of_two_are_rope_mixed():
    """RoPE-Mixed: features in pairs as complex numbers, turned by exp(i sum_a theta_a x_a); theta per head and pair."""
    encoding, positions_N3 = liere(2), points(5)
    x_BHNE = torch.randn(2, HEADS, 5, PER_HEAD, generator=torch.Generator().manual_seed(1))
    theta = encoding.generators[..., 0, 1].detach()  # axis, head, pair
    angle = torch.einsum("na,ahp->hnp", positions_N3, theta)
    pairs = torch.complex(x_BHNE[..., 0::2], x_BHNE[..., 1::2]) * torch.polar(torch.ones_like(angle), -angle)
    expected = torch.stack([pairs.real, pairs.imag], -1).flatten(-2)
    found = encoding(x_BHNE, encoding.rotations(positions_N3))
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


def test_rotations_stay_fp32_under_autocast():
    encoding, positions_N3 = liere(8), points(4)
    with torch.autocast("cpu", torch.bfloat16):
        rotations = encoding.rotations(positions_N3)
    assert rotations.dtype == torch.float32
    assert torch.equal(rotations, encoding.rotations(positions_N3))


def test_index_positions_are_patch_centres_over_the_number_of_patches():
    positions_N3 = INDEX.of_grid((2, 1, 4), torch.device("cpu"))
    assert positions_N3.shape == (8, 3)
    assert positions_N3[0].tolist() == [-0.25, 0, -0.375]
    assert positions_N3[1].tolist() == [-0.25, 0, -0.125]
    assert positions_N3[-1].tolist() == [0.25, 0, 0.375]


def test_positions_in_mm_follow_spacing_and_not_the_number_of_voxels():
    """Patches of 8 x 16 x 16 voxels of 3 x 1.5 x 1.5 mm are cubes of 24 mm: 0.05 of 480 mm apart along every axis."""
    config = ModelConfig(encoder="vit_liere", vit=ViTConfig([8, 16, 16], 1, 32, 2, 8, extent_mm=480.0))
    encoder = build_encoder(config, 1, 0, spacing_mm=(3.0, 1.5, 1.5))
    positions = encoder.trunk.layers[0].positions
    assert positions.step_DHW == pytest.approx((0.05, 0.05, 0.05))
    assert positions.of_grid((1, 1, 3), torch.device("cpu"))[:, 2].tolist() == pytest.approx([-0.05, 0, 0.05])
    with pytest.raises(ConfigError, match=r"model\.vit\.extent_mm asks for positions in mm and no voxel spacing"):
        build_encoder(config, 1, 0)


def test_a_layer_attends_with_rotated_queries_and_keys_and_plain_values():
    """Against attention written out: softmax(R q . R k / sqrt(E)) v, per head; unequal axes."""
    config = ViTConfig([4, 4, 4], 1, 32, 2, 4)
    torch.manual_seed(0)
    layer = LieRELayer(config, INDEX)
    x_BDHWF = torch.randn(2, 2, 3, 4, 32)
    normed = layer.norm1(x_BDHWF).flatten(1, 3)
    rotations = layer.liere.rotations(INDEX.of_grid((2, 3, 4), torch.device("cpu")))
    heads = []
    for head in range(2):
        q, k, v = (
            normed @ layer.qkv.weight[part * 32 + head * 16 :][:16].T + layer.qkv.bias[part * 32 + head * 16 :][:16]
            for part in range(3)
        )
        turned = [torch.stack([torch.block_diag(*rotations[head, n]) @ t[:, n].T for n in range(24)]) for t in (q, k)]
        scores = torch.einsum("nez,mez->znm", *turned) / 4
        heads.append(scores.softmax(-1) @ v)
    expected = x_BDHWF + layer.out(torch.cat(heads, -1)).view_as(x_BDHWF)
    expected = expected + layer.mlp(layer.norm2(expected))
    torch.testing.assert_close(layer(x_BDHWF), expected, atol=1e-4, rtol=1e-4)


def test_where_a_patch_lies_matters():
    """Without positions a transformer's mean over tokens cannot tell patches from the same in another order."""
    encoder = build_encoder(ModelConfig(encoder="vit_liere", vit=ViTConfig([4, 4, 4], 2, 32, 2, 8)), 1, 0)
    x_BCDHW = torch.randn(1, 1, 8, 4, 12, generator=torch.Generator().manual_seed(0))
    swapped = torch.cat([x_BCDHW[:, :, 4:], x_BCDHW[:, :, :4]], 2)
    with torch.no_grad():
        moved = (encoder.features(x_BCDHW) - encoder.features(swapped)).abs().max()
        for layer in encoder.trunk.layers:
            layer.liere.generators.zero_()
        torch.testing.assert_close(encoder.features(x_BCDHW), encoder.features(swapped), atol=1e-5, rtol=1e-5)
    assert moved > 1e-3


@pytest.mark.parametrize("name", ["swin_unetr", "vit_liere"])
def test_position_tables_and_generators_take_the_rate_of_vectors_and_no_decay(name):
    """They have no fan-in; matrices and patch kernels do."""
    vit = ViTConfig([8, 8, 8], 1, 32, 2, 8)
    model = nn.ModuleDict({"encoder": build_encoder(ModelConfig(encoder=name, vit=vit), 1, 0)})
    config = TrainConfig(lr=0.02, weight_decay=0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {
        names[id(parameter)]: (group["peak_lr"], group["weight_decay"])
        for group in parameter_groups(model, config)
        for parameter in group["params"]
    }
    assert rates.keys() == set(names.values())
    positional = [n for n in rates if n.endswith(("generators", "relative_position_bias_table"))]
    assert positional
    assert {rates[n] for n in positional} == {(config.lr * VECTOR_LR, 0.0)}
    linear = {n for n, module in model.named_modules() if isinstance(module, nn.Linear)}
    for n in linear:
        assert rates[f"{n}.weight"] == (pytest.approx(0.02 / model.get_submodule(n).in_features), 0.1)


def test_sizes_that_cannot_be_are_refused_with_the_key():
    for values, message in (
        (
            {"width": 100, "heads": 12},
            r"model.vit.width must be a multiple of model.vit.heads = 12, at most 8192",
        ),
        ({"block": 7}, r"model.vit.block must lie between 2 and 256 and divide width / heads = 64; got 7"),
        ({"patch": [16, 16]}, r"model.vit.patch must be three whole numbers"),
        ({"patch": [1, 1, 7]}, r"model.vit.patch must be .*, of 8 voxels or more; got \[1, 1, 7\]"),
        ({"depth": True}, r"model.vit.depth must be a whole number; got True"),
        ({"depth": 129}, r"model.vit.depth must lie between 1 and 128; got 129"),
        ({"extent_mm": 0.0}, r"model.vit.extent_mm must lie between 1 and 100000, or be null; got 0.0"),
    ):
        with pytest.raises(ConfigError, match=message):
            ViTConfig(**values)
