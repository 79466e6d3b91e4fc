"""Does an encoder still compute what it computed when it was exported? Its weights are in the export, its code is not:
the installed versions of MONAI and torch build and run it.

F features.
"""

from __future__ import annotations

from importlib.metadata import version

import torch
from torch import Tensor

import ttepretrain
from ttepretrain.errors import ExportError
from ttepretrain.export.folder import Export
from ttepretrain.models.config import REFERENCE_DHW
from ttepretrain.models.encoder import Encoder
from ttepretrain.volume.spec import Window
from ttepretrain.volume.windows import apply_windows

TOLERANCE = 1e-3  # of the features' norm; kernels, threads and double precision differ by 1e-6 (untrained encoders)


def versions() -> dict[str, str]:
    """Versions of the packages that decide an encoder's features."""
    return {"ttepretrain": ttepretrain.__version__, "torch": torch.__version__, "monai": version("monai")}


def reference_features(encoder: Encoder, windows: tuple[Window, ...]) -> Tensor:
    """float32 [F] of one volume made of integers alone; the encoder is on the CPU and in eval mode."""
    d, h, w = torch.meshgrid(*(torch.arange(size) for size in REFERENCE_DHW), indexing="ij")
    hu_DHW = (13 * d * d + 7 * h * w + 29 * w + 3 * h) % 2047 - 1024
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        return encoder.features(apply_windows(hu_DHW[None].to(torch.int16), windows))[0]


def check_features(encoder: Encoder, export: Export) -> None:
    """Raise ExportError where the encoder's features are not finite, or differ from those that its export stores."""
    found = reference_features(encoder, export.spec.windows)
    if not found.isfinite().all():
        raise ExportError(f"{export.folder}: the encoder's features are not finite; copy or export it again")
    if export.reference_features is None:
        return
    expected = torch.tensor(export.reference_features)
    difference, norm = (found - expected).norm(), expected.norm()
    if not difference <= TOLERANCE * norm:
        here = versions()
        exported_with = [f"{name} {version} (here {here.get(name)})" for name, version in export.versions.items()]
        raise ExportError(
            f"{export.folder}: the encoder's features of the reference volume differ by {difference / norm:.1g} of "
            f"their norm from those at its export, {TOLERANCE:g} is allowed; install what it was exported with: "
            + ", ".join(exported_with)
        )
