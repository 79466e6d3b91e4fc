"""Near-duplicate tasks: which train patients each task shares with the others (`ehr.max_task_overlap`).

A task's patients are the train subjects with an event in the risk set, those that `Task.patients` counts. The overlap
of two tasks is Jaccard's, shared / either. In rank order, a task is dropped when it overlaps one that stayed by more.
K tasks in rank order, S train subjects: K x S bits are held (20 MB for 8,192 x 20,000), STEP rows of it as floats.
"""

from __future__ import annotations

import numpy as np

from ehr.passes.cells import HISTORY, TIMED
from ehr.passes.scratch import read_stash
from ehr.passes.shard import Rules, Shard

STEP = 256


def patient_bits(shard: Shard, rules: Rules, tasks: np.ndarray) -> np.ndarray:
    """uint8 [K, bytes]: a bit per task and train subject of the shard, padded to whole bytes.

    tasks: code of every task. `count_shard` has been here before.
    """
    cells, studies = read_stash(rules.scratch, shard.number, len(rules.names)), shard.studies
    subject = (studies["subject_id"].rank("dense") - 1).to_numpy()
    task_of = np.full(len(rules.names), -1)
    task_of[tasks] = np.arange(len(tasks))
    row = np.repeat(np.arange(len(studies)), cells.count)
    hit = (cells.state & TIMED > 0) & studies["train"].to_numpy()[row] & (task_of[cells.code] >= 0)
    if rules.incident:
        hit &= cells.state & HISTORY == 0
    bits = np.zeros((len(tasks), studies["subject_id"].n_unique()), bool)
    bits[task_of[cells.code[hit]], subject[row[hit]]] = True
    return np.packbits(bits, axis=1)


def distinct(bits: np.ndarray, max_overlap: float, most: int) -> np.ndarray:
    """Positions of the tasks that stay, ascending, at most `most`. bits: uint8 [K, bytes], in rank order."""
    size_K = np.bitwise_count(bits).sum(axis=1, dtype=np.int64)
    kept = np.empty(0, np.int64)
    for begin in range(0, len(bits), STEP):
        if len(kept) >= most:
            break
        new = np.arange(begin, min(begin + STEP, len(bits)))
        beaten = np.zeros(len(new), bool)
        for other in range(0, len(kept), STEP):
            beaten |= _near(bits, size_K, new, kept[other : other + STEP], max_overlap).any(axis=1)
        new = new[~beaten]
        earlier = np.tril(_near(bits, size_K, new, new, max_overlap), -1)
        kept = np.append(kept, new[_first_come(earlier)])
    return kept[:most]


def _near(bits: np.ndarray, size_K: np.ndarray, rows: np.ndarray, columns: np.ndarray, bound: float) -> np.ndarray:
    """bool [rows, columns]: overlap above the bound."""
    one, other = (np.unpackbits(bits[which], axis=1).astype(np.float32) for which in (rows, columns))
    shared = one @ other.T  # exact: whole numbers below 2^24
    return shared > bound * (size_K[rows][:, None] + size_K[columns] - shared)


def _first_come(earlier: np.ndarray) -> np.ndarray:
    """bool [n]: tasks that stay when each in turn is dropped if an earlier near one stays.

    earlier[i, j]: j < i and near. A task without an undecided earlier neighbour is decided; a round settles all of
    those at once.
    """
    stays, undecided = np.zeros(len(earlier), bool), np.ones(len(earlier), bool)
    while undecided.any():
        first = undecided & ~(earlier & undecided).any(axis=1)
        stays |= first
        undecided &= ~first & ~(earlier & first).any(axis=1)
    return stays
