"""What an encoder's own file is asked for and gives; and how its activations are kept.

B batch, C channel, D H W slices rows columns, F features.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, is_grad_enabled, nn
from torch.utils.checkpoint import checkpoint

from ttepretrain.models.config import ViTConfig


@dataclass(frozen=True)
class TrunkRequest:
    in_channels: int  # HU windows
    spacing_mm: tuple[float, float, float] | None  # of the voxels, D H W; only positions in mm need it
    vit: ViTConfig


@dataclass(frozen=True)
class Trunk:
    layers: nn.Sequential  # windows in [-1, 1] [B, C, D, H, W] -> map of features [B, F, d, h, w]
    feature_dim: int
    min_voxels: int = 1  # along each axis
    convolutional: bool = True  # kernels, BatchNorm and the memory format are the encoder's to set


class CheckpointedSequential(nn.Sequential):
    """nn.Sequential that keeps the inputs of its segments for the backward pass and computes the rest again."""

    def forward(self, x: Tensor) -> Tensor:
        if not is_grad_enabled():
            return super().forward(x)
        for segment in segments(self):
            # No dropout anywhere: the random state need not be kept.
            x = checkpoint(segment, x, use_reentrant=False, preserve_rng_state=False)
        return x


def segments(layers: nn.Sequential) -> Iterator[nn.Module]:
    """Composed modules (residual block, dense layer, transformer layer) one by one, runs of plain layers together."""
    run: list[nn.Module] = []
    for layer in _flat(layers):
        if next(layer.children(), None) is None:
            run.append(layer)
            continue
        if run:
            yield nn.Sequential(*run)
            run = []
        yield layer
    if run:
        yield nn.Sequential(*run)


def _flat(layers: nn.Sequential) -> Iterator[nn.Module]:
    for layer in layers:
        if isinstance(layer, nn.Sequential):
            yield from _flat(layer)
        else:
            yield layer
