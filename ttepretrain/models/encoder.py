"""Encoders: a registry of trunks behind one pooled `features`.

B batch, C channel, D H W slices rows columns, F features.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ttepretrain.errors import ConfigError
from ttepretrain.export_folder import read_export, read_weights
from ttepretrain.models.config import ModelConfig
from ttepretrain.models.conv import multiply_small_maps
from ttepretrain.models.densenet import densenet121_trunk
from ttepretrain.models.resnet import resnet_trunk
from ttepretrain.models.weights import load_strict

TRUNKS = {
    "densenet121": densenet121_trunk,
    "resnet18": partial(resnet_trunk, 18),
    "resnet50": partial(resnet_trunk, 50),
    "resnet152": partial(resnet_trunk, 152),
}
# Every width of both families is a multiple of 16. A group of fewer channels has too few values where deep layers
# of small volumes are one voxel.
CHANNELS_PER_GROUP = 16
# DenseNet's three average poolings round down: fewer voxels along an axis leave none for the last.
MIN_VOXELS = {"densenet121": 29}


class Encoder(nn.Module):
    """Trunk and global average pooling."""

    def __init__(self, trunk: nn.Sequential, feature_dim: int, min_voxels: int, freeze_statistics: bool):
        super().__init__()
        self.trunk = trunk
        self.feature_dim = feature_dim
        self.min_voxels = min_voxels
        self.freeze_statistics = freeze_statistics

    def features(self, x_BCDHW: Tensor) -> Tensor:
        """[B, F] in fp32."""
        if min(x_BCDHW.shape[2:]) < self.min_voxels:
            raise ConfigError(
                f"volume.shape_DHW must be at least {self.min_voxels} per axis for this model.encoder; "
                f"got {list(x_BCDHW.shape[2:])}"
            )
        return self.trunk(x_BCDHW).flatten(2).mean(2, dtype=torch.float32)

    def train(self, mode: bool = True) -> Encoder:
        super().train(mode)
        if self.freeze_statistics:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm3d):
                    module.eval()
        return self


def build_encoder(config: ModelConfig, in_channels: int, seed: int) -> Encoder:
    """Encoder whose weights are a function of the arguments alone; PyTorch's global random state is left as it was.

    `config.init` other than random: the encoder weights of that export, every one of them, or an error.
    """
    with torch.random.fork_rng(devices=[]):  # layers draw from the global state when they are made
        trunk, feature_dim = TRUNKS[config.encoder](in_channels)
    multiply_small_maps(trunk)
    if config.norm == "group":
        _use_group_norm(trunk)
    generator = torch.Generator().manual_seed(seed)
    for module in trunk.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
    loaded = config.init != "random"
    encoder = Encoder(trunk, feature_dim, MIN_VOXELS.get(config.encoder, 1), freeze_statistics=loaded)
    if loaded:
        _load_from_export(encoder, config)
    return encoder


def _use_group_norm(module: nn.Module) -> None:
    # Not by MONAI's `norm` argument: its ResNet applies that to the stem alone.
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm3d):
            setattr(module, name, nn.GroupNorm(child.num_features // CHANNELS_PER_GROUP, child.num_features))
        else:
            _use_group_norm(child)


def _load_from_export(encoder: Encoder, config: ModelConfig) -> None:
    export = read_export(Path(config.init))
    for key in ("encoder", "norm"):
        ours, theirs = getattr(config, key), getattr(export.model, key)
        if ours != theirs:
            raise ConfigError(f"model.{key} is {ours!r} and the export in model.init has {theirs!r}; make them equal")
    weights = read_weights(export)
    prefix = "encoder."
    load_strict(encoder, {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}, "model.init")
