"""Load an export: the whole model, or its encoder behind the preprocessing it was trained with."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from ttepretrain.errors import ConfigError, IntegrityError
from ttepretrain.export.check import check_features
from ttepretrain.export.embedder import Embedder
from ttepretrain.export.folder import ENCODER, Export, read_export, read_weights
from ttepretrain.models.config import ModelConfig
from ttepretrain.models.encoder import Encoder, build_encoder
from ttepretrain.models.model import TTEModel, build_model
from ttepretrain.models.weights import load_strict
from ttepretrain.volume.spec import PREPROCESS_VERSION, VolumeSpec


def load_model(folder: Path | str) -> TTEModel:
    """The exported model in eval mode, bit for bit. Raises IntegrityError unless every weight matches, for another
    preprocessing version, and where MONAI or torch make other features of the same weights.

    Raises ConfigError for an export of an arm without hazards.
    """
    export = _read_current(folder)
    if export.arm != "tte":
        raise ConfigError(f"{folder} is an export of arm {export.arm}: an encoder without hazards; use load_encoder")
    bias_TK = torch.zeros(export.tasks.num_bins, export.tasks.num_tasks)
    model = build_model(export.model, export.spec, bias_TK, seed=0)
    load_strict(model, read_weights(export), str(export.folder))
    check_features(model.eval().encoder, export)
    return model


def load_encoder(folder: Path | str, device: str = "cpu") -> Embedder:
    """Embedder of scans with the exported encoder and its own preprocessing."""
    export = _read_current(folder)
    if export.arm == "tte":
        return Embedder(load_model(folder).encoder, export.spec, device)
    encoder = encoder_of(export.model, export.spec, read_weights(export), str(export.folder))
    check_features(encoder, export)
    return Embedder(encoder, export.spec, device)


def encoder_of(config: ModelConfig, spec: VolumeSpec, weights: dict[str, Tensor], origin: str) -> Encoder:
    """The encoder with an export's weights, in eval mode. Raises IntegrityError, naming the origin, on a mismatch."""
    config = dataclasses.replace(config, init="random")
    encoder = build_encoder(config, spec.num_channels, seed=0, spacing_mm=spec.spacing_mm)
    load_strict(encoder, {name.removeprefix(ENCODER): tensor for name, tensor in weights.items()}, origin)
    return encoder.eval()


def _read_current(folder: Path | str) -> Export:
    """The export; IntegrityError where this release would prepare its volumes otherwise."""
    export = read_export(Path(folder))
    if export.preprocess_version != PREPROCESS_VERSION:
        raise IntegrityError(
            f"{export.folder} was trained on preprocessing version {export.preprocess_version}, this release has "
            f"{PREPROCESS_VERSION}; use ttepretrain {export.versions['ttepretrain']}"
        )
    return export
