"""The weights that `model.init` names: of an export of ours, or of a weight file. models/initial.py loads them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from torch import Tensor

from ttepretrain.documents import open_regular
from ttepretrain.errors import ConfigError
from ttepretrain.export.folder import ENCODER, read_export, read_weights
from ttepretrain.log import log
from ttepretrain.models.config import MOST_WEIGHT_BYTES, ModelConfig
from ttepretrain.models.initial import read_weight_file


def read_initial_weights(config: ModelConfig) -> dict[str, Tensor] | None:
    """Tensors to hand to `build_encoder`, with the names that they have in their file; None for random weights.

    Raises ConfigError for an export of another encoder, IntegrityError for a damaged file.
    """
    if config.init_kind == "random":
        return None
    return _weights_of_export(config) if config.init_kind == "export" else read_weight_file(_file_of(config))


def initial_digest(config: ModelConfig) -> str | None:
    """sha256 of the file that `config.init` names, of an export's manifest; None for random weights."""
    if config.init_kind == "random":
        return None
    path = Path(config.init) / "manifest.json" if config.init_kind == "export" else _file_of(config)
    try:
        with open_regular(path, MOST_WEIGHT_BYTES) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except ConfigError as error:
        raise ConfigError(f"model.init: {error}") from None
    except OSError as error:
        raise ConfigError(f"model.init cannot be read: {error.strerror}") from None


def _file_of(config: ModelConfig) -> Path:
    return Path(config.init.partition(":")[2])


def _weights_of_export(config: ModelConfig) -> dict[str, Tensor]:
    export = read_export(Path(config.init))
    for key in ("encoder", "norm", "vit") if config.encoder == "vit_liere" else ("encoder", "norm"):
        ours, theirs = getattr(config, key), getattr(export.model, key)
        if ours != theirs:
            raise ConfigError(f"model.{key} is {ours!r} and the export in model.init has {theirs!r}; make them equal")
    # Other windows of the same number load without an error, and so does another preprocessing: state them.
    log.info(
        "model.init: trained on HU windows %s at %s mm, preprocessing version %d",
        export.spec.windows, export.spec.spacing_mm, export.preprocess_version,
    )  # fmt: skip
    return {k.removeprefix(ENCODER): v for k, v in read_weights(export).items() if k.startswith(ENCODER)}
