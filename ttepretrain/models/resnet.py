"""ResNet-18, -50 and -152 in 3D (MONAI's), without their classifier."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

from torch import nn

LAYERS = ("conv1", "bn1", "act", "maxpool", "layer1", "layer2", "layer3", "layer4")


def resnet_trunk(depth: Literal[18, 50, 152], in_channels: int) -> tuple[nn.Sequential, int]:
    """Layers [B, C, D, H, W] -> [B, F, D/32, H/32, W/32] (rounded up) and F: 512 or 2048.

    The stem has stride 2; MONAI's default of 1 costs eight times the arithmetic.
    """
    from monai.networks.nets import resnet18, resnet50, resnet152

    make = {18: resnet18, 50: resnet50, 152: resnet152}[depth]
    network = make(
        spatial_dims=3, n_input_channels=in_channels, conv1_t_stride=2, feed_forward=False, bias_downsample=False
    )
    return nn.Sequential(OrderedDict((name, getattr(network, name)) for name in LAYERS)), network.in_planes
