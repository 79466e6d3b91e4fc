"""What feeds training: prepared studies of a split, their order, and batches that no restart and no world size changes.

numpy, pyarrow, blosc2 and torch only: a training node needs neither Ray nor polars.

    order of an epoch   s5 s2 | s7 s0 | s1 s4 | s6          batch_size 2; position 0, 2, 4; the short tail is dropped
    rank 0 of 2         s5      s7      s1
    rank 1 of 2            s2      s0      s4
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data.batches.prefetch import prefetched
from data.volumes.cache import read_volume
from ttepretrain.batch import Batch
from ttepretrain.errors import ConfigError, IntegrityError
from ttepretrain.files import sha256_of
from ttepretrain.labels import LabelTable
from ttepretrain.tasks import TaskSet
from ttepretrain.volume.spec import VolumeSpec

log = logging.getLogger(__name__)

NEEDED = ("tasks.json", "labels.parquet", "volumes.parquet", "keys.parquet")
WAIT_SECONDS = (0.2, 1.0, 5.0)  # before a failed read is tried again
SUBSTITUTES = 2  # other studies tried in place of one that stays unreadable


@dataclass(frozen=True)
class PreparedStudies:
    """The N studies of one split that have labels and a volume, in the order of their study_id."""

    folder: Path
    split: str
    tasks: TaskSet
    spec: VolumeSpec
    labels: LabelTable  # N rows
    study_key: np.ndarray  # str [N]
    subject_key: np.ndarray  # str [N]
    study_rank: np.ndarray  # int64 [N]: rank of study_id among all labelled studies
    volume_path: np.ndarray  # str [N], relative to the folder
    checksum: np.ndarray  # str [N]
    fingerprint: str  # of the whole data set, all splits

    def __len__(self) -> int:
        return len(self.study_key)

    @classmethod
    def open(cls, prepared: Path, split: str) -> PreparedStudies:
        """Raises ConfigError for a folder that jobs.prepare has not finished, IntegrityError for a changed file."""
        manifest = verified_manifest(prepared, NEEDED)
        tasks = TaskSet.load(prepared / "tasks.json")
        labels, ids = LabelTable.read(prepared / "labels.parquet", tasks)
        study_id = ids["study_id"]
        if (study_id[:-1] >= study_id[1:]).any():
            raise IntegrityError("labels.parquet is not sorted by study_id; run jobs.prepare again")
        volumes = _columns(prepared / "volumes.parquet", ["study_id", "path", "content_key", "checksum"])
        keys = _columns(prepared / "keys.parquet", ["study_id", "split", "study_key", "subject_key"])
        volume_row, key_row = (_rows(study_id, table["study_id"]) for table in (volumes, keys))
        usable = np.flatnonzero((volume_row >= 0) & (ids["split"] == split))
        volume_row, key_row = volume_row[usable], key_row[usable]
        return cls(
            folder=prepared,
            split=split,
            tasks=tasks,
            spec=VolumeSpec.from_json(manifest["volume_spec"]),
            labels=labels.take(usable),
            study_key=keys["study_key"][key_row],
            subject_key=keys["subject_key"][key_row],
            study_rank=usable.astype(np.int64),
            volume_path=volumes["path"][volume_row],
            checksum=volumes["checksum"][volume_row],
            fingerprint=_fingerprint(manifest, keys, volumes),
        )

    def read_hu(self, row: int) -> np.ndarray:
        """int16 HU [D, H, W] of one study; raises IntegrityError naming its key when the file has changed."""
        try:
            return read_volume(self.folder / self.volume_path[row], self.checksum[row])
        except IntegrityError as error:
            raise IntegrityError(f"study {self.study_key[row]}: {error}") from None


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
        if batch_size < world:
            raise ConfigError(
                f"train.batch_size must be at least the number of processes; got {batch_size} for {world}"
            )
        if len(studies) < batch_size:
            raise ConfigError(
                f"train.batch_size must be at most the number of {studies.split} studies; "
                f"got {batch_size} for {len(studies)}"
            )
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
                return row, _read_patiently(self._studies, row)
            except OSError as error:
                name = errno.errorcode.get(error.errno, "error")
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
            return row, _read_patiently(self._studies, row)
        except OSError as error:
            key = self._studies.study_key[row]
            raise IntegrityError(f"study {key} cannot be read ({error.strerror}); run jobs.prepare again") from None


def _read_patiently(studies: PreparedStudies, row: int) -> np.ndarray:
    for wait in WAIT_SECONDS:
        try:
            return studies.read_hu(row)
        except FileNotFoundError:
            raise
        except OSError:
            time.sleep(wait)
    return studies.read_hu(row)


def verified_manifest(prepared: Path, needed: Sequence[str]) -> dict:
    """manifest.json. Raises ConfigError where it lacks a needed file, IntegrityError where one has changed."""
    try:
        manifest = json.loads((prepared / "manifest.json").read_text())
        files = manifest["files"]
    except FileNotFoundError:
        raise ConfigError(f"{prepared} is not prepared; run jobs.prepare with the same configuration first") from None
    except (ValueError, KeyError, TypeError):
        raise IntegrityError("prepared/manifest.json is damaged; run jobs.prepare again") from None
    absent = [name for name in needed if name not in files]
    if absent:
        raise ConfigError(f"prepared/ has no {', '.join(absent)}; run jobs.prepare with stages labels and volumes")
    for name in needed:
        path = prepared / name
        if not path.is_file() or sha256_of(path) != files[name]["sha256"]:
            raise IntegrityError(f"prepared/{name} does not match manifest.json; run jobs.prepare again")
    return manifest


def _columns(path: Path, names: list[str]) -> dict[str, np.ndarray]:
    import pyarrow.parquet as parquet

    table = parquet.read_table(path, columns=names)
    return {name: table[name].to_numpy() for name in names}


def _rows(wanted: np.ndarray, table_ids: np.ndarray) -> np.ndarray:
    """Position of each wanted id in a table sorted by id; -1 where it is not there."""
    if len(table_ids) == 0:
        return np.full(len(wanted), -1)
    position = np.searchsorted(table_ids, wanted).clip(max=len(table_ids) - 1)
    return np.where(table_ids[position] == wanted, position, -1)


def _fingerprint(manifest: dict, keys: dict, volumes: dict) -> str:
    """Changes with any study, split, volume, label or task."""
    labels = [manifest["files"][name]["sha256"] for name in ("tasks.json", "labels.parquet")]
    row = _rows(volumes["study_id"], keys["study_id"])
    studies = zip(keys["study_key"][row], keys["split"][row], volumes["content_key"])
    return hashlib.sha256(json.dumps([labels, sorted(studies)]).encode()).hexdigest()
