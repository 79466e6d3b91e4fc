"""What feeds training: the order of the studies, and batches that neither a restart nor the world size changes.

numpy, pyarrow, blosc2 and torch only: a training node needs neither Ray nor polars.

    order of an epoch   s5 s2 | s7 s0 | s1 s4 | s6          batch_size 2; position 0, 2, 4; the short tail is dropped
    rank 0 of 2         s5      s7      s1
    rank 1 of 2            s2      s0      s4
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

import numpy as np
import torch

from data.batches.prefetch import prefetched
from data.prepared.opened import PreparedStudies
from ttepretrain.batch import Batch
from ttepretrain.errors import IntegrityError
from ttepretrain.log import log
from ttepretrain.volume.refusal import patiently

SUBSTITUTES = 2  # other studies tried in place of one that stays unreadable


def epoch_order(num: int, seed: int, epoch: int) -> np.ndarray:
    """Permutation of range(num), int64; a function of its arguments alone.

    Sorts raw Philox output: numpy promises that stream for ever, and that of Generator.permutation not.
    """
    draws = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(num)
    return np.argsort(draws, kind="stable")


class BatchLoader:
    """This rank's share of the batches of one epoch: rows rank::world of every batch of `batch_size` studies.

    `start_position` counts studies of the epoch already consumed; batch i of the iteration starts at
    start_position + i * batch_size. Every rank gets the same number of batches.
    """

    def __init__(
        self,
        studies: PreparedStudies,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        epoch: int = 0,
        start_position: int = 0,
        threads: int = 2,
        device: torch.device | None = None,
    ):
        order = epoch_order(len(studies), seed, epoch)
        ends = range(start_position + batch_size, len(order) + 1, batch_size)
        self._studies, self._order, self._threads, self._device = studies, order, threads, device
        self._batches = [np.arange(end - batch_size, end)[rank::world] for end in ends]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        return prefetched(self._studies, self._batches, self._read, self._threads, self._device)

    def _read(self, position: int) -> tuple[int, np.ndarray]:
        """Row and voxels at a position of the epoch, or of its substitute: other ranks wait for this batch."""
        num = len(self._order)
        for attempt in range(SUBSTITUTES + 1):
            # half an epoch away: hardly ever in the same batch, and the same after every restart
            row = self._order[(position + attempt * (num // 2 + 1)) % num]
            try:
                return row, patiently(self._studies.read_hu, row)
            except OSError as error:
                name = errno.errorcode.get(error.errno or 0, "error")
                log.warning("study %s cannot be read (%s); another takes its place", self._studies.study_key[row], name)
        raise IntegrityError(f"{SUBSTITUTES + 1} volumes in a row cannot be read; run jobs.prepare again")


class EvaluationLoader:
    """This rank's share of all studies, or of `most` evenly spaced ones, in their fixed order.

    The short tail is included; it may be empty for a rank.
    """

    def __init__(
        self,
        studies: PreparedStudies,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        threads: int = 2,
        most: int | None = None,
        device: torch.device | None = None,
    ):
        self._studies, self._threads, self._device = studies, threads, device
        num = len(studies) if most is None else min(most, len(studies))
        rows = np.arange(num) * len(studies) // max(num, 1)
        self._batches = [rows[s : s + batch_size][rank::world] for s in range(0, num, batch_size)]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        return prefetched(self._studies, self._batches, self._read, self._threads, self._device)

    def _read(self, row: int) -> tuple[int, np.ndarray]:
        try:
            return row, patiently(self._studies.read_hu, row)
        except OSError as error:
            key = self._studies.study_key[row]
            raise IntegrityError(f"study {key} cannot be read ({error.strerror}); run jobs.prepare again") from None
