"""One encoder's step under one setting, timed; and the device's best. B batch, D H W slices rows columns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ttepretrain.models.config import ModelConfig
from ttepretrain.models.encoder import build_encoder
from ttepretrain.models.model import ScanModel
from ttepretrain.training.precision import MixedPrecision
from ttepretrain.volume.spec import SOFT_TISSUE

WARM_UP = 2


@dataclass(frozen=True)
class Setting:
    """The defaults are what the trainer does."""

    precision: str = "bf16"
    norm: str = "group"
    channels_last: bool = True  # of the encoder's input
    kernels_last: bool = False  # and of its kernels
    compiled: bool = False
    deterministic: bool = True  # cuDNN's kernels
    autotuned: bool = False  # cuDNN tries its kernels first
    anomalies: bool = False  # autograd's anomaly mode


def network_of(encoder: str, setting: Setting) -> MixedPrecision:
    """HU in, features out, as the trainer runs it."""
    built = build_encoder(ModelConfig(encoder, norm=setting.norm), in_channels=1, seed=0)
    built.channels_last = built.channels_last and setting.channels_last
    return MixedPrecision(ScanModel(built, nn.Identity(), (SOFT_TISSUE,)), setting.precision == "bf16")


def measure_step(
    encoder: str, shape_DHW: Sequence[int], batch: int, setting: Setting, device: str, repeats: int
) -> dict:
    """Seconds of forward and backward, the first one's, and peak memory in bytes (null on a CPU)."""
    network = network_of(encoder, setting).train().to(device)
    if setting.kernels_last:
        network.to(memory_format=torch.channels_last_3d)
    noise = torch.Generator().manual_seed(0)
    hu_BDHW = torch.randint(-1000, 1000, (batch, *shape_DHW), generator=noise, dtype=torch.int16).to(device)
    run = torch.compile(network) if setting.compiled else network

    def step() -> None:
        network.zero_grad(set_to_none=True)
        run(hu_BDHW).sum().backward()

    with _settings(setting), _memory_given_back(device):
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        [first] = seconds_of(step, 1, device)
        seconds_of(step, WARM_UP - 1, device)
        seconds = np.array(seconds_of(step, repeats, device))
        return {
            "seconds": {
                name: float(f"{value:.4g}")
                for name, value in zip(("minimum", "median", "maximum"), np.quantile(seconds, [0, 0.5, 1]))
            },
            "first_seconds": round(first, 3),
            "peak_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None,
        }


@cache
def step_teraflop(encoder: str, shape_DHW: Sequence[int], norm: str) -> float:
    """Forward and backward of one CT: 2 per multiply-add of convolutions and matrix products, attention as matrices."""
    network = network_of(encoder, Setting(precision="fp32", norm=norm))
    counter = FlopCounterMode(display=False)
    with FakeTensorMode(allow_non_fake_inputs=True), sdpa_kernel(SDPBackend.MATH), counter:
        network(torch.empty(1, *shape_DHW, dtype=torch.int16)).sum().backward()
    return counter.get_total_flops() / 1e12


def matmul_tflops(device: str, sizes: Sequence[int]) -> dict[str, float]:
    """Best of 20 products of two n x n matrices in bf16, per n."""
    found = {}
    for size in sizes:
        pair = torch.randn(2, size, size, device=device).bfloat16()
        best = min(seconds_of(partial(torch.matmul, *pair), 23, device)[3:])
        found[str(size)] = float(f"{2 * size**3 / best / 1e12:.4g}")
    return found


def seconds_of(call: Callable, repeats: int, device: str) -> list[float]:
    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    taken = []
    for _ in range(repeats):
        wait()
        start = time.perf_counter()
        call()
        wait()
        taken.append(time.perf_counter() - start)
    return taken


@contextmanager
def _settings(setting: Setting) -> Iterator[None]:
    with (
        torch.backends.cudnn.flags(
            enabled=True, benchmark=setting.autotuned, deterministic=setting.deterministic, allow_tf32=True
        ),
        torch.autograd.set_detect_anomaly(setting.anomalies, check_nan=setting.anomalies),
    ):
        yield


@contextmanager
def _memory_given_back(device: str) -> Iterator[None]:
    """What one measurement held is free for the next, also after it ran out of memory or was compiled."""
    try:
        yield
    finally:
        torch.compiler.reset()
        if device == "cuda":
            torch.cuda.empty_cache()
