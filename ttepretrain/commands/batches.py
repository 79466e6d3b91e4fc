"""Batches of volumes from scans on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ttepretrain.commands.scans import Scan
from ttepretrain.errors import BadStudy
from ttepretrain.volume.preprocess import preprocess_ct
from ttepretrain.volume.refusal import read_or_refuse
from ttepretrain.volume.spec import VolumeSpec


def volumes_of(
    scans: Sequence[Scan], spec: VolumeSpec, batch_size: int, refused: dict[str, BadStudy]
) -> Iterator[tuple[list[str], Tensor]]:
    """Keys and int16 HU [B, D, H, W] of up to `batch_size` scans at a time. Refused scans are added to `refused`."""
    volumes: dict[str, np.ndarray] = {}
    for scan in scans:
        volume = read_or_refuse(preprocess_ct, scan.path, spec)
        if isinstance(volume, BadStudy):
            refused[scan.key] = volume
        else:
            volumes[scan.key] = volume.hu_DHW
        if len(volumes) == batch_size or (volumes and scan is scans[-1]):
            yield list(volumes), torch.from_numpy(np.stack(list(volumes.values())))
            volumes = {}
