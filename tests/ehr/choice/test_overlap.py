"""Near-duplicate tasks: who goes, against plain sets and loops."""

from datetime import datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehr.choice.overlap import distinct
from ehr.config import EhrConfig
from ttepretrain.errors import ConfigError

T0, DAY = datetime(2150, 1, 1, 9), timedelta(days=1)


def packed(*tasks: set[int], num_subjects: int = 20) -> np.ndarray:
    return np.packbits([[s in task for s in range(num_subjects)] for task in tasks], axis=1)


def in_turn(tasks: list[set], bound: float, most: int) -> list[int]:
    kept = []
    for k, task in enumerate(tasks):
        near = any(len(task & tasks[j]) / len(task | tasks[j]) > bound for j in kept)
        if not near and len(kept) < most:
            kept.append(k)
    return kept


def test_an_overlap_at_the_bound_stays_and_one_above_it_goes():
    """Shared 3 of 4 is .75."""
    bits = packed({0, 1, 2}, {0, 1, 2, 3}, {9})
    assert distinct(bits, 0.75, 9).tolist() == [0, 1, 2]
    assert distinct(bits, 0.74, 9).tolist() == [0, 2]


def test_only_a_task_that_stayed_can_drive_another_out():
    """B is like A, C is like B and not like A: B goes, C stays."""
    a, b, c = {0, 1, 2, 3}, {1, 2, 3, 4}, {2, 3, 4, 5}
    assert distinct(packed(a, b, c), 0.5, 9).tolist() == [0, 2]
    assert distinct(packed(b, a, c), 0.5, 9).tolist() == [0]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6), step=st.sampled_from([1, 3, 256]), bound=st.sampled_from([0.2, 0.5, 0.9]),
    most=st.integers(1, 70),
)  # fmt: skip
def test_equals_one_task_after_the_other_however_they_are_cut_into_blocks(seed, step, bound, most):
    rng = np.random.default_rng(seed)
    base = [set(rng.choice(20, rng.integers(1, 12), replace=False).tolist()) for _ in range(15)]
    tasks = [
        base[rng.integers(15)] ^ set(rng.choice(20, rng.integers(0, 3), replace=False).tolist()) for _ in range(60)
    ]
    tasks = [task or {0} for task in tasks]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ehr.choice.overlap.STEP", step)
        assert distinct(packed(*tasks), bound, most).tolist() == in_turn(tasks, bound, most)


def copied_records(seed: int) -> list[tuple]:
    """30 subjects, 20 codes; V/1 follows V/0 in nearly the same subjects, V/3 follows V/2, and so on."""
    rng = np.random.default_rng(seed)
    rows = [(s, T0 + 300 * DAY, "V/end") for s in range(30)]
    for pair in range(10):
        subjects = rng.choice(30, rng.integers(3, 15), replace=False)
        for s in subjects.tolist():
            day = int(rng.integers(-60, 290))
            rows.append((s, T0 + day * DAY, f"V/{2 * pair}"))
            if rng.random() < 0.85:
                rows.append((s, T0 + (day + int(rng.integers(5))) * DAY, f"V/{2 * pair + 1}"))
    return rows


@pytest.mark.parametrize("recurrence", ["all", "incident"])
@pytest.mark.parametrize("seed", range(3))
def test_tasks_and_labels_equal_plain_loops(tmp_path, meds, label, same_as_oracle, monkeypatch, seed, recurrence):
    """The train patients of a task lie in several shards."""
    folder = meds.write(tmp_path / "ehr", [copied_records(seed)])
    studies = meds.studies([(s, T0, "train" if s % 4 else "tuning") for s in range(30)])
    config = {"recurrence": recurrence, "min_events": 1, "min_patients": 1, "num_tasks": 9, "max_task_overlap": 0.6}
    monkeypatch.setattr("ehr.passes.survey.ROWS_PER_SHARD", 30)
    result = label(folder, studies, **config)
    assert result.counts["shards"] > 3
    assert result.counts["tasks"]["near_duplicates"] > 2
    same_as_oracle(result, folder, studies, meds.phenotypes, **config)


def test_a_copy_of_a_task_goes_and_unlike_tasks_stay(tmp_path, meds, label):
    """V/copy follows V/a in every patient, V/b is in others, V/old shares the history only; else all stay."""
    rows = [(s, T0 + (5 + s) * DAY, "V/a") for s in (1, 2, 3)] + [(s, T0 + (6 + s) * DAY, "V/copy") for s in (1, 2, 3)]
    rows += [(s, T0 + 9 * DAY, "V/b") for s in (3, 4, 5)]
    rows += [(s, T0 - 9 * DAY, "V/old") for s in (1, 2, 3)] + [(5, T0 + 9 * DAY, "V/old")]
    rows += [(s, T0 + 90 * DAY, "V/end") for s in range(1, 9)]
    folder, studies = meds.write(tmp_path / "ehr", [rows]), meds.studies([(s, T0, "train") for s in range(1, 9)])
    nothing = {"p": {"codes": ["V/none"]}}
    pruned = label(folder, studies, nothing, exclude=["V/end"], max_task_overlap=0.9)
    assert set(pruned.tasks.codes) == {"V/a", "V/b", "V/old"}
    assert pruned.counts["tasks"]["near_duplicates"] == 1
    whole = label(folder, studies, nothing, exclude=["V/end"])
    assert set(whole.tasks.codes) == {"V/a", "V/copy", "V/b", "V/old"}
    assert "near_duplicates" not in whole.counts["tasks"]


def test_what_goes_makes_room_below_the_cut(tmp_path, meds, label):
    rows = [(s, T0 + (5 + s) * DAY, code) for s in (1, 2, 3) for code in ("V/a", "V/copy")]
    rows += [(4, T0 + 9 * DAY, "V/c")] + [(s, T0 + 90 * DAY, "V/end") for s in range(1, 9)]
    folder, studies = meds.write(tmp_path / "ehr", [rows]), meds.studies([(s, T0, "train") for s in range(1, 9)])
    config = {"exclude": ["V/end"], "num_tasks": 2}
    assert label(folder, studies, **config).tasks.codes == ("V/a", "V/copy")
    pruned = label(folder, studies, max_task_overlap=0.5, **config)
    assert pruned.tasks.codes == ("V/a", "V/c")
    assert pruned.counts["tasks"]["beyond_num_tasks"] == 0


@pytest.mark.parametrize("value", [0.0, 1.0, 1.5])
def test_a_bound_that_prunes_all_or_nothing_is_refused(value):
    with pytest.raises(ConfigError, match=r"ehr\.max_task_overlap must lie in \(0, 1\)"):
        EhrConfig(max_task_overlap=value)
