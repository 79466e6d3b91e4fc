"""What training opens of `prepared/`: the studies of a split, their labels and volumes, checked against the schema.

numpy, pyarrow and blosc2 only: a training node needs neither Ray nor polars.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

from data.prepared import schema
from data.volumes.cache import read_volume
from ttepretrain.errors import ConfigError, IntegrityError
from ttepretrain.files import sha256_of
from ttepretrain.labels import LabelTable
from ttepretrain.tasks import TaskSet
from ttepretrain.volume.spec import VolumeSpec

TASKS = "tasks.json"
NEEDED = (TASKS, schema.LABELS.name, schema.VOLUMES.name, schema.KEYS.name)


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
        """Raises ConfigError where jobs.prepare has not finished, IntegrityError for a file that is not as written."""
        manifest = verified_manifest(prepared, NEEDED)
        tasks = TaskSet.load(prepared / TASKS)
        check_types(prepared, schema.LABELS, schema.LABELS.names)
        study_id = _arrays(read_table(prepared, schema.LABELS, ["study_id"]))["study_id"]
        labels, ids = LabelTable.read(prepared / schema.LABELS.name, tasks)
        volumes = _arrays(read_table(prepared, schema.VOLUMES, ["study_id", "path", "content_key", "checksum"]))
        keys = _arrays(read_table(prepared, schema.KEYS, ["study_id", "split", "study_key", "subject_key"]))
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
            fingerprint=_fingerprint(tasks, manifest, keys, volumes),
        )

    def read_hu(self, row: int) -> np.ndarray:
        """int16 HU [D, H, W] of one study; raises IntegrityError naming its key when the file has changed."""
        try:
            return read_volume(self.folder / self.volume_path[row], self.checksum[row])
        except IntegrityError as error:
            raise IntegrityError(f"study {self.study_key[row]}: {error}") from None


def verified_manifest(prepared: Path, needed: Sequence[str]) -> dict:
    """manifest.json. Raises ConfigError where it lacks a needed file, IntegrityError where one has changed."""
    try:
        manifest = json.loads((prepared / "manifest.json").read_text())
        version, files = manifest["schema_version"], manifest["files"]
    except FileNotFoundError:
        raise ConfigError(f"{prepared} is not prepared; run jobs.prepare with the same configuration first") from None
    except (ValueError, KeyError, TypeError):
        raise IntegrityError("prepared/manifest.json is damaged; run jobs.prepare again") from None
    if version != schema.SCHEMA_VERSION:
        raise IntegrityError(
            f"prepared/manifest.json: expected schema_version {schema.SCHEMA_VERSION}, found {version}; "
            "run jobs.prepare again with this release"
        )
    absent = [name for name in needed if name not in files]
    if absent:
        raise ConfigError(f"prepared/ has no {', '.join(absent)}; run jobs.prepare with stages labels and volumes")
    for name in needed:
        path = prepared / name
        if not path.is_file() or sha256_of(path) != files[name]["sha256"]:
            raise IntegrityError(f"prepared/{name} does not match manifest.json; run jobs.prepare again")
    return manifest


def read_table(prepared: Path, table: schema.Table, names: Sequence[str]) -> pa.Table:
    """The named columns of a table of `prepared/`; raises IntegrityError where they are not as the schema says."""
    check_types(prepared, table, names)
    found = parquet.read_table(prepared / table.name, columns=list(names))
    with _with_remedy():
        table.check_values(found)
    return found


def check_types(prepared: Path, table: schema.Table, names: Sequence[str]) -> None:
    """Raise IntegrityError naming file and column where a column is absent or of another type than the schema's."""
    found = parquet.read_schema(prepared / table.name)
    with _with_remedy():
        table.check_types(found, names)


@contextmanager
def _with_remedy() -> Iterator[None]:
    try:
        yield
    except IntegrityError as error:
        raise IntegrityError(f"{error}; run jobs.prepare again") from None


def _arrays(table: pa.Table) -> dict[str, np.ndarray]:
    return {name: table[name].to_numpy() for name in table.column_names}


def _rows(wanted: np.ndarray, table_ids: np.ndarray) -> np.ndarray:
    """Position of each wanted id in a table sorted by id; -1 where it is not there."""
    if len(table_ids) == 0:
        return np.full(len(wanted), -1)
    position = np.searchsorted(table_ids, wanted).clip(max=len(table_ids) - 1)
    return np.where(table_ids[position] == wanted, position, -1)


def _fingerprint(tasks: TaskSet, manifest: dict, keys: dict[str, np.ndarray], volumes: dict[str, np.ndarray]) -> str:
    """Changes with any study, split, volume, label or task."""
    labels = [tasks.digest, manifest["files"][schema.LABELS.name]["sha256"]]
    row = _rows(volumes["study_id"], keys["study_id"])
    studies = zip(keys["study_key"][row], keys["split"][row], volumes["content_key"])
    return hashlib.sha256(json.dumps([labels, sorted(studies)]).encode()).hexdigest()
