"""SwinUNETR's encoder (MONAI's SwinViT, feature size 48): its 768-channel bottleneck. The decoder is never built.

B batch, F features, D H W axes of the map.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional

from ttepretrain.models.inputs import PadToMultiple, ReadAs
from ttepretrain.models.trunk import Trunk, TrunkRequest

FEATURE_SIZE = 48


class ChannelNorm(nn.Module):
    """LayerNorm over channels without weights, as SwinUNETR's decoder gets its inputs."""

    def forward(self, x_BFDHW: Tensor) -> Tensor:
        return functional.layer_norm(x_BFDHW.movedim(1, -1), x_BFDHW.shape[1:2]).movedim(-1, 1)


def swin_unetr_trunk(request: TrunkRequest) -> Trunk:
    """768 features at 1/32 of the resolution; other sizes are padded with air to multiples of 32."""
    from monai.networks.nets.swin_unetr import SwinTransformer

    network = SwinTransformer(
        in_chans=request.in_channels, embed_dim=FEATURE_SIZE, window_size=(7, 7, 7), patch_size=(2, 2, 2),
        depths=(2, 2, 2, 2), num_heads=(3, 6, 12, 24),
    )  # fmt: skip
    layers = OrderedDict(pad=PadToMultiple((32, 32, 32)), read=ReadAs("RAS"), patch_embed=network.patch_embed)
    for name in ("layers1", "layers2", "layers3", "layers4"):
        layers[name] = nn.Sequential(*getattr(network, name))
    layers["norm"] = ChannelNorm()
    return Trunk(nn.Sequential(layers), 16 * FEATURE_SIZE, convolutional=False)
