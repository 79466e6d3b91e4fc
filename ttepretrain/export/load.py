"""Load an export: the whole model, or its encoder behind the preprocessing it was trained with."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from ttepretrain.errors import ConfigError, ExportError, IntegrityError
from ttepretrain.export.check import check_features
from ttepretrain.export.embedder import Embedder
from ttepretrain.export.folder import ENCODER, Export, read_export, read_weights
from ttepretrain.models.config import ModelConfig
from ttepretrain.models.encoder import Encoder, build_encoder
from ttepretrain.models.model import TTEModel, build_model
from ttepretrain.models.unallocated import Unallocated
from ttepretrain.models.weights import load_strict, refuse_other
from ttepretrain.volume.spec import PREPROCESS_VERSION, VolumeSpec

_TYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2, "I16": torch.int16, "U16": torch.uint16, "F16": torch.float16,
    "BF16": torch.bfloat16, "I32": torch.int32, "U32": torch.uint32, "F32": torch.float32, "I64": torch.int64,
    "U64": torch.uint64, "F64": torch.float64,
}  # fmt: skip


def load_model(folder: Path | str) -> TTEModel:
    """The exported model in eval mode, bit for bit. Raises ExportError (a ValueError) unless every weight matches, for
    another preprocessing version, and where MONAI or torch make other features of the same weights.

    Raises ConfigError for an export of an arm without hazards.
    """
    export = _read_current(folder)
    if export.arm != "tte":
        raise ConfigError(f"{folder} is an export of arm {export.arm}: an encoder without hazards; use load_encoder")
    return _model_of(export)


def load_encoder(folder: Path | str, device: str = "cpu") -> Embedder:
    """Embedder of scans with the exported encoder and its own preprocessing. Raises ExportError as load_model."""
    export = _read_current(folder)
    if export.arm == "tte":
        return Embedder(_model_of(export).encoder, export.spec, device)
    with _refused():
        encoder = encoder_of(export.model, export.spec, read_weights(export), str(export.folder))
    check_features(encoder, export)
    return Embedder(encoder, export.spec, device)


def _model_of(export: Export) -> TTEModel:
    with _refused():
        model = _build(export)
        assert isinstance(model, TTEModel)
        load_strict(model, read_weights(export), str(export.folder))
    check_features(model.eval().encoder, export)
    return model


def _build(export: Export) -> TTEModel | Encoder:
    """The network that an export describes, with random weights."""
    if export.arm == "tte":
        bias_TK = torch.zeros(export.tasks.num_bins, export.tasks.num_tasks)
        return build_model(export.model, export.spec, bias_TK, seed=0)
    return build_encoder(export.model, export.spec.num_channels, seed=0, spacing_mm=export.spec.spacing_mm)


def _check_fit(export: Export) -> None:
    """ExportError where the file has other weights than the network has; nothing of either is allocated."""
    with Unallocated():
        network = _build(export)
    encoder = network.encoder if isinstance(network, TTEModel) else network
    if encoder.feature_dim != export.feature_dim:
        raise ExportError(
            f"{export.folder} is no export: config.json: feature_dim must be {encoder.feature_dim}, as of "
            f"{export.model.encoder}; got {export.feature_dim}"
        )
    prefix = "" if isinstance(network, TTEModel) else ENCODER
    own = {prefix + name: tensor for name, tensor in network.state_dict().items()}
    stored = {name: torch.empty(t.shape, dtype=_TYPES[t.dtype], device="meta") for name, t in export.tensors.items()}
    with _refused():
        refuse_other(own, stored, str(export.folder))
    if min(export.spec.shape_DHW) < encoder.min_voxels:
        raise ExportError(
            f"{export.folder} is no export: config.json: volume.shape_DHW must be at least {encoder.min_voxels} per "
            f"axis for {export.model.encoder}; got {list(export.spec.shape_DHW)}"
        )


@contextmanager
def _refused() -> Iterator[None]:
    """What is wrong with the weights as an ExportError, which is a ValueError too."""
    try:
        yield
    except ExportError:
        raise
    except IntegrityError as error:
        raise ExportError(str(error)) from None


def encoder_of(config: ModelConfig, spec: VolumeSpec, weights: dict[str, Tensor], origin: str) -> Encoder:
    """The encoder with an export's weights, in eval mode. Raises IntegrityError, naming the origin, on a mismatch."""
    config = dataclasses.replace(config, init="random")
    encoder = build_encoder(config, spec.num_channels, seed=0, spacing_mm=spec.spacing_mm)
    load_strict(encoder, {name.removeprefix(ENCODER): tensor for name, tensor in weights.items()}, origin)
    return encoder.eval()


def _read_current(folder: Path | str) -> Export:
    """The export; ExportError where this release would prepare its volumes otherwise, or the weights do not fit."""
    export = read_export(Path(folder))
    if export.preprocess_version != PREPROCESS_VERSION:
        raise ExportError(
            f"{export.folder} was trained on preprocessing version {export.preprocess_version}, this release has "
            f"{PREPROCESS_VERSION}; use ttepretrain {export.versions['ttepretrain']}"
        )
    _check_fit(export)
    return export
