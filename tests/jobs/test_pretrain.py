"""jobs.pretrain on a prepared folder of 20 x 22 x 24 voxels, with the smallest real encoder."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import polars as pl
import pyarrow.parquet as parquet
import pytest

from data.parquet_files import write_parquet
from data.testing import load_module
from jobs.pretrain import main
from ttepretrain import load_encoder, load_model
from ttepretrain.errors import ConfigError, IntegrityError, Interrupted
from ttepretrain.export.folder import read_export, read_weights
from ttepretrain.files import sha256_of
from ttepretrain.lock import folder_lock
from ttepretrain.testing import run_distributed, run_ranks

pytestmark = pytest.mark.slow

small = load_module(Path(__file__).with_name("small_prepared.py"))
SPEC = small.SPEC
CONFIG = f"""
name: small
ehr: {{min_patients: 5}}
volume: {{spacing_mm: {list(SPEC.spacing_mm)}, shape_DHW: {list(SPEC.shape_DHW)}, windows: [[-600.0, 1500.0]]}}
model: {{encoder: resnet18, head_dim: 3}}
train: {{epochs: 2, batch_size: 4, precision: fp32, keep_checkpoints: 1}}
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import monai.networks.nets  # noqa: F401  # once, for all processes forked below
    folder = tmp_path_factory.mktemp("prepared")
    small.write_prepared(folder / "prepared")
    return folder / "prepared"


@pytest.fixture
def arguments(prepared, tmp_path) -> list[str]:
    """Command line of a run in a root of its own."""
    shutil.copytree(prepared, tmp_path / "runs" / "small" / "prepared")
    config = tmp_path / "small.yaml"
    config.write_text(CONFIG)
    return [str(config), f"paths.root={tmp_path / 'runs'}"]


def arm(arguments: list[str], name: str = "tte") -> Path:
    return Path(arguments[1].partition("=")[2]) / "small" / "pretrain" / name


def tuning_losses(arguments: list[str]) -> list[float]:
    rows = [json.loads(line) for line in (arm(arguments) / "metrics.jsonl").read_text().splitlines()]
    return [row["loss_tuning"] for row in rows if row["loss_tuning"] is not None]


BLOCKER = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("ray", "polars"):
            raise ImportError(f"{name} is not on a training node")
sys.meta_path.insert(0, Blocker())
import runpy
runpy.run_module("jobs.pretrain", run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module")
def finished(prepared, tmp_path_factory, repository) -> list[str]:
    """A whole run in a fresh interpreter that has neither Ray nor polars."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(prepared, folder / "runs" / "small" / "prepared")
    (folder / "small.yaml").write_text(CONFIG)
    arguments = [str(folder / "small.yaml"), f"paths.root={folder / 'runs'}"]
    environment = os.environ | {"PYTHONPATH": str(repository)}
    command = [sys.executable, "-c", BLOCKER, *arguments]
    result = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "step 8/8" in result.stdout
    assert not result.stderr
    return arguments


def test_outputs_follow_the_contract(finished):
    folder = arm(finished)
    assert {path.name for path in folder.iterdir() if path.name[0] != "."} == {
        "config.yaml", "provenance.json", "subjects.parquet", "metrics.jsonl", "progress.png",
        "checkpoints", "export", "export-last",
    }  # fmt: skip
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step_00000008"]
    config = json.loads((folder / "export-last" / "config.json").read_text())
    assert (config["provenance"]["synthetic"], config["provenance"]["step"]) == (True, 8)
    prepared = folder.parents[1] / "prepared"
    keys = pl.read_parquet(prepared / "keys.parquet", columns=["study_id", "subject_key"])
    train = pl.read_parquet(prepared / "labels.parquet").filter(split="train").join(keys, on="study_id")
    longest = train.group_by("subject_key").agg(pl.col("censor_days").max())["censor_days"].sort(descending=True)
    assert config["provenance"]["follow_up_days"] == int(longest[4])  # of ehr.min_patients = 5 subjects
    assert json.loads((folder / "provenance.json").read_text())["device"] == "cpu"
    assert len(tuning_losses(finished)) == 4  # the table, the fitted head, two epochs


def test_all_subjects_that_the_run_saw_are_listed_by_key(finished):
    table = parquet.read_table(arm(finished) / "subjects.parquet").to_pylist()
    keys = pl.read_parquet(arm(finished).parents[1] / "prepared" / "keys.parquet")
    expected = keys.select("subject_key", "split").unique().rows()
    assert {(row["subject_key"], row["split"]) for row in table} == set(expected)
    assert len(table) == small.NUM_TRAIN + small.NUM_TUNING - 1


def test_second_start_says_that_it_is_finished(finished):
    before = sha256_of(arm(finished) / "metrics.jsonl")
    run_distributed(main, 1, finished)
    assert sha256_of(arm(finished) / "metrics.jsonl") == before


def interrupted_after(rows: int, arguments: list[str], name: str = "tte") -> None:
    """The job, with a SIGTERM of its scheduler once the log has so many rows."""

    def watch() -> None:
        log = arm(arguments, name) / "metrics.jsonl"
        while not log.exists() or log.read_text().count("\n") < rows:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
    main(arguments)


def test_interrupted_job_goes_on_to_the_same_weights(finished, arguments):
    with pytest.raises(Interrupted, match="run the same command again"):
        run_distributed(interrupted_after, 1, 4, arguments)
    assert not (arm(arguments) / "export-last").exists()
    run_distributed(main, 1, arguments)
    for name in ("export", "export-last"):
        weights = [sha256_of(arm(run) / name / "model.safetensors") for run in (arguments, finished)]
        assert weights[0] == weights[1]


def test_two_processes_give_the_losses_of_one(finished, arguments):
    run_distributed(main, 2, [*arguments, "train.max_steps=4"])
    assert tuning_losses(arguments) == pytest.approx(tuning_losses(finished)[:3], rel=1e-5)


@pytest.mark.parametrize("name", ["visit", "mtl", "ssl"])
def test_every_arm_leaves_an_encoder_in_its_own_folder(name, arguments):
    """Resumed half-way; an encoder that loads, no hazards that would."""
    with pytest.raises(Interrupted):
        run_distributed(interrupted_after, 1, 3, [*arguments, f"train.arm={name}"], name)
    run_distributed(main, 1, [*arguments, f"train.arm={name}"])
    folder = arm(arguments, name)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["loss"] is not None] == list(range(1, 9))
    assert len([row for row in rows if row["loss_tuning"] is not None]) == 3
    for export in ("export", "export-last"):
        assert read_export(folder / export).arm == name
        assert all(key.startswith("encoder.") for key in read_weights(read_export(folder / export)))
        assert load_encoder(folder / export).feature_dim == 512
        with pytest.raises(ConfigError, match=f"is an export of arm {name}: an encoder without hazards"):
            load_model(folder / export)
    assert not arm(arguments).exists()


def test_phenotypes_that_are_not_those_of_the_manifest_are_refused(arguments):
    prepared = Path(arguments[1].partition("=")[2]) / "small" / "prepared"
    frame = pl.read_parquet(prepared / "phenotypes.parquet")
    write_parquet(frame.with_columns(~pl.col("event")), prepared / "phenotypes.parquet")
    with pytest.raises(IntegrityError, match=r"prepared/phenotypes.parquet does not match manifest.json"):
        run_distributed(main, 1, [*arguments, "train.arm=mtl"])
    assert not (arm(arguments, "mtl") / "config.yaml").exists()


def test_folder_in_use_is_left_alone(arguments):
    arm(arguments).mkdir(parents=True)
    with folder_lock(arm(arguments)), pytest.raises(IntegrityError, match="in use by process"):
        run_distributed(main, 2, arguments)
    assert not (arm(arguments) / "config.yaml").exists()


def test_other_configuration_is_refused_before_anything_is_written(finished):
    before = (arm(finished) / "config.yaml").read_text()
    with pytest.raises(ConfigError, match=r"model.head_dim: 3 in the checkpoint, 4 now"):
        run_distributed(main, 1, [*finished, "model.head_dim=4", "train.epochs=3"])
    with pytest.raises(ConfigError, match=r"volume.spacing_mm: .* was prepared with other values"):
        run_distributed(main, 1, [*finished, "volume.spacing_mm=[9,9,9]"])
    assert (arm(finished) / "config.yaml").read_text() == before


def test_missing_prepared_folder_is_a_usage_error(arguments):
    [outcome] = run_ranks(main, 1, [*arguments, "name=unprepared"])
    assert isinstance(outcome.error, ConfigError)
    assert "jobs.prepare" in str(outcome.error)
