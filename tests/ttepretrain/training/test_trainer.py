"""Properties of whole runs, in forked processes (half a second each)."""

import math
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from ttepretrain.errors import ConfigError, Interrupted, NumericsError
from ttepretrain.files import sha256_of, write_json
from ttepretrain.labels import LabelTable
from ttepretrain.testing import random_labels, random_task_set, run_distributed, run_ranks
from ttepretrain.training.checkpoint import CheckpointStore
from ttepretrain.training.distributed import Ranks
from ttepretrain.training.trainer import steps_per_epoch

pytestmark = pytest.mark.slow

LAST = 12  # steps: 2 epochs of 24 studies in batches of 4
EVERY_STEP = {"checkpoint_minutes": 0.0}  # a checkpoint after each step


def losses(run, column="loss") -> np.ndarray:
    return np.array([row[column] for row in run.rows() if row[column] is not None])


def without_speed(rows: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "studies_per_second"} for row in rows]


@pytest.fixture(scope="module")
def straight(tmp_path_factory, tiny_run_in):
    """The run that nothing disturbs."""
    run = tiny_run_in(tmp_path_factory.mktemp("straight"))
    run_distributed(run.start, 1)
    return run


def slow_loss(labels: LabelTable, tasks, bias_TK: np.ndarray) -> float:
    """Mean over cells of the piecewise-exponential NLL of the table alone: plain loops over the formula."""
    total, edges = 0.0, tasks.bin_edges_days
    for i in range(len(labels)):
        start, end = labels.events.offset[i : i + 2]
        days = dict(zip(labels.events.index[start:end].tolist(), labels.event_days[start:end].tolist()))
        for k in range(tasks.num_tasks):
            time = days.get(k, labels.censor_days[i])
            for t in range(tasks.num_bins):
                exposure = max(0.0, min(time, edges[t + 1]) - max(edges[t], tasks.blackout_days))
                observed = k in days and edges[t] < time <= edges[t + 1]
                total += exposure * math.exp(bias_TK[t, k]) - (float(bias_TK[t, k]) if observed else 0.0)
    return total / (len(labels) * tasks.num_tasks * tasks.num_bins)


def test_first_losses_are_the_bias_tables(straight, tiny_run):
    """Before its head is fitted the model is its bias table, on the tuning split and (never fitted) the first batch."""
    unfitted = tiny_run.with_config(head_fit_studies=0, max_steps=1)
    run_distributed(unfitted.start, 1)
    tasks = random_task_set(np.random.default_rng(0), num_tasks=5)
    labels = random_labels(np.random.default_rng(1), 29, tasks, event_share=0.5)
    from ttepretrain.survival.prefit import bias_table

    bias_TK = bias_table(labels.take(np.arange(24)), tasks)
    first = np.random.default_rng([7, 0]).permutation(24)[:4]
    assert losses(unfitted)[0] == pytest.approx(slow_loss(labels.take(first), tasks, bias_TK), rel=1e-6)
    reference = straight.rows()[0]
    assert (reference["step"], reference["loss"]) == (0, None)
    assert reference["loss_tuning"] == pytest.approx(
        slow_loss(labels.take(np.arange(24, 29)), tasks, bias_TK), rel=1e-6
    )
    assert losses(straight)[0] < losses(unfitted)[0]


def test_log_has_a_row_per_step_and_per_epoch(straight):
    rows = straight.rows()
    steps = [row["step"] for row in rows if row["loss"] is not None]
    assert steps == list(range(1, LAST + 1))
    assert [(row["step"], row["epoch"], row["position"]) for row in rows if row["loss_tuning"] is not None] == [
        (0, 0, 0), (0, 0, 0), (6, 1, 0), (12, 2, 0),
    ]  # fmt: skip
    assert {row["cells"] for row in rows} == {
        4 * 5 * 4,
        5 * 5 * 4,
    }  # rows x tasks x bins of a batch, of the tuning split
    assert all(row["studies_per_second"] > 0 and row["grad_norm"] > 0 for row in rows if row["loss"] is not None)
    assert (straight.folder / "progress.png").read_bytes().startswith(b"\x89PNG")


def test_best_tuning_loss_is_exported(straight):
    import json

    said = json.loads((straight.folder / "export" / "said.json").read_text())
    after = [(row["loss_tuning"], row["step"]) for row in straight.rows() if row["loss_tuning"] is not None][2:]
    assert (said["best_loss_tuning"], said["step"]) == min(after)


def test_mirrored_and_blurred_views_are_trained_on(tiny_run):
    """Each by itself changes the first batch's loss."""
    settings = {}, {"augment": 1.0}, {"augment_flip": 1.0}, {"augment_blur": 2.0}
    first = []
    for number, setting in enumerate(settings):
        run = tiny_run.elsewhere(f"view {number}").with_config(max_steps=1, **({"augment": 0.0} | setting))
        run_distributed(run.start, 1)
        first.append(losses(run)[0])
    assert len(set(first)) == len(settings)


def test_overfits_eight_studies(tiny_run):
    run = replace(
        tiny_run.with_config(epochs=40, batch_size=8, lr=0.5, head_lr=0.9, augment=0.0, weight_decay=0.0), num_train=8
    )
    run_distributed(run.start, 1)
    course = losses(run)
    assert course[-1] < 0.8 * course[0]  # the table alone is at its optimum from the start


def test_two_ranks_and_every_zero_stage_equal_one_rank(straight, tiny_run):
    """The same global batches give the same fp32 losses, whoever computes them and whatever is shared out."""
    for stage in (0, 2, 3):  # stage 1 runs stage 2's code
        run = tiny_run.elsewhere(f"stage {stage}").with_config(zero_stage=stage)
        run_distributed(run.start, 2)
        for column in ("loss", "loss_tuning", "grad_norm"):
            np.testing.assert_allclose(losses(run, column), losses(straight, column), rtol=1e-5, atol=0)
    assert straight.rows()[-1]["cells"] == run.rows()[-1]["cells"]


def test_another_number_of_ranks_goes_on(straight, tiny_run):
    """A stage 0 run of one rank is finished by two; a stage 1 run refuses and says what to do."""
    run_distributed(tiny_run.with_config(max_steps=4).start, 1)
    run_distributed(tiny_run.start, 2)
    np.testing.assert_allclose(losses(tiny_run), losses(straight), rtol=1e-5, atol=0)

    sharded = tiny_run.elsewhere("sharded").with_config(zero_stage=1)
    run_distributed(sharded.with_config(max_steps=4).start, 1)
    with pytest.raises(ConfigError, match="start 1 processes"):
        run_distributed(sharded.start, 2)


def test_killed_run_resumes_bit_for_bit(straight, tiny_run):
    """SIGKILL mid-epoch, torn log line: the next start repeats the uninterrupted run, weights and metrics alike."""
    run = tiny_run.with_config(checkpoint_minutes=0.0, keep_checkpoints=2)
    [outcome] = run_ranks(replace(run, signal_at=(0, 9, signal.SIGKILL)).start, 1)
    assert outcome.exit_code == -signal.SIGKILL
    assert run.commits() == ["step_00000008", "step_00000009"]
    with (run.folder / "metrics.jsonl").open("a") as log:
        log.write('{"step": 10, "epoch": 1, "position": 16, "loss": 0.1, "loss_tuning": null, "cells": 80, "lr": 1e-3,')
    run_distributed(run.start, 1)
    assert run.weights() == straight.weights()
    assert without_speed(run.rows()) == without_speed(straight.rows())


def test_signal_to_one_rank_stops_all_after_a_save(tiny_run):
    """Both ranks stop at the same step; going on equals not stopping, with the optimizer shared out."""
    run = tiny_run.with_config(zero_stage=1)
    undisturbed = run.elsewhere("undisturbed")
    run_distributed(undisturbed.start, 2)
    # Step 6 ends the epoch: its tuning loss is computed after the restart.
    for signal_at, commit in (((1, 5, signal.SIGTERM), "step_00000006"), ((0, 8, signal.SIGUSR1), "step_00000009")):
        for outcome in run_ranks(replace(run, signal_at=signal_at).start, 2):
            assert isinstance(outcome.error, Interrupted), outcome.traceback
        assert run.commits()[-1] == commit
    run_distributed(run.start, 2)
    assert run.weights() == undisturbed.weights()
    assert without_speed(run.rows()) == without_speed(undisturbed.rows())


def test_dead_rank_ends_the_others(tiny_run):
    run = tiny_run.with_config(**EVERY_STEP)
    victim, survivor = run_ranks(replace(run, signal_at=(0, 3, signal.SIGKILL)).start, 2, timeout=60)
    assert victim.exit_code == -signal.SIGKILL
    assert survivor.error is not None
    assert run.commits()[-1] == "step_00000003"


def test_crash_while_saving_leaves_the_previous_checkpoint(straight, tiny_run):
    """Killed at every stage of a save, one start after the other; what is left goes on to the undisturbed weights."""
    run = tiny_run.with_config(**EVERY_STEP)
    newest = 0
    for name in ("save-begin", "save-engine", "save-state", "save-manifest", "save-commit"):
        [outcome] = run_ranks(run.start, 1, environment={"TTE_CRASH_AT": f"{name}:2"})
        assert outcome.exit_code == -signal.SIGKILL
        newest += 2 if name == "save-commit" else 1
        assert [commit for commit in run.commits() if commit.startswith("step_")][-1] == f"step_{newest:08d}"
    run_distributed(run.start, 1)
    assert run.weights() == straight.weights()
    assert all(commit.startswith("step_") for commit in run.commits())


def test_crash_while_replacing_a_commit_of_the_same_step_loses_neither(tmp_path):
    """Between its two renames a save has moved the old commit away; the next start finds it again."""
    folder = tmp_path / "checkpoints"
    for name in ("step_00000001", ".replaced_step_00000002"):
        (folder / name).mkdir(parents=True)
        file = folder / name / "state.json"
        write_json(file, {"name": name})
        digest = {"bytes": file.stat().st_size, "sha256": sha256_of(file)}
        write_json(folder / name / "manifest.json", {"format": 1, "files": {"state.json": digest}})
    ranks = Ranks(rank=0, world=1, device=torch.device("cpu"))
    path, state = CheckpointStore(folder, ranks, keep=2).newest()
    assert (path.name, state["name"]) == ("step_00000002", ".replaced_step_00000002")


def test_finished_run_does_nothing(straight):
    before = {path: path.stat().st_mtime_ns for path in straight.folder.rglob("*")}
    run_distributed(straight.start, 1)
    assert {path: path.stat().st_mtime_ns for path in straight.folder.rglob("*")} == before


def test_loss_that_is_not_finite_is_skipped_by_all_ranks(tiny_run):
    """One study of one rank: nobody steps, the count is kept, and every weight stays finite."""
    order = np.random.default_rng([7, 0]).permutation(24)
    run = replace(tiny_run.with_config(epochs=1), poison=(int(order[9]),))  # third batch, second rank
    [(state, _), (other, _)] = run_distributed(run.start, 2)
    assert state == other
    assert state.bad_steps == 1
    skipped = next(row for row in run.rows() if row["step"] == 3)
    assert (skipped["step"], skipped["loss"], skipped["grad_norm"]) == (3, None, None)
    assert np.isfinite(losses(run)).all()
    assert len(losses(run)) == 5


@pytest.mark.parametrize("stage", [0, 2])
def test_too_many_skipped_steps_end_the_run(tiny_run, stage):
    run = replace(tiny_run.with_config(max_bad_steps=2, zero_stage=stage, **EVERY_STEP), poison=tuple(range(24)))
    with pytest.raises(NumericsError, match="max_bad_steps=2"):
        run_distributed(run.start, 1)
    assert run.commits() == ["step_00000001", "step_00000002"]


def test_changed_configuration_is_refused_with_a_diff(tiny_run):
    run_distributed(tiny_run.with_config(max_steps=2).start, 1)
    wider = replace(tiny_run, identity={"model.width": 7, "train.lr": 1e-4})
    with pytest.raises(ConfigError, match=r"(?s)name=.*model.width: 6 in the checkpoint, 7 now.*train.lr: 0.003"):
        run_distributed(wider.start, 1)
    faster = replace(tiny_run, identity={"model.width": 6, "train.lr": 1e-4})
    with pytest.raises(ConfigError, match=r"train.allow_change=\[train.lr\]"):
        run_distributed(faster.start, 1)
    other = replace(faster, folder=faster.folder.with_name("other"))
    shutil.copytree(faster.folder, other.folder)
    for run, rate in ((faster, 0.1), (other, 0.2)):
        [(state, _)] = run_distributed(run.with_config(allow_change=["train.lr"], lr=rate).start, 1)
        assert state.step == LAST
    assert faster.weights() != other.weights()  # the permitted rate is the one that is used


def test_batch_must_divide_among_ranks(tiny_run):
    with pytest.raises(ConfigError, match="multiple of the number of processes; got 5 for 2"):
        run_distributed(tiny_run.with_config(batch_size=5).start, 2)


@pytest.mark.parametrize(
    ("batch_size", "world", "message"),
    [
        (2, 3, "multiple of the number of processes; got 2 for 3"),
        (99, 1, "at most the number of train studies; got 99"),
    ],
)
def test_a_batch_size_that_cannot_work_is_refused(batch_size, world, message):
    with pytest.raises(ConfigError, match=message):
        steps_per_epoch(batch_size, 8, world)
    assert steps_per_epoch(4, 11, 2) == 2
