"""Arm `ssl`: reconstruct hidden blocks of the volume from the rest. Needs no record at all.

B studies, C windows, D H W slices rows columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ttepretrain.batch import Batch
from ttepretrain.models.reconstruction import ReconstructionModel
from ttepretrain.training.objectives.base import Objective
from ttepretrain.volume.checks import PADDING_HU
from ttepretrain.volume.windows import apply_windows

BLOCKS = 8  # along every axis, of equal extent
HIDDEN_SHARE = 0.6  # of the blocks
HIDDEN_HU = float(PADDING_HU)  # air in every window


@dataclass(frozen=True)
class Hidden:
    """What was there before blocks were hidden."""

    windows_BCDHW: Tensor  # float32 in [-1, 1]
    hidden_B1DHW: Tensor  # bool


class MaskedReconstruction(Objective):
    """Cells: hidden voxels times windows; the loss is the squared error in units of half a window, squared."""

    arm = "ssl"
    unit = "squared error per hidden voxel and window"
    reference = "mean of every window alone"
    starts_from_features = False

    def __init__(self, model: ReconstructionModel):
        super().__init__(model)

    def example(self, hu_BDHW: Tensor, seeds_B: Tensor, batch: Batch) -> tuple[Tensor, Hidden]:
        del batch
        hidden_BDHW = hidden_blocks(seeds_B, hu_BDHW.shape[1:]).to(hu_BDHW.device)
        target = Hidden(apply_windows(hu_BDHW, self.model.windows), hidden_BDHW[:, None])
        return hu_BDHW.float().masked_fill(hidden_BDHW, HIDDEN_HU), target

    def loss_sum(self, output: Tensor, target: Hidden) -> tuple[Tensor, Tensor]:
        shape_DHW = target.windows_BCDHW.shape[2:]
        predicted_BCDHW = functional.interpolate(output, shape_DHW, mode="trilinear", align_corners=False)
        error_BCDHW = (predicted_BCDHW - target.windows_BCDHW).square() * target.hidden_B1DHW
        return error_BCDHW.sum(), target.hidden_B1DHW.sum() * output.shape[1]


def hidden_blocks(seeds_B: Tensor, shape_DHW: torch.Size) -> Tensor:
    """bool [B, D, H, W], on the CPU: a study's hidden voxels are a function of its seed alone."""
    count = round(HIDDEN_SHARE * BLOCKS**3)
    hidden_BN = torch.zeros(len(seeds_B), BLOCKS**3, dtype=torch.bool)
    for row, seed in enumerate(seeds_B.tolist()):
        hidden_BN[row, torch.randperm(BLOCKS**3, generator=torch.Generator().manual_seed(seed))[:count]] = True
    block_DHW = [torch.arange(size) * BLOCKS // size for size in shape_DHW]
    return hidden_BN.view(-1, BLOCKS, BLOCKS, BLOCKS)[
        :, block_DHW[0][:, None, None], block_DHW[1][:, None], block_DHW[2]
    ]
