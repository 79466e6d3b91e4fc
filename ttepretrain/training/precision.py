"""fp32 or bf16: the choice, and the check behind it."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from ttepretrain.log import log
from ttepretrain.models.model import ScanModel

MAX_DIFFERENCE = 0.03  # relative; right kernels stay near 0.003
LONGEST_AXIS = 8  # of a map in the self-test on CPUs; wrong kernels are those of maps shorter than a kernel


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
        difference, where = _worst_of_maps(model, shape_DHW)
    else:
        noise = torch.Generator().manual_seed(0)
        volume_BDHW = torch.randint(-1000, 1000, (2, *shape_DHW), generator=noise, dtype=torch.int16).to(device)
        difference, where = bf16_difference(model, volume_BDHW), "a layer"
    if difference <= MAX_DIFFERENCE:
        return "bf16"
    log.warning("bf16 is off by %.1f%% on this device in %s; training in fp32", 100 * difference, where)
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


def _worst_of_maps(model: HasEncoder, shape_DHW: Sequence[int]) -> tuple[float, str]:
    """Largest difference over the maps that layers get from volumes of this shape, and the layer and map it is of.

    The shapes come from a pass without data, so that every axis shorter than a kernel is the real one. Axes longer
    than LONGEST_AXIS are cut, for time: 160 x 224 x 224 takes seconds, not minutes.
    """
    layers = dict(model.encoder.named_modules())
    noise = torch.Generator().manual_seed(0)
    worst, where, seen = 0.0, "", set()
    for name, shape in _input_shapes(model, shape_DHW):
        layer = layers[name]
        assert isinstance(layer, nn.Conv3d | nn.Linear)
        axes = slice(2, None) if isinstance(layer, nn.Conv3d) else slice(0, -1)
        cut = list(shape)
        longest = max(LONGEST_AXIS, *layer.kernel_size) if isinstance(layer, nn.Conv3d) else LONGEST_AXIS
        cut[axes] = [min(size, longest) for size in shape[axes]]
        options = (layer.stride, layer.padding, layer.groups, layer.dilation) if isinstance(layer, nn.Conv3d) else ()
        kind = (type(layer), layer.weight.shape, options, tuple(cut))
        if kind in seen:
            continue
        seen.add(kind)
        x = torch.randn(cut, generator=noise)
        exact, rounded = (_output_and_gradients(layer, x, bf16) for bf16 in (False, True))
        for a, b in zip(exact, rounded):
            difference = float((b - a).norm() / a.norm())
            if not math.isfinite(difference):
                difference = math.inf
            if difference > worst:
                worst, where = difference, f"{name} ({' x '.join(map(str, shape[axes]))})"
    return worst, where


def _input_shapes(model: HasEncoder, shape_DHW: Sequence[int]) -> list[tuple[str, torch.Size]]:
    """Name and input shape of every convolution and linear layer, for two volumes, in order of use."""
    shadow = copy.deepcopy(model)
    shadow.encoder.to("meta").eval()
    found: list[tuple[str, torch.Size]] = []
    for name, layer in shadow.encoder.named_modules():
        if isinstance(layer, nn.Conv3d | nn.Linear):
            layer.register_forward_hook(lambda _, inputs, __, name=name: found.append((name, inputs[0].shape)))
    with torch.no_grad():
        shadow.features(torch.empty((2, *shape_DHW), dtype=torch.int16, device="meta"))
    return found


@torch.enable_grad()
def _output_and_gradients(layer: nn.Conv3d | nn.Linear, x: Tensor, bf16: bool) -> list[Tensor]:
    x = x.detach().requires_grad_()
    with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
        y = layer.forward(x)  # not its call: that runs the hook
    # Positive: under signs that cancel, inputs that are alike (tokens after attention) leave nothing but rounding.
    pattern = 1.5 + torch.linspace(-8, 8, y.numel(), device=y.device).sin().view_as(y)
    gradients = torch.autograd.grad((y.float() * pattern).sum(), [x, layer.weight])
    return [y.detach().float(), *gradients]
