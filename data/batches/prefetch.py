"""Batches made ahead of their use: volumes are read by threads, and copied to a CUDA device, while another is used."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing

import numpy as np
import torch

from data.prepared.opened import PreparedStudies
from ttepretrain.batch import Batch

AHEAD = 2  # batches that are read while one is consumed

# A slot of a batch -> row of the studies and its int16 voxels
Read = Callable[[int], tuple[int, np.ndarray]]


def prefetched(
    studies: PreparedStudies,
    batches: Iterable[np.ndarray],
    read: Read,
    threads: int,
    device: torch.device | None,
) -> Iterator[Batch]:
    """A Batch for the slots of every batch, in order: on a CUDA `device`, else in this machine's memory."""
    if device is None or device.type != "cuda":
        return _collated(studies, batches, read, threads, pin=False)
    return _copied_ahead(_collated(studies, batches, read, threads, pin=True), device)


def _copied_ahead(batches: Generator[Batch, None, None], device: torch.device) -> Iterator[Batch]:
    """Each batch on the device, copied by a stream of its own while the one before is computed with."""
    stream = torch.cuda.Stream(device)
    waiting: tuple[Batch, torch.cuda.Event] | None = None
    with closing(batches):
        for batch in batches:
            with torch.cuda.stream(stream):
                coming = batch.to(device), stream.record_event()
            if waiting is not None:
                yield _handed_over(*waiting)
            waiting = coming
    if waiting is not None:
        yield _handed_over(*waiting)


def _handed_over(batch: Batch, copied: torch.cuda.Event) -> Batch:
    """The batch, for the stream that computes: it waits for the copy, and the memory stays its own until it is done."""
    current = torch.cuda.current_stream(batch.volume_BDHW.device)
    current.wait_event(copied)
    for tensor in vars(batch).values():
        tensor.record_stream(current)
    return batch


def _collated(
    studies: PreparedStudies, batches: Iterable[np.ndarray], read: Read, threads: int, pin: bool
) -> Generator[Batch, None, None]:
    with ThreadPoolExecutor(threads, thread_name_prefix="volumes") as pool:
        waiting: deque[list[Future]] = deque()
        coming = iter(batches)
        try:
            while True:
                while len(waiting) <= AHEAD and (slots := next(coming, None)) is not None:
                    waiting.append([pool.submit(read, int(slot)) for slot in slots])
                if not waiting:
                    return
                yield _collate(studies, [future.result() for future in waiting.popleft()], pin)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _collate(studies: PreparedStudies, loaded: list[tuple[int, np.ndarray]], pin: bool) -> Batch:
    rows = np.array([row for row, _ in loaded], np.int64)
    # int16 to the device: windows and float32 are made there. Pinned: the copy then needs no CPU and waits for none.
    volume_BDHW = torch.empty((len(rows), *studies.spec.shape_DHW), dtype=torch.int16, pin_memory=pin)
    hu_BDHW = volume_BDHW.numpy()
    for b, (_, hu_DHW) in enumerate(loaded):
        hu_BDHW[b] = hu_DHW
    return Batch.collate(volume_BDHW, torch.from_numpy(studies.study_rank[rows]), studies.labels.take(rows))
