"""Batch: the tensors one training step consumes.

B studies, D H W slices rows columns, N observed events of the batch, M history entries, V codes of the visits.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from ttepretrain.labels import LabelTable


@dataclass(frozen=True)
class Batch:
    volume_BDHW: Tensor  # int16 HU on the spec's grid
    study_rank_B: Tensor  # int64: rank of study_id among all labelled studies; seeds augmentation
    censor_days_B: Tensor  # float32
    event_row_N: Tensor  # int64: which of the B rows
    event_task_N: Tensor  # int64: which of the K tasks; a (row, task) pair occurs at most once
    event_days_N: Tensor  # float32, blackout < days <= censor
    history_row_M: Tensor  # int64
    history_task_M: Tensor  # int64; a (row, task) pair occurs at most once
    visit_row_V: Tensor  # int64
    visit_task_V: Tensor  # int64: tasks coded in the scan's own visit

    @classmethod
    def collate(cls, volume_BDHW: Tensor, study_rank_B: Tensor, labels: LabelTable) -> Batch:
        """Volumes with the labels of the same B studies, in the same order."""
        return cls(
            volume_BDHW=volume_BDHW,
            study_rank_B=study_rank_B,
            censor_days_B=torch.as_tensor(labels.censor_days, dtype=torch.float32),
            event_row_N=torch.as_tensor(labels.events.row, dtype=torch.int64),
            event_task_N=torch.as_tensor(labels.events.index, dtype=torch.int64),
            event_days_N=torch.as_tensor(labels.event_days, dtype=torch.float32),
            history_row_M=torch.as_tensor(labels.history.row, dtype=torch.int64),
            history_task_M=torch.as_tensor(labels.history.index, dtype=torch.int64),
            visit_row_V=torch.as_tensor(labels.visit.row, dtype=torch.int64),
            visit_task_V=torch.as_tensor(labels.visit.index, dtype=torch.int64),
        )

    def to(self, device: torch.device | str) -> Batch:
        return replace(self, **{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)})
