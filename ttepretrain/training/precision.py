"""fp32 or bf16: the choice, and the check behind it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn

MAX_DIFFERENCE = 0.05  # relative, of features and gradients; right kernels stay near 0.01


class MixedPrecision(nn.Module):
    """`model` with its encoder's arithmetic in bf16 and its weights in fp32.

    Autocast rather than DeepSpeed's bf16 mode: that one also rounds the head's table of log hazards, in steps of 6 %.
    """

    def __init__(self, model: nn.Module, bf16: bool):
        super().__init__()
        self.model, self.bf16 = model, bf16

    def forward(self, volume_BDHW: Tensor) -> Tensor:
        with torch.autocast(volume_BDHW.device.type, torch.bfloat16, enabled=self.bf16):
            return self.model(volume_BDHW)


def choose_precision(precision: str, model: nn.Module, shape_DHW: Sequence[int], device: torch.device) -> str:
    """fp32 or bf16. `auto` is bf16 where the device computes it natively and agrees with fp32 on volumes of noise.

    On two cores with AVX-512 BF16 a ResNet-18 step takes 0.6 of fp32's time (November 2026).
    """
    if precision != "auto":
        return precision
    if not _native_bf16(device):
        return "fp32"
    if device.type == "cpu":
        shape_DHW = [min(size, 64) for size in shape_DHW]  # seconds, not minutes
    noise = torch.Generator().manual_seed(0)
    volume_BDHW = torch.randint(-1000, 1000, (2, *shape_DHW), generator=noise, dtype=torch.int16).to(device)
    difference = bf16_difference(model, volume_BDHW)
    if difference <= MAX_DIFFERENCE:
        return "bf16"
    print(f"warning: bf16 is off by {difference:.1%} on this device; training in fp32", file=sys.stderr, flush=True)
    return "fp32"


def _native_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported()


def bf16_difference(model: nn.Module, volume_BDHW: Tensor) -> float:
    """Largest relative difference between bf16 and fp32, over the features and every weight's gradient norm-wise.

    Some releases of cuDNN compute bf16 3D convolutions wrongly without an error.
    """
    features, gradients = zip(*(_features_and_gradient(model, volume_BDHW, bf16) for bf16 in (False, True)))
    pairs = [features, gradients]
    return max(float((b - a).norm() / a.norm()) for a, b in pairs)


def _features_and_gradient(model: nn.Module, volume_BDHW: Tensor, bf16: bool) -> tuple[Tensor, Tensor]:
    with torch.autocast(volume_BDHW.device.type, torch.bfloat16, enabled=bf16):
        features_BF = model.features(volume_BDHW)
    weights = [p for p in model.encoder.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(features_BF.float().square().mean(), weights)
    return features_BF.detach().float(), torch.cat([g.flatten() for g in gradients])
