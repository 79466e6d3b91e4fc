"""3D vision transformer whose positions are rotations: LieRE (arXiv 2406.10322).

B batch, D H W patches along slices rows columns, N = D H W tokens, F features, E features of a head.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ttepretrain.errors import ConfigError
from ttepretrain.models.config import ViTConfig
from ttepretrain.models.inputs import PadToMultiple
from ttepretrain.models.trunk import Trunk, TrunkRequest

MLP_RATIO = 4


@dataclass(frozen=True)
class Positions:
    """Where the patches are, from the centre of the volume: index over the number of patches, or mm over an extent."""

    step_DHW: tuple[float, float, float] | None  # of one patch, in extents; None: 1 / number of patches

    def of_grid(self, grid_DHW: tuple[int, int, int], device: torch.device) -> Tensor:
        """fp32 [N, 3]."""
        axes = []
        for axis, count in enumerate(grid_DHW):
            step = 1 / count if self.step_DHW is None else self.step_DHW[axis]
            axes.append((torch.arange(count, dtype=torch.float32, device=device) - (count - 1) / 2) * step)
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 2)


class LieRE(nn.Module):
    """Rotations R(x) = expm(x_1 A_1 + x_2 A_2 + x_3 A_3), block-diagonal over a head's features.

        A_i = triu(U_i, 1) - triu(U_i, 1)^T     U learned, one b x b matrix per axis, head and block

    (R(x) q) . (R(y) k) depends on y - x alone where the A_i commute: always for b = 2, which is RoPE-Mixed.
    """

    def __init__(self, heads: int, per_head: int, block: int):
        super().__init__()
        # Not a matrix with a fan-in, and so not named `weight`: it takes the rate of vectors and no decay.
        self.generators = nn.Parameter(2 * math.pi * torch.rand(3, heads, per_head // block, block, block))

    def rotations(self, positions_N3: Tensor) -> Tensor:
        """fp32 [heads, N, blocks, b, b], also under autocast: bf16 would round the angles."""
        if positions_N3.is_meta:  # a pass for shapes alone, which has no autocast
            _, heads, *blocks = self.generators.shape
            return positions_N3.new_empty((heads, len(positions_N3), *blocks))
        with torch.autocast(positions_N3.device.type, enabled=False):
            upper = torch.triu(self.generators.float(), 1)
            exponents = torch.einsum("ni,ihkab->hnkab", positions_N3, upper - upper.mT)
            return torch.linalg.matrix_exp(exponents.contiguous())

    def forward(self, x_BHNE: Tensor, rotations: Tensor) -> Tensor:
        """Every token's head features, rotated by where the token is."""
        blocks = x_BHNE.unflatten(-1, rotations.shape[2:4])
        return torch.einsum("hnkab,zhnkb->zhnka", rotations.to(x_BHNE.dtype), blocks).flatten(-2)


class LieRELayer(nn.Module):
    """Pre-norm transformer layer on a map [B, D, H, W, F]. Rotations are those of a step: the batch shares them."""

    def __init__(self, config: ViTConfig, positions: Positions):
        super().__init__()
        self.heads = config.heads
        self.positions = positions
        self.norm1, self.norm2 = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.qkv, self.out = nn.Linear(config.width, 3 * config.width), nn.Linear(config.width, config.width)
        self.liere = LieRE(config.heads, config.width // config.heads, config.block)
        self.mlp = nn.Sequential(
            nn.Linear(config.width, MLP_RATIO * config.width),
            nn.GELU(),
            nn.Linear(MLP_RATIO * config.width, config.width),
        )

    def forward(self, x_BDHWF: Tensor) -> Tensor:
        x_BDHWF = x_BDHWF + self._attend(self.norm1(x_BDHWF))
        return x_BDHWF + self.mlp(self.norm2(x_BDHWF))

    def _attend(self, x_BDHWF: Tensor) -> Tensor:
        _, depth, height, width, _ = x_BDHWF.shape
        grid_DHW = depth, height, width
        rotations = self.liere.rotations(self.positions.of_grid(grid_DHW, x_BDHWF.device))
        q, k, v = (  # [B, heads, N, E]
            part.flatten(1, 3).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(x_BDHWF).chunk(3, dim=-1)
        )
        mixed = functional.scaled_dot_product_attention(self.liere(q, rotations), self.liere(k, rotations), v)
        return self.out(mixed.transpose(1, 2).flatten(2).unflatten(1, grid_DHW))


class PatchEmbedding(nn.Module):
    """One linear map of every patch: [B, C, voxels] -> [B, D, H, W, F]."""

    def __init__(self, in_channels: int, config: ViTConfig):
        super().__init__()
        depth, height, width = config.patch
        self.project = nn.Conv3d(in_channels, config.width, (depth, height, width), stride=(depth, height, width))

    def forward(self, x_BCDHW: Tensor) -> Tensor:
        return self.project(x_BCDHW).movedim(1, -1)


class LastNorm(nn.Module):
    """LayerNorm of the tokens, as a map [B, F, D, H, W]."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, x_BDHWF: Tensor) -> Tensor:
        return self.norm(x_BDHWF).movedim(-1, 1)


def vit_liere_trunk(request: TrunkRequest) -> Trunk:
    """`vit.width` features per patch, without a class token: the encoder pools all tokens, as it does all voxels.

    Sizes that are no multiple of the patch are padded with air.
    """
    config = request.vit
    positions = _positions(config, request.spacing_mm)
    layers = OrderedDict(
        pad=PadToMultiple(config.patch),
        patches=PatchEmbedding(request.in_channels, config),
        layers=nn.Sequential(*(LieRELayer(config, positions) for _ in range(config.depth))),
        norm=LastNorm(config.width),
    )
    trunk = nn.Sequential(layers)
    for module in trunk.modules():
        if isinstance(module, nn.Linear | nn.Conv3d):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    return Trunk(trunk, config.width, convolutional=False)


def _positions(config: ViTConfig, spacing_mm: tuple[float, float, float] | None) -> Positions:
    if config.extent_mm is None:
        return Positions(None)
    if spacing_mm is None:
        raise ConfigError("model.vit.extent_mm asks for positions in mm and no voxel spacing was given; set it to null")
    depth, height, width = (p * mm / config.extent_mm for p, mm in zip(config.patch, spacing_mm))
    return Positions((depth, height, width))
