"""Frozen features of every prepared study under every arm: `eval/embeddings.parquet`.

An arm is not embedded again where the file already holds the features of its encoder and these volumes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import torch

from data.batches.loader import EvaluationLoader
from data.prepared.opened import PreparedStudies
from data.progress import progress
from jobs.config import RunConfig
from ttepretrain.config import load_config
from ttepretrain.errors import ConfigError, IntegrityError
from ttepretrain.export.embedder import Embedder
from ttepretrain.export.initial_weights import initial_digest, read_initial_weights
from ttepretrain.export.load import load_encoder
from ttepretrain.files import replacing, sha256_of
from ttepretrain.models.encoder import build_encoder
from ttepretrain.training.config import STARTS
from ttepretrain.training.precision import choose_precision
from ttepretrain.volume.spec import VolumeSpec

METADATA_KEY = b"made_from"


@dataclass(frozen=True)
class Arm:
    name: str
    made_from: str  # digest of what the weights are
    embedder: Embedder


def open_trained(pretrained: Path, spec: VolumeSpec, device: str) -> Arm:
    """The encoder that the run in `pretrained` exported."""
    embedder = load_encoder(pretrained / "export", device)
    if embedder.spec != spec:
        raise IntegrityError(
            f"the export reads volumes of {embedder.spec.to_json()} and prepared/ holds {spec.to_json()}; "
            "prepare with the volume.* keys of the export"
        )
    return Arm(pretrained.name, sha256_of(pretrained / "export" / "manifest.json"), embedder)


def open_start(name: str, pretrained: Sequence[Path], spec: VolumeSpec, device: str) -> Arm:
    """The encoder that the runs with random (`base_random`) or loaded (`base`) initial weights started from.

    Raises ConfigError where none did or where two started differently, IntegrityError where `model.init` has changed.
    """
    runs = {folder: load_config(RunConfig, folder / "config.yaml") for folder in pretrained}
    runs = {folder: run for folder, run in runs.items() if (run.model.init == "random") == (name == "base_random")}
    if not runs:
        how, other = ("loaded", "base") if name == "base_random" else ("random", "base_random")
        raise ConfigError(f"eval.arms: the trained arms started from {how} weights; name {other} in place of {name}")
    recipes = {_recipe(run, folder, spec) for folder, run in runs.items()}
    if len(recipes) > 1:
        arms = " and ".join(folder.name for folder in runs)
        raise ConfigError(f"eval.arms: {arms} started from different encoders; compare them with {name} one by one")
    folder, run = next(iter(runs.items()))
    if initial_digest(run.model) != _started_from(folder):
        raise IntegrityError(f"model.init of arm {folder.name} has changed since that run; put the old weights back")
    weights = read_initial_weights(run.model)
    encoder = build_encoder(run.model, spec.num_channels, run.train.seed, spec.spacing_mm, weights)
    return Arm(name, hashlib.sha256(recipes.pop().encode()).hexdigest(), Embedder(encoder, spec, device))


def runs_before(pretrained: Path) -> list[Path]:
    """Earlier runs that led to this one by their exports, the latest first, as far back as their folders exist."""
    found: list[Path] = []
    folder = pretrained
    while folder not in found and (folder / "config.yaml").exists():
        found.append(folder)
        model = load_config(RunConfig, folder / "config.yaml").model
        if model.init_kind != "export":
            break
        folder = Path(model.init).parent
    return found[1:]


def _recipe(run: RunConfig, folder: Path, spec: VolumeSpec) -> str:
    """All that decides the encoder before its first step."""
    model = run.model.identity()
    del model["head_dim"]
    return json.dumps([model, _started_from(folder), spec.to_json(), run.train.seed])


def _started_from(folder: Path) -> str | None:
    """Digest of the weights that the run loaded; None of random ones."""
    return json.loads((folder / "provenance.json").read_text()).get("model_init_sha256")


def embed_arms(config: RunConfig, splits: Sequence[PreparedStudies], device: str) -> dict[str, np.ndarray]:
    """Arm -> float32 [N, F], the studies of the splits one after the other; also written to `embeddings.parquet`.

    All arms in one precision: `eval.precision`, `auto` resolved on the first.
    """
    path = config.eval_folder / "embeddings.parquet"
    spec = splits[0].spec
    arms = [
        open_start(name, config.trained_folders, spec, device)
        if name in STARTS
        else open_trained(config.pretrain_folder(name), spec, device)
        for name in config.eval.arms
    ]
    precision = choose_precision(config.eval.precision, arms[0].embedder, spec.shape_DHW, torch.device(device))
    made_from = {"prepared": splits[0].fingerprint, "precision": precision}
    study_key_N = np.concatenate([studies.study_key for studies in splits])
    split_N = np.repeat([s.split for s in splits], [len(s) for s in splits])
    features = _reusable(path, arms, made_from, study_key_N)
    if set(features) == {arm.name for arm in arms}:
        return features
    for arm in arms:
        if arm.name not in features:
            arm.embedder.precision = precision
            features[arm.name] = _embed(arm, splits, config.eval.batch_size)
    features = {arm.name: features[arm.name] for arm in arms}
    _write(path, study_key_N, split_N, features, made_from | {"arms": {arm.name: arm.made_from for arm in arms}})
    return features


def _embed(arm: Arm, splits: Sequence[PreparedStudies], batch_size: int) -> np.ndarray:
    rows = []
    with progress(f"embedding {arm.name}", sum(len(studies) for studies in splits)) as advance:
        for studies in splits:
            for batch in EvaluationLoader(studies, batch_size):
                rows.append(arm.embedder.embed_hu(batch.volume_BDHW).numpy())
                advance(len(rows[-1]))
    return np.concatenate(rows)


def _write(
    path: Path, study_key_N: np.ndarray, split_N: np.ndarray, features: dict[str, np.ndarray], made_from: dict
) -> None:
    """Columns study_key, arm, split, embedding list<f32>; arms one after the other."""
    tables = []
    for arm, features_NF in features.items():
        offsets = np.arange(0, features_NF.size + 1, features_NF.shape[1], dtype=np.int32)
        embedding = pa.ListArray.from_arrays(offsets, np.ascontiguousarray(features_NF, np.float32).ravel())
        columns = {"study_key": study_key_N.astype(str), "arm": [arm] * len(study_key_N), "split": split_N}
        tables.append(pa.table({**columns, "embedding": embedding}))
    table = pa.concat_tables(tables).replace_schema_metadata({METADATA_KEY: json.dumps(made_from)})
    with replacing(path) as temporary:
        parquet.write_table(table, temporary, compression="zstd")


def _reusable(path: Path, arms: Sequence[Arm], inputs: dict, study_key_N: np.ndarray) -> dict[str, np.ndarray]:
    """Features of the arms that the file already holds for these weights and these inputs."""
    if not path.exists():
        return {}
    table = parquet.read_table(path)
    made_from = json.loads((table.schema.metadata or {}).get(METADATA_KEY, b"{}"))
    if {key: made_from.get(key) for key in inputs} != inputs:
        return {}
    found = {}
    arm_of_row = table["arm"].to_numpy()
    for arm in arms:
        if made_from["arms"].get(arm.name) == arm.made_from:
            rows = table.filter(pa.array(arm_of_row == arm.name))
            assert (rows["study_key"].to_numpy() == study_key_N).all(), "same volumes, other studies"
            values = rows["embedding"].combine_chunks().flatten().to_numpy()
            found[arm.name] = values.reshape(len(study_key_N), -1)
    return found
