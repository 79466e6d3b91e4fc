"""Scans on disk to batches of volumes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ttepretrain.commands.scans import Scan
from ttepretrain.errors import BadStudy
from ttepretrain.volume.preprocess import preprocess_ct
from ttepretrain.volume.spec import VolumeSpec


def volumes_of(
    scans: Sequence[Scan], spec: VolumeSpec, batch_size: int, refused: dict[str, BadStudy]
) -> Iterator[tuple[list[str], Tensor]]:
    """Keys and int16 HU [B, D, H, W], a batch at a time; scans that cannot be used go to `refused` by key."""
    volumes: dict[str, np.ndarray] = {}
    for scan in scans:
        try:
            volumes[scan.key] = preprocess_ct(scan.path, spec).hu_DHW
        except BadStudy as error:
            refused[scan.key] = error
        if len(volumes) == batch_size or (volumes and scan is scans[-1]):
            yield list(volumes), torch.from_numpy(np.stack(list(volumes.values())))
            volumes = {}
