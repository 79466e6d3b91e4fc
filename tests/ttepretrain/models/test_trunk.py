"""Inputs of published networks, sizes that do not divide, and activations computed twice."""

import pytest
import torch
from torch import nn

from ttepretrain.models.config import ModelConfig, ViTConfig
from ttepretrain.models.encoder import build_encoder
from ttepretrain.models.inputs import PadToMultiple, ReadAs
from ttepretrain.models.trunk import CheckpointedSequential, segments

SMALL_VIT = ViTConfig(patch=[8, 8, 8], depth=3, width=48, heads=3, block=4)


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_missing_voxels_are_air_at_both_ends():
    padded = PadToMultiple((4, 4, 3))(torch.zeros(1, 1, 5, 8, 2))
    assert padded.shape == (1, 1, 8, 8, 3)
    inside = padded[0, 0] == 0
    assert inside.nonzero().min(0).values.tolist() == [1, 0, 0]
    assert inside.nonzero().max(0).values.tolist() == [5, 7, 1]
    assert (padded[0, 0][~inside] == -1).all()


@pytest.mark.parametrize(
    ("orientation", "voxel"),
    # Ours grow to the head, the front and the right. Voxel 1 of 3, 0 of 5, 6 of 7 along them.
    [("SAR", (1, 0, 6)), ("SRA", (1, 6, 0)), ("RAS", (6, 0, 1)), ("SPL", (1, 4, 0)), ("LPI", (0, 4, 1))],
)
def test_a_marker_is_where_the_published_orientation_has_it(orientation, voxel):
    x_BCDHW = torch.full((1, 2, 3, 5, 7), -1.0)
    x_BCDHW[:, :, 1, 0, 6] = 1.0
    read = ReadAs(orientation)(x_BCDHW)
    assert read.sum() == 2
    assert (read[(slice(None), slice(None), *voxel)] == 1).all()
    assert torch.equal(ReadAs(orientation).undo(read) * 2 - 1, x_BCDHW)


@pytest.mark.parametrize("name", ["i3resnet152", "segresnet", "swin_unetr", "vit_liere"])
def test_the_feature_map_lies_on_the_volumes_axes(name):
    """Whatever axes the network reads: 32, 64 and 96 voxels along D, H, W give a map in the same proportions."""
    encoder = build_encoder(ModelConfig(encoder=name, vit=ViTConfig([32, 32, 32], 1, 48, 3, 4)), 1, 0).eval()
    with torch.no_grad():
        map_BFdhw = encoder.feature_map(noise(1, 1, 32, 64, 96))
    depth, *plane = map_BFdhw.shape[2:]
    step = {"segresnet": 16}.get(name, 32)
    assert plane == [64 // step, 96 // step]
    assert depth == 32 // {"i3resnet152": 16}.get(name, step)


@pytest.mark.parametrize(("name", "multiple"), [("swin_unetr", (32, 32, 32)), ("vit_liere", (8, 8, 8))])
def test_transformers_read_any_size_as_if_air_were_around_it(name, multiple):
    encoder = build_encoder(ModelConfig(encoder=name, vit=SMALL_VIT), 1, 0)
    x_BCDHW = noise(1, 1, 29, 31, 32)
    with torch.no_grad():
        features_BF = encoder.features(x_BCDHW)
        assert torch.equal(features_BF, encoder.features(PadToMultiple(multiple)(x_BCDHW)))
        assert encoder.trunk(x_BCDHW).shape[2:] == tuple(32 // m for m in multiple)


def test_the_swin_trunk_is_monais_last_map():
    """MONAI's own forward, the bottleneck that SwinUNETR's decoder would get, on axes in its order R A S."""
    from monai.networks.nets import SwinUNETR

    network = SwinUNETR(in_channels=1, out_channels=1, feature_size=48).swinViT
    trunk = build_encoder(ModelConfig(encoder="swin_unetr"), 1, 0).trunk
    network.load_state_dict(trunk.state_dict(), strict=True)
    x_BCRAS = torch.rand(1, 1, 32, 64, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network(x_BCRAS, normalize=True)[-1]
        found = trunk(x_BCRAS.permute(0, 1, 4, 3, 2) * 2 - 1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_the_segresnet_trunk_is_monais_last_map():
    from monai.networks.nets.segresnet_ds import SegResEncoder

    trunk = build_encoder(ModelConfig(encoder="segresnet", norm="batch"), 1, 0).trunk.eval()
    network = SegResEncoder(init_filters=32, in_channels=1, blocks_down=(1, 2, 2, 4, 4)).eval()
    network.load_state_dict(trunk.state_dict(), strict=True)
    x_BCSPL = torch.rand(1, 1, 16, 20, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = trunk(x_BCSPL.flip(3, 4) * 2 - 1)
        torch.testing.assert_close(found, network(x_BCSPL)[-1], atol=1e-5, rtol=1e-4)


def test_segments_are_the_layers_in_order_and_blocks_stay_whole():
    block = nn.TransformerEncoderLayer(4, 1)
    layers = nn.Sequential(nn.Conv3d(1, 1, 1), nn.Sequential(nn.ReLU(), block), nn.Sequential(nn.Sequential(nn.GELU())))
    parts = list(segments(layers))
    assert [type(part) for part in parts] == [nn.Sequential, nn.TransformerEncoderLayer, nn.Sequential]
    assert [type(layer) for part in (parts[0], parts[2]) for layer in part] == [nn.Conv3d, nn.ReLU, nn.GELU]
    assert parts[1] is block


def bytes_of_inputs(trunk: nn.Sequential) -> int:
    """Of all segments: what checkpointing holds besides what hooks on saved tensors see."""
    x, total = noise(1, 1, 32, 30, 31), 0
    with torch.no_grad():
        for segment in segments(trunk):
            total += x.nbytes
            x = segment(x)
    return total


@pytest.mark.parametrize("name", ["densenet121", "resnet18", "swin_unetr", "vit_liere"])
def test_checkpointing_keeps_less_and_changes_nothing(name):
    """Features and gradients bit for bit; fewer bytes wait for the backward pass; the same names of weights."""
    results = []
    for checkpointed in (False, True):
        config = ModelConfig(encoder=name, vit=SMALL_VIT, activation_checkpointing=checkpointed)
        encoder = build_encoder(config, 1, 0)
        assert isinstance(encoder.trunk, CheckpointedSequential) == checkpointed
        weights, kept = {parameter.data_ptr() for parameter in encoder.parameters()}, {}

        def keep(tensor, weights=weights, kept=kept):
            if tensor.data_ptr() not in weights:
                kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            features_BF = encoder.features(noise(1, 1, 32, 30, 31))
        kept_bytes = sum(kept.values()) + checkpointed * bytes_of_inputs(encoder.trunk)
        features_BF.square().sum().backward()
        gradients = {n: parameter.grad for n, parameter in encoder.named_parameters()}
        results.append((features_BF, gradients, kept_bytes))
    (features_BF, gradients, all_bytes), (again_BF, gradients_again, fewer_bytes) = results
    assert torch.equal(features_BF, again_BF)
    assert gradients.keys() == gradients_again.keys()
    assert all(torch.equal(gradient, gradients_again[n]) for n, gradient in gradients.items())
    assert fewer_bytes < 0.7 * all_bytes
