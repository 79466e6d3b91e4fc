"""Head: features -> log hazards, a rank-D factorisation of F*T -> K.

B batch, F features, T bins, D head dimension, K tasks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PiecewiseExponentialHead(nn.Module):
    """Linear(F, T*D) -> RMSNorm(D) -> one Linear(D, K) for all bins, plus a bias table [T, K].

    The last linear starts at zero, so the first log hazards are the table, exactly.
    """

    def __init__(self, feature_dim: int, head_dim: int, bias_TK: Tensor, seed: int):
        super().__init__()
        num_bins, num_tasks = bias_TK.shape
        self.num_bins = num_bins
        with torch.random.fork_rng(devices=[]):
            self.expand = nn.Linear(feature_dim, num_bins * head_dim)
            self.norm = nn.RMSNorm(head_dim, eps=1e-6)
            self.project = nn.Linear(head_dim, num_tasks, bias=False)
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(self.expand.weight, std=feature_dim**-0.5, generator=generator)
        nn.init.zeros_(self.expand.bias)
        nn.init.zeros_(self.project.weight)
        self.bias_TK = nn.Parameter(bias_TK.detach().clone().float())

    def forward(self, features_BF: Tensor) -> Tensor:
        """Log hazard per day [B, T, K], fp32 also under autocast: bf16 would round it to steps of 6 % of a hazard."""
        with torch.autocast(features_BF.device.type, enabled=False):
            hidden_BTD = self.expand(features_BF.float()).unflatten(1, (self.num_bins, -1))
            return self.project(self.norm(hidden_BTD)) + self.bias_TK
