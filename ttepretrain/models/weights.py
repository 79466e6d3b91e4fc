"""Strict loading of weights: every key, shape and dtype, or an error that names them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ttepretrain.errors import IntegrityError
from ttepretrain.plain_text import plain

NAMES_SHOWN = 8


def load_strict(module: nn.Module, weights: dict[str, Tensor], origin: str) -> None:
    """Copy `weights` into the module. Raises IntegrityError unless names, shapes and dtypes agree and all is finite."""
    refuse_other(module.state_dict(), weights, origin)
    refuse_not_finite(weights, origin)
    module.load_state_dict(weights, strict=True)


def refuse_other(own: dict[str, Tensor], weights: dict[str, Tensor], origin: str) -> None:
    """Raise IntegrityError that names what is missing, unknown, or of another shape or dtype than our `own`."""
    missing, unknown = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    if missing or unknown:
        matched = len(own) - len(missing)
        raise IntegrityError(
            f"{origin}: {matched} of {len(own)} weights match; missing: {_names(missing)}; unknown: {_names(unknown)}"
        )
    other = [
        f"{name} {str(weights[name].dtype).removeprefix('torch.')}{list(weights[name].shape)}, "
        f"expected {str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
        for name, tensor in own.items()
        if weights[name].shape != tensor.shape or weights[name].dtype != tensor.dtype
    ]
    if other:
        raise IntegrityError(f"{origin}: {len(other)} weights of another shape or dtype: {_names(other)}")


def refuse_not_finite(weights: dict[str, Tensor], origin: str) -> None:
    """Raise IntegrityError that names the weights holding NaN or infinity, or variances below 0."""
    bad = [name for name, tensor in weights.items() if tensor.is_floating_point() and not torch.isfinite(tensor).all()]
    if bad:
        raise IntegrityError(f"{origin}: {len(bad)} weights hold NaN or infinity: {_names(bad)}")
    bad = [name for name, tensor in weights.items() if name.endswith("running_var") and (tensor < 0).any()]
    if bad:
        raise IntegrityError(f"{origin}: {len(bad)} variances are negative: {_names(bad)}")


def _names(names: list[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return (", ".join(plain(name, 200) for name in names[:NAMES_SHOWN]) + more) or "none"
