"""DenseNet-121 in 3D (MONAI's), without its classifier."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn


def densenet121_trunk(in_channels: int) -> tuple[nn.Sequential, int]:
    """Layers [B, C, D, H, W] -> [B, 1024, D/32, H/32, W/32] and the 1024. Stem 7^3 with stride 2."""
    from monai.networks.nets import DenseNet121

    network = DenseNet121(spatial_dims=3, in_channels=in_channels, out_channels=1)
    layers = OrderedDict(network.features.named_children())
    layers["relu5"] = network.class_layers.relu
    return nn.Sequential(layers), network.class_layers.out.in_features
