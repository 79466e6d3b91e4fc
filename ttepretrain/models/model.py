"""ScanModel: from int16 HU to the output of its head; TTEModel: to log hazards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ttepretrain.models.config import ModelConfig
from ttepretrain.models.encoder import Encoder, build_encoder
from ttepretrain.models.head import PiecewiseExponentialHead
from ttepretrain.volume.spec import VolumeSpec, Window
from ttepretrain.volume.windows import apply_windows


class ScanModel(nn.Module):
    """Encoder, and a head on its pooled features."""

    def __init__(self, encoder: Encoder, head: nn.Module, windows: Sequence[Window]):
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.windows = tuple(windows)

    def features(self, volume_BDHW: Tensor) -> Tensor:
        """[B, F] of volumes in HU (int16, or float after augmentation)."""
        return self.encoder.features(self.channels(volume_BDHW))

    def channels(self, volume_BDHW: Tensor) -> Tensor:
        """Windows become channels."""
        return apply_windows(volume_BDHW, self.windows)

    def forward(self, volume_BDHW: Tensor) -> Any:
        return self.head(self.features(volume_BDHW))


class TTEModel(ScanModel):
    """Its output is the log hazard per day [B, T, K], fp32."""


def build_model(
    config: ModelConfig, spec: VolumeSpec, bias_TK: Tensor, seed: int, weights: dict[str, Tensor] | None = None
) -> TTEModel:
    """Model whose weights are a function of the arguments alone. weights: of the encoder, as in `build_encoder`."""
    encoder = build_encoder(config, spec.num_channels, seed, spec.spacing_mm, weights)
    head = PiecewiseExponentialHead(encoder.feature_dim, config.head_dim, bias_TK, seed)
    return TTEModel(encoder, head, spec.windows)
