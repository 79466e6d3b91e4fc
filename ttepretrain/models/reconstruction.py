"""From a trunk's map of features back to windows: what masked reconstruction puts on an encoder.

B batch, C channel (one per window), F features, D H W slices rows columns, d h w voxels of the map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ttepretrain.models.encoder import Encoder
from ttepretrain.models.model import ScanModel
from ttepretrain.volume.spec import Window

CELLS = 8  # predicted per voxel of the map, along every axis


class CellDecoder(nn.Module):
    """RMSNorm -> one Linear per voxel of the map: CELLS^3 values a window. Its first prediction is `mean_C`.

    As light as possible, so that the encoder does the learning (SimMIM, arXiv 2111.09886).
    """

    def __init__(self, feature_dim: int, mean_C: Tensor):
        super().__init__()
        self.num_windows = len(mean_C)
        self.norm = nn.RMSNorm(feature_dim, eps=1e-6)
        with torch.random.fork_rng(devices=[]):
            self.project = nn.Linear(feature_dim, self.num_windows * CELLS**3)
        nn.init.zeros_(self.project.weight)
        with torch.no_grad():
            self.project.bias.copy_(mean_C.repeat_interleave(CELLS**3))

    def forward(self, map_BFdhw: Tensor) -> Tensor:
        """fp32 [B, C, CELLS d, CELLS h, CELLS w], also under autocast."""
        with torch.autocast(map_BFdhw.device.type, enabled=False):
            cells = self.project(self.norm(map_BFdhw.float().movedim(1, -1)))  # B d h w (C i j k)
            cells = cells.unflatten(-1, (self.num_windows, CELLS, CELLS, CELLS)).permute(0, 4, 1, 5, 2, 6, 3, 7)
            return cells.flatten(6, 7).flatten(4, 5).flatten(2, 3)


class ReconstructionModel(ScanModel):
    """Encoder without pooling, and a decoder; `features` are pooled as in every ScanModel."""

    def __init__(self, encoder: Encoder, mean_C: Tensor, windows: Sequence[Window]):
        super().__init__(encoder, CellDecoder(encoder.feature_dim, mean_C), windows)

    def forward(self, volume_BDHW: Tensor) -> Tensor:
        """Windows [B, C, ...] on a grid of cells that covers the volume, to within a voxel of the map."""
        return self.head(self.encoder.feature_map(self.channels(volume_BDHW)))
