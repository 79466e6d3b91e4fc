"""From HU to the network's channels. Axes: B batch, C channel (one per window), D H W slices rows columns."""

from __future__ import annotations

import torch
from torch import Tensor

from ttepretrain.volume.spec import Window


def apply_windows(volume_BDHW: Tensor, windows: tuple[Window, ...]) -> Tensor:
    """float32 [B, C, D, H, W]: -1 at and below the lower edge of a window, 1 at and above its upper edge."""
    centre_C, width_C = torch.tensor(windows, dtype=torch.float32, device=volume_BDHW.device).unbind(1)
    scale_C = 2.0 / width_C
    per_channel = (1, -1, 1, 1, 1)
    x_BCDHW = volume_BDHW.float().unsqueeze(1) * scale_C.view(per_channel)
    return x_BCDHW.sub_((centre_C * scale_C).view(per_channel)).clamp_(-1.0, 1.0)
