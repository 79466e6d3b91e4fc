"""Checkpoints: folders that are complete or invisible.

checkpoints/
  step_00000120/            a commit: the name appears by one rename, when everything below is on disk
    engine/                 DeepSpeed's files: weights, optimizer; one file per rank from ZeRO stage 1 on
    rank_00000.safetensors  random state of rank 0; one file per rank
    state.json              position in the data, best loss, what the run is (identity.py)
    manifest.json           size and sha256 of every other file; written last
  .writing_00000180/        a save that was cut short; removed at the next start
"""

from __future__ import annotations

import json
import shutil
from io import BytesIO
from pathlib import Path
from pickle import UnpicklingError

import torch

from ttepretrain.errors import ConfigError, IntegrityError
from ttepretrain.files import crash_point, sha256_of, sync, write_atomic, write_json
from ttepretrain.log import log
from ttepretrain.training.distributed import Ranks
from ttepretrain.training.engine import Engine

FORMAT = 1
ENGINE_TAG = "engine"
MANIFEST, STATE = "manifest.json", "state.json"
REPLACED = ".replaced_"  # prefix of a commit that the same step is about to take the place of


class CheckpointStore:
    """Commits of one run, named by step. Methods are collective unless stated otherwise."""

    def __init__(self, folder: Path, ranks: Ranks, keep: int):
        self.folder, self.ranks, self.keep = folder, ranks, keep

    def save(self, engine: Engine, step: int, state: dict) -> None:
        """Commit step `step`, then delete all but the newest `keep`. Raises ResourceError when the disk is full."""
        writing, final = self.folder / f".writing_{step:08d}", self.folder / f"step_{step:08d}"
        self.ranks.first(lambda: _make_empty(writing))
        crash_point("save-begin")
        _use_safe_files(engine)
        engine.save_checkpoint(str(writing), tag=ENGINE_TAG, save_latest=False)
        crash_point("save-engine")
        write_atomic(writing / f"rank_{self.ranks.rank:05d}.safetensors", _random_state())
        self.ranks.barrier()
        self.ranks.first(lambda: _commit(writing, final, state))
        self.ranks.first(self._prune)

    def newest(self) -> tuple[Path, dict] | None:
        """Newest commit whose files all match its manifest, with its state; None when there is no commit.

        Damaged commits are named in the log and passed over; raises IntegrityError when every commit is damaged.
        """
        return self.ranks.first(self._newest)

    def restore(self, path: Path, state: dict, engine: Engine) -> None:
        """Weights, optimizer and this rank's random state of a commit that `newest` has checked."""
        check_layout(state, engine.zero_optimization_stage(), self.ranks.world)
        _use_safe_files(engine)
        try:
            loaded, _ = engine.load_checkpoint(str(path), tag=ENGINE_TAG)
        except UnpicklingError as error:
            raise IntegrityError(
                f"{path.name} holds what a checkpoint must not: {str(error).splitlines()[0]}"
            ) from None
        assert loaded is not None, "the manifest named an engine folder that DeepSpeed does not see"
        random_state = path / f"rank_{self.ranks.rank:05d}.safetensors"
        if random_state.exists():  # absent on the ranks that a larger world adds
            _set_random_state(random_state)

    def _newest(self) -> tuple[Path, dict] | None:
        for replaced in self.folder.glob(f"{REPLACED}*"):
            final = self.folder / replaced.name.removeprefix(REPLACED)
            if not final.exists():  # killed between the two renames
                replaced.rename(final)
        for leftover in self.folder.glob(".*_*"):
            shutil.rmtree(leftover)
        damaged: list[Path] = []
        for path in reversed(self._commits()):
            problem = damage(path)
            if problem is None:
                for other in damaged:  # out of the way of new commits and of `keep`
                    other.rename(other.with_name(f"damaged_{other.name}"))
                return path, json.loads((path / STATE).read_text())
            damaged.append(path)
            log.warning("checkpoint %s is damaged and passed over: %s", path.name, problem)
        if damaged:
            raise IntegrityError(
                f"{self.folder}: none of its {len(damaged)} checkpoints is intact; "
                "restore one from a copy, or delete the folder to start from step 0"
            )
        return None

    def _commits(self) -> list[Path]:
        """Ascending by step, never by time: clocks jump."""
        named = [path for path in self.folder.glob("step_*") if path.name.removeprefix("step_").isdecimal()]
        return sorted(named, key=lambda path: int(path.name.removeprefix("step_")))

    def _prune(self) -> None:
        for path in self._commits()[: -self.keep]:
            hidden = path.with_name(f".removing_{path.name}")
            try:
                path.rename(hidden)  # a reader sees the whole or nothing
                shutil.rmtree(hidden)
            except OSError as error:
                log.warning("%s could not be deleted: %s", path.name, error.strerror)


def damage(path: Path) -> str | None:
    """What is wrong with a commit; None when exactly its files are there and all bytes match."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        version, expected = manifest["format"], manifest["files"]
        if version > FORMAT:
            return f"format {version} is newer than this release's {FORMAT}"
        found = {str(file.relative_to(path)) for file in path.rglob("*") if not file.is_dir()} - {MANIFEST}
        if found != expected.keys():
            return f"files missing: {sorted(expected.keys() - found)}, unknown: {sorted(found - expected.keys())}"
        for name, entry in expected.items():
            if (path / name).stat().st_size != entry["bytes"] or sha256_of(path / name) != entry["sha256"]:
                return f"{name} does not match its checksum"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be used: {error!r}"
    return None


def check_layout(state: dict, zero_stage: int, world: int) -> None:
    """Raise ConfigError unless these processes can load what the checkpoint's processes wrote."""
    if state["zero_stage"] != zero_stage:
        raise ConfigError(
            f"train.zero_stage is {zero_stage} and the checkpoint was written with {state['zero_stage']}; "
            f"set train.zero_stage={state['zero_stage']}"
        )
    if zero_stage > 0 and state["world"] != world:
        raise ConfigError(
            f"{world} processes cannot load the ZeRO stage {zero_stage} checkpoint of {state['world']}; start "
            f"{state['world']} processes (runs with train.zero_stage=0 load on any number)"
        )


def _commit(writing: Path, final: Path, state: dict) -> None:
    write_json(writing / STATE, state)
    crash_point("save-state")
    files = {
        str(file.relative_to(writing)): {"bytes": file.stat().st_size, "sha256": sha256_of(file)}
        for file in sorted(writing.rglob("*"))
        if file.is_file()
    }
    write_json(writing / MANIFEST, {"format": FORMAT, "files": files})
    for folder in (writing / ENGINE_TAG, writing):
        sync(folder)
    crash_point("save-manifest")
    replaced = final.with_name(REPLACED + final.name)
    if final.exists():  # the same step again, after a stop right at it
        final.rename(replaced)
        crash_point("save-replace")
    writing.rename(final)
    sync(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)
    crash_point("save-commit")


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _random_state() -> bytes:
    from safetensors.torch import save

    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return save(state)


def _set_random_state(path: Path) -> None:
    from safetensors.torch import load_file

    state = load_file(path)
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _use_safe_files(engine: Engine) -> None:
    """Let the engine write to disk for certain, and read nothing but tensors, plain values and three named classes."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    def save(state_dict: dict, path: str) -> None:
        content = BytesIO()  # straight to a full disk, torch.save raises a RuntimeError without the reason
        torch.save(state_dict, content)
        write_atomic(Path(path), content.getbuffer())

    def load(path: str, map_location: str | torch.device | None = None) -> dict:
        with torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address]):
            return torch.load(path, map_location=map_location, weights_only=True)

    engine.checkpoint_engine.save, engine.checkpoint_engine.load = save, load
