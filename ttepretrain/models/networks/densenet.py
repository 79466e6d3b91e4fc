"""DenseNet-121 in 3D (MONAI's), without its classifier."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from ttepretrain.models.trunk import Trunk, TrunkRequest


def densenet121_trunk(request: TrunkRequest) -> Trunk:
    """1024 features at 1/32 of the resolution. Stem 7^3 with stride 2."""
    from monai.networks.nets import DenseNet121

    network = DenseNet121(spatial_dims=3, in_channels=request.in_channels, out_channels=1)
    classifier = network.class_layers.get_submodule("out")
    assert isinstance(classifier, nn.Linear)
    layers = OrderedDict(network.features.named_children())
    layers["relu5"] = network.class_layers.get_submodule("relu")
    # The three average poolings round down: fewer voxels along an axis leave none for the last.
    return Trunk(nn.Sequential(layers), classifier.in_features, min_voxels=29)
