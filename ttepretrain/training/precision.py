"""fp32 or bf16: the choice, and the check behind it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from ttepretrain.log import log
from ttepretrain.models.model import ScanModel

MAX_DIFFERENCE = 0.03  # relative; right kernels stay near 0.003


class HasEncoder(Protocol):
    """What the self-test runs: a ScanModel or an Embedder."""

    @property
    def encoder(self) -> nn.Module: ...
    def features(self, volume_BDHW: Tensor) -> Tensor: ...


class MixedPrecision(nn.Module):
    """`model` with its encoder's arithmetic in bf16 and its weights in fp32.

    Autocast rather than DeepSpeed's bf16 mode: that one also rounds the head's table of log hazards, in steps of 6 %.
    """

    def __init__(self, model: ScanModel, bf16: bool):
        super().__init__()
        self.model, self.bf16 = model, bf16

    def forward(self, volume_BDHW: Tensor) -> Tensor:
        with self._autocast(volume_BDHW):
            return self.model(volume_BDHW)

    def features(self, volume_BDHW: Tensor) -> Tensor:
        with self._autocast(volume_BDHW):
            return self.model.features(volume_BDHW)

    def _autocast(self, volume_BDHW: Tensor) -> torch.autocast:
        return torch.autocast(volume_BDHW.device.type, torch.bfloat16, enabled=self.bf16)


def choose_precision(precision: str, model: HasEncoder, shape_DHW: Sequence[int], device: torch.device) -> str:
    """fp32 or bf16. `auto` is bf16 where the device computes it natively and agrees with fp32 on volumes of noise."""
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
    log.warning("bf16 is off by %.1f%% on this device; training in fp32", 100 * difference)
    return "fp32"


def _native_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported()


def bf16_difference(model: HasEncoder, volume_BDHW: Tensor) -> float:
    """Largest relative difference between bf16 and fp32 over the encoder's convolutions and linear layers.

    Of the output and both gradients. Each kernel on its own input, for through a deep network right ones drift apart
    too, and one layer of every shape. Wrong ones exist and raise no error: cuDNN 9.10.2, oneDNN for maps of 2 x 2 x 2
    voxels. The model is left as it was.
    """
    differences: list[float] = []
    seen: set[tuple] = set()

    def compare(layer: nn.Conv3d | nn.Linear, inputs: tuple[Tensor], output: Tensor) -> None:
        kind = (type(layer), layer.weight.shape, inputs[0].shape, output.shape)
        if kind in seen:
            return
        seen.add(kind)
        exact, rounded = (_output_and_gradients(layer, inputs[0], bf16) for bf16 in (False, True))
        differences.extend(float((b - a).norm() / a.norm()) for a, b in zip(exact, rounded))

    layers = [m for m in model.encoder.modules() if isinstance(m, nn.Conv3d | nn.Linear)]
    hooks = [layer.register_forward_hook(compare) for layer in layers]
    training = model.encoder.training
    model.encoder.eval()  # noise is nothing that BatchNorm should keep statistics of
    try:
        with torch.no_grad():
            model.features(volume_BDHW)
    finally:
        model.encoder.train(training)
        for hook in hooks:
            hook.remove()
    return max(d if math.isfinite(d) else math.inf for d in differences)


@torch.enable_grad()
def _output_and_gradients(layer: nn.Conv3d | nn.Linear, x: Tensor, bf16: bool) -> list[Tensor]:
    x = x.detach().requires_grad_()
    with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
        y = layer.forward(x)  # not its call: that runs the hook
    # Positive: under signs that cancel, inputs that are alike (tokens after attention) leave nothing but rounding.
    pattern = 1.5 + torch.linspace(-8, 8, y.numel(), device=y.device).sin().view_as(y)
    gradients = torch.autograd.grad((y.float() * pattern).sum(), [x, layer.weight])
    return [y.detach().float(), *gradients]
