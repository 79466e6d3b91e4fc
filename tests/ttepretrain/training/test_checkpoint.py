"""What a damaged, foreign or hostile checkpoint folder does."""

import json
import os
import shutil

import pytest
import torch

from ttepretrain.errors import ConfigError, IntegrityError, ResourceError
from ttepretrain.files import sha256_of
from ttepretrain.testing import run_distributed
from ttepretrain.training.checkpoint import CheckpointStore, check_layout, damage
from ttepretrain.training.distributed import Ranks

ENGINE = "engine/mp_rank_00_model_states.pt"


@pytest.fixture(scope="module")
def commits(tmp_path_factory, tiny_run_in):
    """checkpoints/ of a run stopped after three steps, each of them saved."""
    run = tiny_run_in(tmp_path_factory.mktemp("commits")).with_config(checkpoint_minutes=0.0, max_steps=3)
    run_distributed(run.start, 1)
    return run.folder / "checkpoints"


@pytest.fixture
def copy(commits, tmp_path):
    return shutil.copytree(commits, tmp_path / "checkpoints")


def store(folder) -> CheckpointStore:
    return CheckpointStore(folder, Ranks(0, 1, torch.device("cpu")), keep=2)


def flip(path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def edit_manifest(commit) -> None:
    manifest = json.loads((commit / "manifest.json").read_text())
    manifest["files"][ENGINE]["sha256"] = "0" * 64
    (commit / "manifest.json").write_text(json.dumps(manifest))


DAMAGE = {
    "flipped byte of the weights": lambda commit: flip(commit / ENGINE),
    "flipped byte of the random state": lambda commit: flip(commit / "rank_00000.safetensors"),
    "flipped byte of the state": lambda commit: flip(commit / "state.json"),
    "truncated": lambda commit: os.truncate(commit / ENGINE, 1000),
    "missing file": lambda commit: (commit / "state.json").unlink(),
    "extra file": lambda commit: (commit / "engine" / "extra.pt").write_bytes(b"x"),
    "swapped between steps": lambda commit: shutil.copy(commit.with_name("step_00000002") / ENGINE, commit / ENGINE),
    "edited manifest": edit_manifest,
    "no manifest": lambda commit: (commit / "manifest.json").unlink(),
    "manifest is a list": lambda commit: (commit / "manifest.json").write_text("[]"),
    "newer format": lambda commit: (commit / "manifest.json").write_text('{"format": 2, "files": {}}'),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_step_is_named_and_passed_over(copy, name, caplog):
    DAMAGE[name](copy / "step_00000003")
    path, state = store(copy).newest()
    assert (path.name, state["train"]["step"]) == ("step_00000002", 2)
    assert "step_00000003 is damaged" in caplog.text
    assert (copy / "damaged_step_00000003").exists()  # out of the way of keep-last-k


@pytest.mark.slow
def test_all_damaged_is_an_error_not_a_fresh_start(copy):
    for commit in copy.iterdir():
        flip(commit / ENGINE)
    for _ in range(2):  # and stays one
        with pytest.raises(IntegrityError, match="none of its 3 checkpoints is intact"):
            store(copy).newest()


@pytest.mark.slow
def test_newest_is_by_number_not_by_time(copy):
    os.utime(copy / "step_00000001", (2e9, 2e9))
    (copy / "latest").write_text("../../elsewhere")
    (copy / ".writing_00000004").mkdir()
    path, _ = store(copy).newest()
    assert path.name == "step_00000003"
    assert not (copy / ".writing_00000004").exists()


@pytest.mark.slow
def test_no_checkpoint_is_a_fresh_start(tmp_path):
    assert store(tmp_path / "checkpoints").newest() is None


class Payload:
    def __init__(self, canary):
        self.canary = str(canary)

    def __reduce__(self):
        return os.mkdir, (self.canary,)


@pytest.mark.slow
def test_pickle_that_runs_code_is_refused(copy, tiny_run, tmp_path):
    """Even under a manifest that matches: weights_only with three named classes."""
    commit, canary = copy / "step_00000003", tmp_path / "canary"
    torch.save({"module": Payload(canary)}, commit / ENGINE)
    manifest = json.loads((commit / "manifest.json").read_text())
    manifest["files"][ENGINE] = {"bytes": (commit / ENGINE).stat().st_size, "sha256": sha256_of(commit / ENGINE)}
    (commit / "manifest.json").write_text(json.dumps(manifest))
    assert damage(commit) is None
    shutil.copytree(copy, tiny_run.folder / "checkpoints")
    with pytest.raises(IntegrityError, match="step_00000003"):
        run_distributed(tiny_run.start, 1)
    assert not canary.exists()


def fill_the_disk(run) -> None:
    """Files end at 20 kB, as on a full disk: less than one checkpoint."""
    import resource
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    run.start()


@pytest.mark.slow
def test_full_disk_ends_with_the_previous_checkpoint_intact(copy, tiny_run):
    shutil.copytree(copy, tiny_run.folder / "checkpoints")
    with pytest.raises(ResourceError, match="disk full"):
        run_distributed(fill_the_disk, 1, tiny_run.with_config(checkpoint_minutes=0.0))
    assert damage(tiny_run.folder / "checkpoints" / "step_00000003") is None
    assert "step_00000004" not in tiny_run.commits()


def test_layout_of_other_processes():
    check_layout({"zero_stage": 0, "world": 2}, zero_stage=0, world=1)
    with pytest.raises(ConfigError, match=r"set train\.zero_stage=1"):
        check_layout({"zero_stage": 1, "world": 2}, zero_stage=0, world=2)
    with pytest.raises(ConfigError, match="start 2 processes"):
        check_layout({"zero_stage": 1, "world": 2}, zero_stage=1, world=1)
