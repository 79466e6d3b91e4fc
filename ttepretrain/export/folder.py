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
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttepretrain.config import is_of, require, require_choice
from ttepretrain.documents import open_regular, parse_json, read_regular, require_keys, require_shallow
from ttepretrain.errors import ConfigError, ExportError
from ttepretrain.export.header import Stored, read_header
from ttepretrain.models.config import MOST_WEIGHT_BYTES, ModelConfig
from ttepretrain.plain_text import shown
from ttepretrain.tasks import MOST_BYTES as MOST_TASK_BYTES
from ttepretrain.tasks import TaskSet
from ttepretrain.volume.spec import VolumeSpec

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA_VERSION = 1
CHECKED = ("model.safetensors", "config.json", "tasks.json")
ENCODER = "encoder."  # prefix of the encoder's weights
ARMS = ("tte", "visit", "mtl", "ssl")
MOST_MANIFEST_BYTES, MOST_CONFIG_BYTES = 1 << 16, 4 << 20
MOST_FEATURES = 8192


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
    tensors: dict[str, Stored]  # what the header of model.safetensors says
    fingerprint: str  # sha256 of the manifest: equal only for equal weights, configuration and tasks


def read_export(folder: Path) -> Export:
    """Verified description of an export. Raises ExportError for a missing, damaged, impossible or newer one.

    The header of the weights is compared with what the description promises; no weight is read but for its checksum.
    """
    folder = Path(folder)
    with _refused(folder, "manifest.json"):
        if not folder.exists() and previous_of(folder).exists():  # a writer died between its two renames
            folder = previous_of(folder)
        manifest = read_regular(folder / "manifest.json", MOST_MANIFEST_BYTES)
        expected = _digests(parse_json(manifest))
    with _refused(folder, "config.json"):
        config = _config(_verified(folder, "config.json", MOST_CONFIG_BYTES, expected))
    with _refused(folder, "tasks.json"):
        tasks = TaskSet.from_json(_verified(folder, "tasks.json", MOST_TASK_BYTES, expected))
    provenance = config["provenance"]
    followed = provenance.get("follow_up_days")
    with _refused(folder, "model.safetensors"):
        path = folder / "model.safetensors"
        try:
            tensors = read_header(path)
        except ConfigError as error:
            raise ExportError(f"{path} cannot be read: {error}") from None
        _check_head(config, tasks, tensors)
        with open_regular(path, MOST_WEIGHT_BYTES) as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != expected["model.safetensors"]:
                raise ExportError(_other_bytes(path))
    return Export(
        folder=folder,
        arm=config["arm"],
        model=config["model"],
        feature_dim=config["feature_dim"],
        spec=config["spec"],
        preprocess_version=config["volume"]["preprocess_version"],
        tasks=tasks,
        provenance=provenance,
        synthetic=provenance["synthetic"],
        follow_up_days=None if followed is None else float(followed),
        versions=config["versions"],
        reference_features=config["reference_features"],
        tensors=tensors,
        fingerprint=hashlib.sha256(manifest).hexdigest(),
    )


@contextmanager
def _refused(folder: Path, name: str) -> Iterator[None]:
    """What is wrong with a file of the export as an ExportError that names both."""
    try:
        yield
    except OSError as error:
        raise ExportError(f"{folder} is no complete export: {name}: {error.strerror}") from None
    except ConfigError as error:
        raise ExportError(f"{folder} is no export: {name}: {error}") from None


def _digests(document: object) -> dict[str, str]:
    digests = require_keys("sha256", require_keys("it", document, ("sha256",))["sha256"], CHECKED)
    for name, digest in digests.items():
        plausible = isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest) is not None
        require(plausible, f"sha256.{name}", digest, "must be 64 hexadecimal digits")
    return digests


def _verified(folder: Path, name: str, most_bytes: int, expected: dict[str, str]) -> Any:
    content = read_regular(folder / name, most_bytes)
    if hashlib.sha256(content).hexdigest() != expected[name]:
        raise ExportError(_other_bytes(folder / name))
    return parse_json(content)


def _other_bytes(path: Path) -> str:
    return f"{path} does not match manifest.json; copy the export again"


def _config(document: Any) -> dict[str, Any]:
    """The values of config.json, checked, with `model` and `spec` built. ConfigError for an impossible one."""
    version: Any = document.get("schema_version") if isinstance(document, dict) else None
    if is_of(version, int) and version > SCHEMA_VERSION:
        raise ConfigError(f"schema_version {shown(version)}, this release reads {SCHEMA_VERSION}; update it")
    config = require_keys(
        "it", document,
        ("schema_version", "model", "feature_dim", "volume", "provenance", "versions"), ("arm", "reference_features"),
    )  # fmt: skip
    require(is_of(version, int) and version == SCHEMA_VERSION, "schema_version", version, f"must be {SCHEMA_VERSION}")
    arm, features, provenance = config.get("arm", "tte"), config["feature_dim"], config["provenance"]
    require_choice("arm", arm, ARMS)
    require(
        is_of(features, int) and 1 <= features <= MOST_FEATURES,
        "feature_dim", features, f"must be a whole number between 1 and {MOST_FEATURES}",
    )  # fmt: skip
    require(isinstance(provenance, dict), "provenance", provenance, "must be a mapping")
    require_shallow("provenance", provenance)
    synthetic, followed = provenance.get("synthetic"), provenance.get("follow_up_days")
    require(isinstance(synthetic, bool), "provenance.synthetic", synthetic, "must be true or false")
    require(
        followed is None or (is_of(followed, float) and 0 <= followed <= 1e6),
        "provenance.follow_up_days", followed, "must be a number of days between 0 and 1e6, or null",
    )  # fmt: skip
    versions = config["versions"]
    require(
        isinstance(versions, dict) and "ttepretrain" in versions and is_of(list(versions.values()), list[str]),
        "versions", versions, "must be texts, one of them `ttepretrain`",
    )  # fmt: skip
    model, spec = ModelConfig.from_json(config["model"]), VolumeSpec.from_json(config["volume"])
    model.require_computable(spec.shape_DHW)
    reference = _features(config.get("reference_features"), features)
    return config | {"arm": arm, "model": model, "spec": spec, "reference_features": reference}


def _features(text: object, count: int) -> tuple[float, ...] | None:
    if text is None:
        return None
    require(isinstance(text, str), "reference_features", text, "must be a text of numbers")
    words = str(text).split()
    require(len(words) == count, "reference_features", len(words), f"must be {count} numbers: feature_dim")
    try:
        numbers = tuple(map(float, words))
    except ValueError:
        raise ConfigError("reference_features must be a text of numbers") from None
    require(
        all(abs(number) <= 1e15 for number in numbers), "reference_features", text, "must be finite numbers, up to 1e15"
    )
    return numbers


def _check_head(config: dict[str, Any], tasks: TaskSet, tensors: dict[str, Stored]) -> None:
    """ConfigError where the weights are of another number of tasks, bins, features or ranks than the description."""
    if config["arm"] != "tte":
        return
    num_bins, num_tasks, rank = tasks.num_bins, tasks.num_tasks, config["model"].head_dim
    for name, shape, of in (
        ("head.bias_TK", (num_bins, num_tasks), "the bins and tasks of tasks.json"),
        ("head.project.weight", (num_tasks, rank), "the tasks of tasks.json and model.head_dim"),
        ("head.expand.weight", (num_bins * rank, config["feature_dim"]), "bins times model.head_dim, and feature_dim"),
    ):
        found = tensors.get(name)
        if found is not None and found.shape != shape:
            raise ConfigError(f"{name} is {found}, expected {list(shape)}: {of}")


def read_weights(export: Export) -> dict[str, Tensor]:
    """All tensors of the export, on the CPU. Raises ExportError where another export has taken its place meanwhile."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights = load_file(export.folder / "model.safetensors")
    except (SafetensorError, OSError) as error:
        raise ExportError(f"{export.folder / 'model.safetensors'} cannot be read: {error}") from None
    with _refused(export.folder, "manifest.json"):
        now = read_regular(export.folder / "manifest.json", MOST_MANIFEST_BYTES)
    if hashlib.sha256(now).hexdigest() != export.fingerprint:
        raise ExportError(f"{export.folder} was replaced while it was read; run the command again")
    return weights


def previous_of(folder: Path) -> Path:
    """Where the export lies while a writer swaps folders."""
    return folder.with_name(f".{folder.name}.previous")
