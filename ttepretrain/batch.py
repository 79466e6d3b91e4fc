"""Batch: the tensors one training step consumes.

B studies, D H W slices rows columns, N observed events of the batch, M history entries of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    volume_BDHW: Tensor  # int16 HU on the spec's grid
    study_rank_B: Tensor  # int64: rank of study_id among all labelled studies; seeds augmentation
    censor_days_B: Tensor  # float32
    event_row_N: Tensor  # int64: which of the B rows
    event_task_N: Tensor  # int64: which of the K tasks
    event_days_N: Tensor  # float32, blackout < days <= censor
    history_row_M: Tensor  # int64
    history_task_M: Tensor  # int64

    def to(self, device: torch.device | str) -> Batch:
        return replace(
            self, **{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)}
        )
