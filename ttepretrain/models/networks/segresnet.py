"""The encoder of SegResNet (MONAI's), as CT-FM (arXiv 2501.09001) trained it; the decoder is never built."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from ttepretrain.models.inputs import ReadAs
from ttepretrain.models.trunk import Trunk, TrunkRequest

BLOCKS = (1, 2, 2, 4, 4)


def segresnet_trunk(request: TrunkRequest) -> Trunk:
    """512 features at 1/16 of the resolution, rounded up. The stem has stride 1."""
    from monai.networks.nets.segresnet_ds import SegResEncoder

    network = SegResEncoder(in_channels=request.in_channels, init_filters=32, blocks_down=BLOCKS)
    layers = OrderedDict(read=ReadAs("SPL"), conv_init=network.conv_init)
    layers["layers"] = nn.Sequential(*(nn.Sequential(OrderedDict(level.named_children())) for level in network.layers))
    return Trunk(nn.Sequential(layers), 32 << (len(BLOCKS) - 1))
