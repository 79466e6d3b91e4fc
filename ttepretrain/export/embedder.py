"""Embedder: scans in, features out, through the preprocessing the encoder was trained with.

B batch, D H W slices rows columns, N scans, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ttepretrain.models.encoder import Encoder
from ttepretrain.volume.preprocess import preprocess_ct
from ttepretrain.volume.spec import VolumeSpec
from ttepretrain.volume.windows import apply_windows


class Embedder:
    """Frozen encoder and its volume spec, on one device. `feature_dim` is F. `precision`: fp32 or bf16."""

    def __init__(self, encoder: Encoder, spec: VolumeSpec, device: str = "cpu", precision: str = "fp32"):
        self.spec = spec
        self.feature_dim = encoder.feature_dim
        self.encoder = encoder.to(device).eval()
        self.precision = precision
        self._device = device

    def embed(self, paths: Path | str | Sequence[Path | str], batch_size: int = 4) -> np.ndarray:
        """float32 [N, F] of DICOM folders or NIfTI files. Raises BadStudy for the first scan that cannot be used."""
        paths = [paths] if isinstance(paths, str | Path) else list(paths)
        batches = [self._embed_batch(paths[i : i + batch_size]) for i in range(0, len(paths), batch_size)]
        return np.concatenate([np.empty((0, self.feature_dim), np.float32), *batches])

    def embed_hu(self, volume_BDHW: Tensor) -> Tensor:
        """float32 [B, F], on the CPU, of volumes in HU on the spec's grid (int16, as preprocess_ct gives them)."""
        if volume_BDHW.ndim != 4 or tuple(volume_BDHW.shape[1:]) != self.spec.shape_DHW:
            raise ValueError(f"volume_BDHW must be [B, {self.spec.shape_DHW}]; got {tuple(volume_BDHW.shape)}")
        with torch.inference_mode(), torch.autocast(self._device, torch.bfloat16, enabled=self.precision == "bf16"):
            return self.features(volume_BDHW.to(self._device)).cpu()

    def features(self, volume_BDHW: Tensor) -> Tensor:
        """[B, F] of volumes in HU of any shape, on the embedder's device and in the caller's precision."""
        return self.encoder.features(apply_windows(volume_BDHW, self.spec.windows))

    def _embed_batch(self, paths: Sequence[Path | str]) -> np.ndarray:
        volumes = [preprocess_ct(Path(path), self.spec).hu_DHW for path in paths]
        return self.embed_hu(torch.from_numpy(np.stack(volumes))).numpy()
