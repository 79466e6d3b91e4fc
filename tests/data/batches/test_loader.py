"""Batches depend on (seed, epoch, position) alone, and on files that are what jobs.prepare wrote."""

import errno
import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from data.batches.loader import BatchLoader, EvaluationLoader, epoch_order
from data.prepared import opened
from data.prepared.opened import PreparedStudies
from data.testing import load_module
from ttepretrain.errors import IntegrityError
from ttepretrain.volume import refusal

folder_of = load_module(Path(__file__).parents[1] / "numbered_folder.py")
SPEC, NUM_STUDIES = folder_of.SPEC, folder_of.NUM_STUDIES
FROZEN_ORDER = [6, 7, 8, 4, 0, 1, 5, 3, 9, 2]  # epoch_order(10, seed=7, epoch=2)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return folder_of.write_folder(tmp_path_factory.mktemp("loader") / "prepared")


@pytest.fixture(scope="module")
def prepared(written):
    return written[0]


@pytest.fixture
def own_copy(prepared, tmp_path):
    return shutil.copytree(prepared, tmp_path / "prepared")


@pytest.fixture(scope="module")
def train(prepared):
    return PreparedStudies.open(prepared, "train")


def numbers(batch):
    """Which studies a batch holds, read from its voxels."""
    assert batch.volume_BDHW.dtype == torch.int16
    assert batch.volume_BDHW.shape[1:] == SPEC.shape_DHW
    return batch.volume_BDHW[:, 0, 0, 0].tolist()


def equal(first, second):
    return all(torch.equal(getattr(first, f.name), getattr(second, f.name)) for f in fields(first))


# --- order


def test_the_order_of_an_epoch_never_changes_between_releases():
    assert epoch_order(10, seed=7, epoch=2).tolist() == FROZEN_ORDER


def test_every_epoch_and_seed_has_its_own_order_of_all_studies():
    orders = {(seed, epoch): tuple(epoch_order(50, seed, epoch)) for seed in range(4) for epoch in range(4)}
    assert len(set(orders.values())) == 16
    assert all(sorted(order) == list(range(50)) for order in orders.values())


def global_batches(train, world, start_position=0, batch_size=4, epoch=1):
    """Studies of every batch in the order of its rows, put together from all ranks' shares."""
    shares = [
        [numbers(b) for b in BatchLoader(train, batch_size, 3, rank, world, epoch, start_position)]
        for rank in range(world)
    ]
    assert len({len(share) for share in shares}) == 1
    batches = []
    for parts in zip(*shares):
        rows = [None] * batch_size
        for rank, part in enumerate(parts):
            rows[rank::world] = part
        batches.append(rows)
    return batches


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("start_position", [0, 4, 12, 20, 24])
def test_batches_are_the_same_for_any_world_size_and_resume_position(train, world, start_position):
    all_numbers = [int(train.read_hu(row)[0, 0, 0]) for row in range(len(train))]
    order = [all_numbers[row] for row in epoch_order(len(train), seed=3, epoch=1)]
    expected = [order[i : i + 4] for i in range(start_position, len(train) - 3, 4)]
    assert global_batches(train, world, start_position) == expected
    assert len(BatchLoader(train, 4, 3, 0, world, 1, start_position)) == len(expected)


def test_order_over_many_world_sizes_and_positions(train, monkeypatch):
    """The plan alone, without reading: 8 world sizes x 200 positions of a large epoch."""
    monkeypatch.setattr(PreparedStudies, "__len__", lambda _: 1700)
    order = epoch_order(1700, 3, 0)
    for position in range(0, 1600, 8):
        for world in range(1, 9):
            loaders = [BatchLoader(train, 8, 3, rank, world, 0, position) for rank in range(world)]
            for i in (0, len(loaders[0]) - 1):
                rows = np.empty(8, int)
                for rank, one in enumerate(loaders):
                    rows[rank::world] = one._order[one._batches[i]]
                np.testing.assert_array_equal(rows, order[position + 8 * i : position + 8 * i + 8])


def test_a_batch_carries_the_labels_of_its_rows(train, written):
    for batch in BatchLoader(train, 5, seed=0):
        for b, n in enumerate(numbers(batch)):
            expected = written[1].take(np.array([n]))
            mine = batch.event_row_N == b
            assert batch.censor_days_B[b] == np.float32(expected.censor_days[0])
            assert batch.event_task_N[mine].tolist() == expected.events.index.tolist()
            np.testing.assert_array_equal(batch.event_days_N[mine], expected.event_days.astype(np.float32))
            assert batch.history_task_M[batch.history_row_M == b].tolist() == expected.history.index.tolist()


def test_the_number_of_reading_threads_changes_nothing(train):
    one, four = (list(BatchLoader(train, 4, 0, threads=n)) for n in (1, 4))
    assert all(equal(a, b) for a, b in zip(one, four, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_batches_copied_ahead_to_the_device_are_the_same(train):
    """Also when the consumer is slower than the copies, whose memory must not be given away under it."""
    device = torch.device("cuda")
    here = list(BatchLoader(train, 4, seed=3))
    for batch, expected in zip(BatchLoader(train, 4, seed=3, device=device), here, strict=True):
        assert batch.volume_BDHW.device.type == "cuda"
        torch.cuda._sleep(10_000_000)
        for field in fields(batch):
            assert torch.equal(getattr(batch, field.name).cpu(), getattr(expected, field.name)), field.name


@pytest.mark.parametrize("world", [1, 2, 4])
def test_evaluation_sees_every_study_once_in_fixed_order(train, world):
    shares = [[numbers(b) for b in EvaluationLoader(train, 4, rank, world)] for rank in range(world)]
    assert {len(share) for share in shares} == {-(-len(train) // 4)}
    seen = []
    for parts in zip(*shares):
        rows = [None] * sum(map(len, parts))
        for rank, part in enumerate(parts):
            rows[rank::world] = part
        seen += rows
    assert seen == [int(train.read_hu(row)[0, 0, 0]) for row in range(len(train))]


# --- faults


def test_leaving_the_iteration_early_ends_its_threads(train):
    import threading

    iteration = iter(BatchLoader(train, 2, 0))
    next(iteration)
    iteration.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("volumes")]


def test_a_flipped_byte_in_a_volume_stops_the_run_and_names_the_key(own_copy):
    train = PreparedStudies.open(own_copy, "train")
    file = own_copy / train.volume_path[6]
    data = bytearray(file.read_bytes())
    data[-30] ^= 1
    file.write_bytes(data)
    with pytest.raises(IntegrityError, match=train.study_key[6]):
        list(BatchLoader(train, 3, 0))


def test_a_lost_volume_is_replaced_by_the_same_other_study_everywhere(own_copy, caplog):
    train = PreparedStudies.open(own_copy, "train")
    lost = int(train.read_hu(6)[0, 0, 0])
    whole = global_batches(train, 1)
    (own_copy / train.volume_path[6]).unlink()
    batches = global_batches(train, 1)
    assert [len(b) for b in batches] == [len(b) for b in whole]
    changed = [(a, b) for x, y in zip(whole, batches) for a, b in zip(x, y) if a != b]
    assert [a for a, _ in changed] == [lost]
    assert global_batches(train, 2) == batches
    assert global_batches(train, 4) == batches
    assert train.study_key[6] in caplog.text
    assert "ct-" not in caplog.text
    with pytest.raises(IntegrityError, match=f"study {train.study_key[6]} cannot be read"):
        list(EvaluationLoader(train, 4))


def test_an_error_that_passes_is_waited_for(train, monkeypatch):
    waits, failures = [], [errno.EIO, errno.ESTALE]
    monkeypatch.setattr(refusal.time, "sleep", waits.append)
    read = opened.read_volume

    def flaky(path, checksum):
        if failures:
            raise OSError(failures.pop(), "try again")
        return read(path, checksum)

    monkeypatch.setattr(opened, "read_volume", flaky)
    assert len(list(BatchLoader(train, 4, 0, threads=1))) == len(train) // 4
    assert waits == list(refusal.WAIT_SECONDS[:2])
