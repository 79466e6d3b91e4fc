"""3D convolution of maps of one or two voxels as one matrix product.

B batch, C channel, D H W slices rows columns. The deepest layers of a small volume end there.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

LARGEST_MAP = 2  # voxels per axis


class SmallMapConv3d(nn.Conv3d):
    """nn.Conv3d with the same weights and, to rounding, the same results.

    oneDNN's kernels for such maps are slow, and in bf16 their gradient of the weights is wrong (2 x 2 x 2, 512
    channels: relative error 1 or infinite; torch 2.13, AVX-512 BF16). Forward and backward, batch 8, one core:
    fp32 125 -> 48 ms, bf16 89 -> 33 ms (November 2026).
    """

    def forward(self, x_BCDHW: Tensor) -> Tensor:
        if max(x_BCDHW.shape[2:]) > LARGEST_MAP:
            return super().forward(x_BCDHW)
        padded = functional.pad(x_BCDHW, (1,) * 6)
        windows = padded.unfold(2, 3, 1).unfold(3, 3, 1).unfold(4, 3, 1)  # B C D H W 3 3 3
        columns = windows.permute(0, 2, 3, 4, 1, 5, 6, 7).flatten(4)
        return functional.linear(columns, self.weight.flatten(1), self.bias).permute(0, 4, 1, 2, 3)


def multiply_small_maps(network: nn.Module) -> None:
    """Turn the network's 3 x 3 x 3 convolutions of stride 1 into SmallMapConv3d, in place; names and weights stay."""
    for module in network.modules():
        if (
            type(module) is nn.Conv3d
            and (module.kernel_size, module.stride, module.padding) == ((3, 3, 3), (1, 1, 1), (1, 1, 1))
            and (module.dilation, module.groups, module.padding_mode) == ((1, 1, 1), 1, "zeros")
        ):
            module.__class__ = SmallMapConv3d
