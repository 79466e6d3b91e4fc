"""3D convolutions: standardised kernels, and right results for maps with fewer voxels than their kernel.

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

    oneDNN (torch 2.13) goes wrong where an axis of the map is shorter than the kernel, and raises no error:
        AVX-512, bf16   gradient of the weights of 3 x 3 x 3 on a map of depth 2: off by 1, infinite or NaN
        AMX, bf16       with stride 2 on a map of width 1 or 2, the output too
        fp32 (seen with AMX)   gradient of the weights of 7 x 7 x 7 with stride 2, for example on 5 x 1 x 1; may crash
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
    """The layer's convolution with another weight, right also where the map is shorter than the kernel."""
    if not _is_plain(layer) or all(size >= kernel for size, kernel in zip(x_BCDHW.shape[2:], layer.kernel_size)):
        return layer._conv_forward(x_BCDHW, weight, layer.bias)
    one_step = layer.stride == (1, 1, 1)
    tiny = max(x_BCDHW.shape[2:]) <= LARGEST_MAP and one_step and layer.kernel_size == (3, 3, 3)
    if not tiny and x_BCDHW.device.type != "cpu":
        return layer._conv_forward(x_BCDHW, weight, layer.bias)
    assert not isinstance(layer.padding, str)
    depth, height, width = layer.padding
    padded = functional.pad(x_BCDHW, (width, width, height, height, depth, depth))
    if one_step and not tiny:  # zeros of our own: no kernel then reaches beyond its map
        return functional.conv3d(padded, weight, layer.bias)
    return _multiply(layer, padded, weight)


def _multiply(layer: nn.Conv3d, padded_BCDHW: Tensor, weight: Tensor) -> Tensor:
    """The convolution as one matrix product. Its columns are kernel / stride times the map, per axis."""
    windows = padded_BCDHW
    for axis, (kernel, stride) in enumerate(zip(layer.kernel_size, layer.stride), start=2):
        windows = windows.unfold(axis, kernel, stride)  # in the end B C D H W k k k
    columns = windows.permute(0, 2, 3, 4, 1, 5, 6, 7).flatten(4)
    return functional.linear(columns, weight.flatten(1), layer.bias).permute(0, 4, 1, 2, 3)


def multiply_small_maps(network: nn.Module) -> None:
    """Turn the network's convolutions that `convolve` has a route for into SmallMapConv3d; names and weights stay."""
    for module in network.modules():
        if type(module) is nn.Conv3d and _is_plain(module) and max(module.kernel_size) > 1:
            module.__class__ = SmallMapConv3d


def standardise_kernels(network: nn.Module) -> None:
    """Turn the network's convolutions into StandardisedConv3d, in place; names and weights stay.

    All but the first: its inputs are HU, whose level tells tissues apart.
    """
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv3d)]
    for module in convolutions[1:]:
        module.__class__ = StandardisedConv3d


def _is_plain(layer: nn.Conv3d) -> bool:
    options = layer.dilation, layer.groups, layer.padding_mode
    return options == ((1, 1, 1), 1, "zeros") and not isinstance(layer.padding, str)
