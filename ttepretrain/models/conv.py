"""3D convolutions: standardised kernels, and maps of one or two voxels as one matrix product.

B batch, C channel, D H W slices rows columns, n inputs of a kernel.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction, FunctionCtx, once_differentiable
from torch.nn import functional

LARGEST_MAP = 2  # voxels per axis
GAIN = math.sqrt(2)  # norm of a standardised kernel, for the ReLU behind it
ROUNDING = 1e-6  # of a kernel's norm: equal weights differ by less, and become 0


class SmallMapConv3d(nn.Conv3d):
    """nn.Conv3d with the same weights and, to rounding, the same results. The deepest layers of a small volume need it.

    oneDNN's kernels for maps of one or two voxels are slow, and in bf16 their gradient of the weights is wrong
    (2 x 2 x 2, 512 channels: relative error 1 or infinite; torch 2.13, AVX-512 BF16).
    """

    def forward(self, x_BCDHW: Tensor) -> Tensor:
        return convolve(self, x_BCDHW, self.weight)


class StandardisedConv3d(nn.Conv3d):
    """nn.Conv3d whose kernels are standardised before use (weight standardisation, arXiv 1903.10520).

    Behind a ReLU all inputs have a common mean; a kernel of mean 0 passes what differs. Without it a step shifts the
    features of all studies alike before it separates any two of them (docs/explanation/training.md).
    """

    def forward(self, x_BCDHW: Tensor) -> Tensor:
        return convolve(self, x_BCDHW, standardised(self.weight))


def standardised(weight: Tensor) -> Tensor:
    """Kernels [C, ...] with mean 0 and root mean square GAIN / sqrt(n)."""
    return _Standardise.apply(weight)


class _Standardise(torch.autograd.Function):
    """w -> s (w - mean w). Backward in closed form: autograd's steps cost as much as a third of a ResNet-18's step."""

    @staticmethod
    def forward(ctx: FunctionCtx, weight: Tensor) -> Tensor:
        kernels_Cn = weight.flatten(1)
        mean_C1 = kernels_Cn.mean(1, keepdim=True)
        unit_Cn = kernels_Cn - mean_C1  # torch.var_mean alone would take four times as long as all of this
        norm_C1 = torch.linalg.vector_norm(unit_Cn, dim=1, keepdim=True)
        noise_C1 = ROUNDING * torch.hypot(norm_C1, mean_C1 * kernels_Cn.shape[1] ** 0.5)
        scale_C1 = torch.where(norm_C1 > noise_C1, GAIN / norm_C1, 0.0)
        unit_Cn.mul_(scale_C1)
        ctx.save_for_backward(unit_Cn, scale_C1)
        return unit_Cn.view_as(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: BackwardCFunction, slope: Tensor) -> Tensor:
        unit_Cn, scale_C1 = ctx.saved_tensors  # type: ignore[misc]  # torch declares a tuple of one tensor
        slope_Cn = slope.flatten(1)
        # What would change the mean or the norm has no effect.
        along_C1 = (slope_Cn * unit_Cn).sum(1, keepdim=True) / GAIN**2
        result_Cn = torch.addcmul(-scale_C1 * slope_Cn.mean(1, keepdim=True), slope_Cn, scale_C1)
        return result_Cn.addcmul_(unit_Cn, -scale_C1 * along_C1).view_as(slope)


def convolve(layer: nn.Conv3d, x_BCDHW: Tensor, weight: Tensor) -> Tensor:
    """The layer's convolution with another weight; a matrix product where the map is small."""
    if max(x_BCDHW.shape[2:]) > LARGEST_MAP or not _is_plain(layer):
        return layer._conv_forward(x_BCDHW, weight, layer.bias)
    padded = functional.pad(x_BCDHW, (1,) * 6)
    windows = padded.unfold(2, 3, 1).unfold(3, 3, 1).unfold(4, 3, 1)  # B C D H W 3 3 3
    columns = windows.permute(0, 2, 3, 4, 1, 5, 6, 7).flatten(4)
    return functional.linear(columns, weight.flatten(1), layer.bias).permute(0, 4, 1, 2, 3)


def multiply_small_maps(network: nn.Module) -> None:
    """Turn the network's 3 x 3 x 3 convolutions of stride 1 into SmallMapConv3d, in place; names and weights stay."""
    for module in network.modules():
        if type(module) is nn.Conv3d and _is_plain(module):
            module.__class__ = SmallMapConv3d


def standardise_kernels(network: nn.Module) -> None:
    """Turn the network's convolutions into StandardisedConv3d, in place; names and weights stay.

    All but the first: its inputs are HU, whose level tells tissues apart.
    """
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv3d)]
    for module in convolutions[1:]:
        module.__class__ = StandardisedConv3d


def _is_plain(layer: nn.Conv3d) -> bool:
    return (
        (layer.kernel_size, layer.stride, layer.padding) == ((3, 3, 3), (1, 1, 1), (1, 1, 1))
        and (layer.dilation, layer.groups, layer.padding_mode) == ((1, 1, 1), 1, "zeros")
    )  # fmt: skip
