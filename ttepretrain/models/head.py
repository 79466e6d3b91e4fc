"""Head: features -> log hazards or logits, a rank-D factorisation of F*T -> K.

B batch, F features, T bins, D head dimension, K tasks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FactorisedHead(nn.Module):
    """Linear(F, T*D) -> RMSNorm(D) -> one Linear(D, K) for all bins, plus a bias table [T, K].

    The last linear starts at zero, so the first output is the table, exactly. The first starts alike in all bins:
    what it learns first are proportional hazards. Drawn apart, T random projections share one last linear, and a
    constant hazard ratio has to be unlearnt from T - 1 of them.
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
        first_bin_DF = torch.randn(head_dim, feature_dim, generator=generator) * feature_dim**-0.5
        with torch.no_grad():
            self.expand.weight.copy_(first_bin_DF.repeat(num_bins, 1))
        nn.init.zeros_(self.expand.bias)
        nn.init.zeros_(self.project.weight)
        self.bias_TK = nn.Parameter(bias_TK.detach().clone().float())

    @torch.no_grad()
    def standardise(self, mean_F: Tensor, std_F: Tensor) -> None:
        """Fold the mean and standard deviation of features over some studies into the first linear's start.

        Pooled features of an untrained encoder differ between studies by a tenth of their mean; without this RMSNorm
        passes on the mean and almost nothing about the study. A feature that does not vary is left out.
        """
        self.expand.weight.mul_(torch.where(std_F > 1e-6, 1 / std_F.clamp(min=1e-6), 0.0))
        self.expand.bias.copy_(-self.expand.weight @ mean_F)

    def forward(self, features_BF: Tensor) -> Tensor:
        """[B, T, K], fp32 also under autocast: bf16 would round a log hazard to steps of 6 % of the hazard."""
        with torch.autocast(features_BF.device.type, enabled=False):
            hidden_BTD = self.expand(features_BF.float()).unflatten(1, (self.num_bins, -1))
            return self.project(self.norm(hidden_BTD)) + self.bias_TK


class PiecewiseExponentialHead(FactorisedHead):
    """Its output is the log hazard per day."""
