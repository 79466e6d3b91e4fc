"""Time-to-event pretraining of 3D CT encoders. Public names load on first use: `import ttepretrain` imports no torch.

encoder = ttepretrain.load_encoder("runs/default/pretrain/tte/export")
features_NF = encoder.embed(["scan.nii.gz", "dicom_folder"])
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Embedder": "ttepretrain.export.embedder",
    "load_encoder": "ttepretrain.export.load",
    "load_model": "ttepretrain.export.load",
    "preprocess_ct": "ttepretrain.volume.preprocess",
}
__all__ = ["Embedder", "__version__", "load_encoder", "load_model", "preprocess_ct"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
