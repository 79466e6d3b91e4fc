"""What an export folder holds, read only when every checksum holds. No file in it can run code.

export/
  model.safetensors   all weights, fp32; of an arm other than tte the encoder's alone
  config.json         arm, encoder, head, volume spec, provenance, versions, features of a reference volume
  tasks.json          TaskSet; descriptions of open vocabularies only, unless asked for
  manifest.json       sha256 of the three files above
  README.md           model card; not in the manifest, for the publisher completes it
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ttepretrain.errors import IntegrityError
from ttepretrain.files import sha256_of
from ttepretrain.models.config import ModelConfig
from ttepretrain.tasks import TaskSet
from ttepretrain.volume.spec import VolumeSpec

SCHEMA_VERSION = 1
CHECKED = ("model.safetensors", "config.json", "tasks.json")
ENCODER = "encoder."  # prefix of the encoder's weights


@dataclass(frozen=True)
class Export:
    """The description of a verified export."""

    folder: Path
    arm: str  # what it was trained on (train.arm)
    model: ModelConfig  # init is always random here: the weights are in the folder
    feature_dim: int
    spec: VolumeSpec
    preprocess_version: int
    tasks: TaskSet
    provenance: dict
    synthetic: bool
    follow_up_days: float | None  # for which enough train subjects were followed; None: not stored
    versions: dict[str, str]
    reference_features: tuple[float, ...] | None  # check.py; None: an export from before they were stored
    fingerprint: str  # sha256 of the manifest: equal only for equal weights, configuration and tasks


def read_export(folder: Path) -> Export:
    """Verified description of an export. Raises IntegrityError for a missing, damaged or newer one."""
    folder = Path(folder)
    if not folder.exists() and previous_of(folder).exists():  # a writer died between its two renames
        folder = previous_of(folder)
    try:
        manifest = (folder / "manifest.json").read_bytes()
        expected = json.loads(manifest)["sha256"]
        for name in CHECKED:
            if sha256_of(folder / name) != expected[name]:
                raise IntegrityError(f"{folder / name} does not match manifest.json; copy the export again")
        config = json.loads((folder / "config.json").read_bytes())
        if config["schema_version"] > SCHEMA_VERSION:
            raise IntegrityError(
                f"{folder}: schema_version {config['schema_version']}, this release reads {SCHEMA_VERSION}; update it"
            )
        followed = config["provenance"].get("follow_up_days")
        return Export(
            folder=folder,
            arm=config.get("arm", "tte"),
            model=ModelConfig.from_json(config["model"] | {"init": "random"}),
            feature_dim=config["feature_dim"],
            spec=VolumeSpec.from_json(config["volume"]),
            preprocess_version=config["volume"]["preprocess_version"],
            tasks=TaskSet.load(folder / "tasks.json"),
            provenance=config["provenance"],
            synthetic=bool(config["provenance"]["synthetic"]),
            follow_up_days=None if followed is None else float(followed),
            versions=config["versions"],
            reference_features=_floats(config.get("reference_features"), config["feature_dim"]),
            fingerprint=hashlib.sha256(manifest).hexdigest(),
        )
    except OSError as error:
        raise IntegrityError(f"{folder} is no complete export: {Path(error.filename).name}: {error.strerror}") from None
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise IntegrityError(f"{folder} is no export: {error!r}") from None


def _floats(text: str | None, count: int) -> tuple[float, ...] | None:
    numbers = None if text is None else tuple(map(float, text.split()))
    if numbers is not None and len(numbers) != count:
        raise ValueError(f"reference_features has {len(numbers)} numbers for {count} features")
    return numbers


def read_weights(export: Export) -> dict[str, Tensor]:
    """All tensors of the export, on the CPU."""
    try:
        return load_file(export.folder / "model.safetensors")
    except SafetensorError as error:
        raise IntegrityError(f"{export.folder / 'model.safetensors'} cannot be read: {error}") from None


def previous_of(folder: Path) -> Path:
    """Where the export lies while a writer swaps folders."""
    return folder.with_name(f".{folder.name}.previous")
