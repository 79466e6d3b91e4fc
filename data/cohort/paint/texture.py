"""Random fields for the phantom: windows of blocks made once per process, so that a CT draws no fields of its own."""

from __future__ import annotations

from functools import cache

import numpy as np


@cache
def _noise_block(grain: float) -> np.ndarray:
    """Smooth standard normal field, float32, periodic; `grain`: three correlation lengths in voxels."""
    rng = np.random.default_rng(1905)
    shape = (96, 144, 144)
    frequency = np.sqrt(sum(np.square(f) for f in np.meshgrid(*(np.fft.fftfreq(n) for n in shape), indexing="ij")))
    spectrum = np.fft.fftn(rng.standard_normal(shape)) * np.exp(-np.square(frequency * grain))
    field = np.fft.ifftn(spectrum).real
    return ((field - field.mean()) / field.std()).astype(np.float32)


def noise_field(rng: np.random.Generator, shape_DHW: tuple[int, int, int], grain: float) -> np.ndarray:
    """Window of the smooth field at a random place, wrapped and mirrored at random."""
    block = _noise_block(grain)
    start = [int(rng.integers(n)) for n in block.shape]
    mirror = [int(rng.choice([-1, 1])) for _ in range(3)]
    index = [(s + m * np.arange(n)) % b for s, m, n, b in zip(start, mirror, shape_DHW, block.shape)]
    return block[np.ix_(*index)]


def normal_quantile(probability: np.ndarray) -> np.ndarray:
    """Standard normal quantile, good to .02 in the range used (logistic approximation), float32."""
    p = np.clip(probability, 0.02, 0.9995)
    return (np.log(p / (1 - p)) / np.float32(1.70)).astype(np.float32)


@cache
def _grain() -> np.ndarray:
    """White noise, float32; see `noise_window`."""
    return np.random.default_rng(1906).standard_normal((128, 160, 160)).astype(np.float32)


def noise_window(rng: np.random.Generator, shape_DHW: tuple[int, int, int]) -> np.ndarray:
    """White noise of unit variance: a random window of one block, mirrored at random."""
    block = _grain()
    start = [int(rng.integers(b - n + 1)) for b, n in zip(block.shape, shape_DHW)]
    mirror = [int(rng.choice([-1, 1])) for _ in range(3)]
    window = tuple(slice(s, s + n) for s, n in zip(start, shape_DHW))
    return block[window][tuple(slice(None, None, m) for m in mirror)]
