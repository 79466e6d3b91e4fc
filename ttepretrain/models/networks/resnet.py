"""ResNet-18, -50 and -152 in 3D (MONAI's), and Merlin's ResNet-152; without their classifiers."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Literal

from torch import nn

from ttepretrain.models.inputs import ReadAs
from ttepretrain.models.trunk import Trunk, TrunkRequest

LAYERS = ("conv1", "bn1", "act", "maxpool", "layer1", "layer2", "layer3", "layer4")


def resnet_trunk(depth: Literal[18, 50, 152], request: TrunkRequest) -> Trunk:
    """512 or 2048 features at 1/32 of the resolution, rounded up.

    The stem has stride 2; MONAI's default of 1 costs eight times the arithmetic.
    """
    return _trunk(depth, request, OrderedDict(), conv1_t_stride=2)


def i3resnet152_trunk(request: TrunkRequest) -> Trunk:
    """The image encoder of Merlin (arXiv 2406.06512): 2048 features at 1/16 along D, 1/32 in the plane.

    Stem 3 x 7 x 7 of stride 1 x 2 x 2 on slices whose rows run to the right and columns to the front.
    """
    read: OrderedDict[str, nn.Module] = OrderedDict(read=ReadAs("SRA"))
    return _trunk(152, request, read, conv1_t_size=(3, 7, 7), conv1_t_stride=(1, 2, 2))


def _trunk(depth: int, request: TrunkRequest, first: OrderedDict[str, nn.Module], **stem: Any) -> Trunk:
    from monai.networks.nets import resnet18, resnet50, resnet152

    make = {18: resnet18, 50: resnet50, 152: resnet152}[depth]
    network = make(
        spatial_dims=3, n_input_channels=request.in_channels, feed_forward=False, bias_downsample=False, **stem
    )
    layers = first | OrderedDict((name, getattr(network, name)) for name in LAYERS)
    return Trunk(nn.Sequential(layers), network.in_planes)
