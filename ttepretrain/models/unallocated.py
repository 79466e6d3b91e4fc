"""Modules without memory: what a model's weights would be called and measure, in a fifth of a second."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

FILLED = frozenset({torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn})  # what layers make weights with


class Unallocated(TorchFunctionMode):
    """Weights that layers make in the block have names, shapes and dtypes, and no memory (device meta).

    Not `torch.device("meta")`: MONAI's SwinTransformer reads numbers from a tensor while it is built.
    """

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        if func in FILLED:
            options["device"] = "meta"
            options.pop("generator", None)
        return func(*args, **options)
