"""Encoders: a registry of trunks behind one pooled `features`.

B batch, C channel, D H W slices rows columns, F features.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from ttepretrain.errors import ConfigError
from ttepretrain.models.config import ModelConfig
from ttepretrain.models.conv import multiply_small_maps, standardise_kernels
from ttepretrain.models.initial import load_initial
from ttepretrain.models.inputs import ReadAs
from ttepretrain.models.networks.densenet import densenet121_trunk
from ttepretrain.models.networks.resnet import i3resnet152_trunk, resnet_trunk
from ttepretrain.models.networks.segresnet import segresnet_trunk
from ttepretrain.models.networks.swin import swin_unetr_trunk
from ttepretrain.models.networks.vit import vit_liere_trunk
from ttepretrain.models.trunk import CheckpointedSequential, Trunk, TrunkRequest

# A new encoder is a file with a function TrunkRequest -> Trunk, a line here and its name in config.py.
TRUNKS: dict[str, Callable[[TrunkRequest], Trunk]] = {
    "densenet121": densenet121_trunk,
    "resnet18": partial(resnet_trunk, 18),
    "resnet50": partial(resnet_trunk, 50),
    "resnet152": partial(resnet_trunk, 152),
    "i3resnet152": i3resnet152_trunk,
    "segresnet": segresnet_trunk,
    "swin_unetr": swin_unetr_trunk,
    "vit_liere": vit_liere_trunk,
}
# Every width of the convolutional families is a multiple of 16. A group of fewer channels has too few values where
# deep layers of small volumes are one voxel.
CHANNELS_PER_GROUP = 16


class Encoder(nn.Module):
    """Trunk and global average pooling."""

    def __init__(
        self,
        trunk: nn.Sequential,
        feature_dim: int,
        min_voxels: int,
        freeze_statistics: bool,
        channels_last: bool = False,
    ):
        super().__init__()
        self.trunk = trunk
        self.feature_dim = feature_dim
        self.min_voxels = min_voxels
        self.freeze_statistics = freeze_statistics
        self.channels_last = channels_last  # on CUDA; no gain was measured on CPUs

    def features(self, x_BCDHW: Tensor) -> Tensor:
        """[B, F] in fp32."""
        return self._map(x_BCDHW).flatten(2).mean(2, dtype=torch.float32)

    def feature_map(self, x_BCDHW: Tensor) -> Tensor:
        """[B, F, d, h, w]: what `features` averages; axes run as the volume's."""
        map_BFdhw = self._map(x_BCDHW)
        for layer in self.trunk:
            if isinstance(layer, ReadAs):
                map_BFdhw = layer.undo(map_BFdhw)
        return map_BFdhw

    def _map(self, x_BCDHW: Tensor) -> Tensor:
        if min(x_BCDHW.shape[2:]) < self.min_voxels:
            raise ConfigError(
                f"volume.shape_DHW must be at least {self.min_voxels} per axis for this model.encoder; "
                f"got {list(x_BCDHW.shape[2:])}"
            )
        if self.channels_last and x_BCDHW.is_cuda:
            x_BCDHW = x_BCDHW.contiguous(memory_format=torch.channels_last_3d)
        return self.trunk(x_BCDHW)

    def train(self, mode: bool = True) -> Encoder:
        super().train(mode)
        if self.freeze_statistics:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm3d):
                    module.eval()
        return self


def build_encoder(
    config: ModelConfig,
    in_channels: int,
    seed: int,
    spacing_mm: tuple[float, float, float] | None = None,
    weights: dict[str, Tensor] | None = None,
) -> Encoder:
    """Encoder whose weights are a function of the arguments alone; PyTorch's global random state is left as it was.

    spacing_mm: of the voxels, D H W; only positions in mm (`model.vit.extent_mm`) need it.
    weights: what `config.init` names (export/initial_weights.py), all of which must fit; None for random weights.
    """
    assert (weights is None) == (config.init == "random"), "the weights are those that config.init names"
    with torch.random.fork_rng(devices=[]):  # layers draw from the global state when they are made
        torch.default_generator.manual_seed(seed)
        trunk = TRUNKS[config.encoder](TrunkRequest(in_channels, spacing_mm, config.vit))
    if trunk.convolutional:
        _prepare_convolutions(trunk.layers, config.norm, seed)
    if config.activation_checkpointing:
        trunk.layers.__class__ = CheckpointedSequential
    loaded = weights is not None
    encoder = Encoder(trunk.layers, trunk.feature_dim, trunk.min_voxels, loaded, channels_last=trunk.convolutional)
    if weights is not None:
        load_initial(encoder, config, weights)
    return encoder.train()  # freezes what is to be frozen


def _prepare_convolutions(layers: nn.Sequential, norm: str, seed: int) -> None:
    multiply_small_maps(layers)
    if norm == "group_ws":
        standardise_kernels(layers)
    if norm != "batch":
        _use_group_norm(layers)
    generator = torch.Generator().manual_seed(seed)
    for module in layers.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)


def _use_group_norm(module: nn.Module) -> None:
    # Not by MONAI's `norm` argument: its ResNet applies that to the stem alone.
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm3d):
            setattr(module, name, nn.GroupNorm(child.num_features // CHANNELS_PER_GROUP, child.num_features))
        else:
            _use_group_norm(child)
