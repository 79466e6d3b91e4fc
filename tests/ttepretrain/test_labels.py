"""LabelTable and Batch: ragged rows are taken, read and collated as the lists they stand for."""

from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch

from ttepretrain.errors import IntegrityError
from ttepretrain.labels import LabelTable, Ragged
from ttepretrain.testing import random_batch, random_task_set

ROWS = [  # study, subject, split, censor, {task: days}, history, visit
    ("b", 7, "train", 730.5, {0: 41.25, 5: 1.0 + 1e-6}, [1, 5], [1]),
    ("c", 7, "train", 9.0, {}, [], []),
    ("a", 2**40, "held_out", 100.0, {3: 100.0}, [0], []),
    ("d", 1, "tuning", 55.0, {}, [2, 3, 4], [3, 4]),
]


def lists(ragged: Ragged) -> list[list[int]]:
    return [ragged.index[a:b].tolist() for a, b in zip(ragged.offset, ragged.offset[1:])]


@pytest.fixture(params=["list", "large_list", "two row groups"])
def path(request, tmp_path):
    """Written by pyarrow as list, as polars does as large_list, and in pieces."""
    list_of = pa.large_list if request.param == "large_list" else pa.list_
    table = pa.table(
        {
            "study_id": [row[0] for row in ROWS],
            "subject_id": pa.array([row[1] for row in ROWS], pa.int64()),
            "split": [row[2] for row in ROWS],
            "index_time": pa.array([datetime(2020, 1, 1)] * 4, pa.timestamp("us")),
            "censor_days": [row[3] for row in ROWS],
            "task_index": pa.array([list(row[4]) for row in ROWS], list_of(pa.int32())),
            "event_days": pa.array([list(row[4].values()) for row in ROWS], list_of(pa.float64())),
            "history_index": pa.array([row[5] for row in ROWS], list_of(pa.int32())),
            "visit_index": pa.array([row[6] for row in ROWS], list_of(pa.int32())),
        }
    )
    parquet.write_table(table, tmp_path / "labels.parquet", row_group_size=2 if "two" in request.param else None)
    return tmp_path / "labels.parquet"


def test_reading_gives_the_rows_in_float64(path):
    labels, ids = LabelTable.read(path)
    assert len(labels) == 4
    assert labels.censor_days.dtype == labels.event_days.dtype == np.float64
    assert labels.censor_days.tolist() == [730.5, 9.0, 100.0, 55.0]
    assert lists(labels.events) == [[0, 5], [], [3], []]
    assert labels.event_days.tolist() == [41.25, 1.0 + 1e-6, 100.0]
    assert lists(labels.history) == [[1, 5], [], [0], [2, 3, 4]]
    assert lists(labels.visit) == [[1], [], [], [3, 4]]
    assert ids["study_id"].tolist() == ["b", "c", "a", "d"]
    assert ids["subject_id"].tolist() == [7, 7, 2**40, 1]
    assert ids["split"].tolist() == ["train", "train", "held_out", "tuning"]


def rewritten(path, name: str, values: list) -> None:
    """The column holds other values."""
    table = parquet.read_table(path)
    column = table.schema.get_field_index(name)
    parquet.write_table(table.set_column(column, name, pa.array(values, table.schema.field(name).type)), path)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("task_index", [[0, 0], [], [3], []], "task_index must ascend within a row; got 0 a second time or late"),
        ("task_index", [[5, 0], [], [3], []], "task_index must ascend within a row; got 0 a second"),
        ("task_index", [[0, 6], [], [3], []], "task_index must be one of 6 tasks; got 6"),
        ("task_index", [[-1, 5], [], [3], []], "task_index must be one of 6 tasks; got -1"),
        ("task_index", [[0], [5], [3], []], "task_index and event_days differ in length"),
        ("task_index", [[0, 5], None, [3], []], "task_index holds nulls"),
        ("event_days", [[41.25, 1.0], [], [100.0], []], r"after the blackout of 1 days .* of 730\.5; got 1;"),
        ("event_days", [[41.25, 1.5], [], [100.5], []], r"not after the row's censor_days of 100; got 100\.5"),
        ("event_days", [[41.25, float("nan")], [], [100.0], []], r"of 730\.5; got nan"),
        ("event_days", [[41.25, None], [], [100.0], []], "event_days holds nulls"),
        ("history_index", [[1, 1], [], [0], [2]], "history_index must ascend within a row; got 1"),
        ("history_index", [[1], [7], [0], [2]], "history_index must be one of 6 tasks; got 7"),
        ("visit_index", [[1], [], [], [4, 3]], "visit_index must ascend within a row; got 3"),
        ("censor_days", [730.5, 1.0, 100.0, 55.0], "censor_days must lie after the blackout of 1 days; got 1"),
        ("censor_days", [730.5, float("inf"), 100.0, 55.0], "censor_days must lie after .*; got inf"),
    ],
)
def test_labels_that_the_likelihood_would_count_wrongly_are_refused(path, name, values, message):
    """Twice the same pair, an event in the blackout or after censoring, a task that is none."""
    tasks = random_task_set(np.random.default_rng(0), 6)
    LabelTable.read(path, tasks)
    rewritten(path, name, values)
    with pytest.raises(IntegrityError, match=rf"labels\.parquet: .*{message}.*run jobs\.prepare again$"):
        LabelTable.read(path, tasks)


def test_rows_may_begin_with_a_lower_task_than_the_row_before_ended_with(path):
    rewritten(path, "history_index", [[4, 5], [], [0], [0, 1]])
    assert lists(LabelTable.read(path)[0].history) == [[4, 5], [], [0], [0, 1]]


def test_follow_up_is_that_of_enough_subjects_at_the_longest_of_their_studies(path):
    labels, ids = LabelTable.read(path)
    assert [labels.follow_up_days(ids["subject_id"], least) for least in (1, 2, 3, 9)] == [730, 100, 55, 55]


@pytest.mark.parametrize("rows", [[2, 0], [1], [0, 0, 3], [], [3, 2, 1, 0]])
def test_taking_rows_in_any_order_takes_their_lists_along(path, rows):
    labels, _ = LabelTable.read(path)
    taken = labels.take(np.array(rows, np.int64))
    assert taken.censor_days.tolist() == [ROWS[row][3] for row in rows]
    assert lists(taken.events) == [list(ROWS[row][4]) for row in rows]
    assert taken.event_days.tolist() == [days for row in rows for days in ROWS[row][4].values()]
    assert lists(taken.history) == [ROWS[row][5] for row in rows]
    assert lists(taken.visit) == [ROWS[row][6] for row in rows]


def test_a_table_without_rows_reads_as_one(path):
    parquet.write_table(parquet.read_table(path).slice(0, 0), path)
    labels, ids = LabelTable.read(path)
    assert (len(labels), len(ids["study_id"]), labels.events.offset.tolist()) == (0, 0, [0])


def test_a_batch_names_row_and_task_of_every_entry(path):
    labels, _ = LabelTable.read(path)
    batch = random_batch(np.random.default_rng(0), labels.take(np.array([2, 0])), (3, 4, 5))
    assert batch.volume_BDHW.shape == (2, 3, 4, 5)
    assert batch.volume_BDHW.dtype == torch.int16
    assert batch.censor_days_B.tolist() == [100.0, 730.5]
    assert list(zip(batch.event_row_N.tolist(), batch.event_task_N.tolist())) == [(0, 3), (1, 0), (1, 5)]
    assert batch.event_days_N.dtype == torch.float32
    assert batch.event_days_N.tolist() == pytest.approx([100.0, 41.25, 1.0])
    assert list(zip(batch.history_row_M.tolist(), batch.history_task_M.tolist())) == [(0, 0), (1, 1), (1, 5)]
    assert list(zip(batch.visit_row_V.tolist(), batch.visit_task_V.tolist())) == [(1, 1)]
    moved = batch.to("meta")
    assert {getattr(moved, name).device.type for name in moved.__dataclass_fields__} == {"meta"}
