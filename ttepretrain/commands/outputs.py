"""The table of results that `ttepretrain embed` and `risk` write, saved as it grows. Beside it: refused.py.

B scans, K tasks, H horizons.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as parquet

from ttepretrain.commands.arguments import written_alone
from ttepretrain.commands.refused import QUARANTINE_NAME, check_quarantine, opened, quarantine_of, write_quarantine
from ttepretrain.commands.scans import Scan
from ttepretrain.errors import BadStudy, ConfigError, IntegrityError, ResourceError
from ttepretrain.files import replacing
from ttepretrain.log import log

if TYPE_CHECKING:
    from ttepretrain.export.folder import Export

EMBEDDINGS = pa.schema([("key", pa.string()), ("embedding", pa.list_(pa.float32()))])
RISKS = pa.schema([("key", pa.string()), ("task", pa.string()), ("horizon_days", pa.float64()), ("risk", pa.float64())])
# Keys of the output's metadata.
FINGERPRINT = b"ttepretrain_export"  # which export made the rows
SETTINGS = b"ttepretrain_settings"  # the options that decide their values
SCANS = b"ttepretrain_scans"  # JSON key -> Stamp, in the order of the rows
SAVE_SECONDS = 60.0  # a killed run loses at most this much work,
SAVE_SHARE = 20.0  # or this many times what a save takes: large files are written less often
PENDING_BYTES = 256 << 20  # of rows that are not saved yet
GROUP_ROWS = 1 << 15  # of a parquet row group

Stamp = list[int] | None  # size and time of change of the file or folder; None: it could not be looked at


class ResultFile:
    """Rows of one kind, of one export and of the same options; `rows_per_scan` of each scan stand together.

    Opening an existing file keeps its rows. The file is whole at every instant, and the same bytes whether it was
    written at once or in parts. Raises ConfigError for a file with rows of another kind, export or options.
    """

    def __init__(self, path: Path, schema: pa.Schema, fingerprint: str, settings: Mapping[str, object], per_scan: int):
        self._path, self._per_scan = path, per_scan
        self._made_by = {FINGERPRINT: fingerprint.encode(), SETTINGS: json.dumps(settings).encode()}
        self._schema = schema
        self._stamps: dict[str, Stamp] = {}
        self._found: dict[str, Stamp] = {}  # of this run's scans, from before they are read
        self.refused: dict[str, BadStudy] = {}  # scans of this run that cannot be used
        self._pending: list[tuple[Sequence[str], pa.Table]] = []  # keys and their rows, not yet in the file
        self._replaced: set[str] = set()  # keys whose rows in the file are out of date
        self._saved, self._took = time.monotonic(), 0.0
        if path.exists():
            self._open()

    def _open(self) -> None:
        with opened(self._path) as file:
            schema, num_rows = file.schema_arrow, file.metadata.num_rows
        said = schema.metadata or {}
        if schema.names != self._schema.names:
            raise ConfigError(f"--output {self._path} has the columns {', '.join(schema.names)}; name another file")
        if said[FINGERPRINT] != self._made_by[FINGERPRINT]:
            raise ConfigError(f"--output {self._path} has rows of another export; name another file, or remove it")
        if said[SETTINGS] != self._made_by[SETTINGS]:
            raise ConfigError(
                f"--output {self._path} was made with other --horizons or --tasks; name another file, or remove it"
            )
        try:
            self._stamps = json.loads(said[SCANS])
        except ValueError:
            self._stamps = {}
        if not isinstance(self._stamps, dict) or num_rows != len(self._stamps) * self._per_scan:
            raise IntegrityError(f"{self._path} has {num_rows} rows, not those of the scans it lists; remove it")

    def missing(self, scans: Sequence[Scan]) -> list[Scan]:
        """The scans without rows here. Rows of a file that has changed since are dropped: it may be another scan."""
        self._found = {scan.key: _stamp(scan.path) for scan in scans}
        kept = self._found.keys() & self._stamps.keys()
        changed = [key for key in kept if self._found[key] not in (None, self._stamps[key])]
        for key in changed:
            del self._stamps[key]
        self._replaced |= set(changed)
        if changed:
            log.warning("%d scans changed since their rows in %s were made; made again", len(changed), self._path.name)
        return [scan for scan in scans if scan.key not in self._stamps]

    @property
    def keys(self) -> set[str]:
        return set(self._stamps)

    def add(self, keys: Sequence[str], rows: pa.Table) -> None:
        """Rows of scans that were `missing`, in this order. They reach the disk from time to time, and with `save`."""
        self._pending.append((keys, rows))  # one step: a signal may come at any moment
        if (
            time.monotonic() - self._saved > max(SAVE_SECONDS, SAVE_SHARE * self._took)
            or sum(table.nbytes for _, table in self._pending) > PENDING_BYTES
        ):
            self.save()
            log.info("%d scans are in %s", len(self._stamps), self._path.name)

    def save(self) -> None:
        """Put all rows on the disk. Where there is nothing new, the file stays as it is."""
        if not self._pending and not self._replaced:
            return
        start = time.monotonic()
        stamps = self._stamps | {key: self._found[key] for keys, _ in self._pending for key in keys}
        metadata = self._made_by | {SCANS: json.dumps(stamps).encode()}
        schema = self._schema.with_metadata(metadata)
        with (
            replacing(self._path) as part,
            part.open("wb") as file,
            parquet.ParquetWriter(file, schema, compression="zstd", write_page_checksum=True) as writer,
        ):
            for table in self._groups():
                writer.write_table(table.cast(schema), row_group_size=len(table))
        self._stamps = stamps
        self._pending, self._replaced = [], set()
        self._saved = time.monotonic()
        self._took = self._saved - start

    def _groups(self) -> Iterator[pa.Table]:
        """All rows, in groups of a size that depends on nothing but the number of rows per scan."""
        size = max(1, GROUP_ROWS // self._per_scan) * self._per_scan
        waiting: list[pa.Table] = []
        for table in self._tables():
            waiting.append(table)
            while sum(map(len, waiting)) >= size:
                joined = pa.concat_tables(waiting)
                yield joined.slice(0, size).combine_chunks()
                waiting = [joined.slice(size)]
        if waiting and (joined := pa.concat_tables(waiting).combine_chunks()):
            yield joined

    def _tables(self) -> Iterator[pa.Table]:
        """Rows of the file, without those that are out of date, then the new ones."""
        # An interruption just after a save leaves its rows both in the file and here.
        new = [key for keys, _ in self._pending for key in keys]
        dropped = pa.array([*self._replaced, *new], pa.string())
        if self._path.exists():
            with opened(self._path) as file:
                for group in range(file.num_row_groups):
                    table = self._group(file, group)
                    stays = pa.compute.invert(pa.compute.is_in(table["key"], value_set=dropped))
                    yield table.filter(stays) if len(dropped) else table
        yield from (table for _, table in self._pending)

    def _group(self, file: parquet.ParquetFile, group: int) -> pa.Table:
        try:
            return file.read_row_group(group).replace_schema_metadata()
        except (pa.ArrowException, OSError):
            raise IntegrityError(f"{self._path} is damaged; remove it, and run the command again") from None


@contextmanager
def result_file(
    output: Path,
    scans: Sequence[Scan],
    export: Export,
    schema: pa.Schema,
    settings: Mapping[str, object],
    per_scan: int = 1,
) -> Iterator[ResultFile]:
    """The output, this process's alone for the block. What was added and refused is saved however the block ends.

    Raises ConfigError for an output that would lie in the export or in a scan, or beside a quarantine.parquet of
    something else.
    """
    with written_alone("--output", output, _is_result) as target:
        if target.name.lower() == QUARANTINE_NAME:
            raise ConfigError(f"--output {output}: the reasons of refused scans go to {QUARANTINE_NAME}; name another")
        _refuse_place(target, [export.folder, *(scan.path for scan in scans)])
        check_quarantine(quarantine_of(target))
        results = ResultFile(target, schema, export.fingerprint, settings, per_scan)
        try:
            yield results
        finally:
            try:
                results.save()
                write_quarantine(target, results.keys | results.refused.keys(), results.refused)
            except OSError as error:  # its folder has gone, its disk has failed
                raise ResourceError(f"--output {output} can no longer be written: {error.strerror}") from None


def _is_result(path: Path) -> bool:
    try:
        with opened(path) as file:
            said = (file.schema_arrow.metadata or {}).keys()
    except pa.ArrowException:
        raise ConfigError(f"--output {path} exists and is not a parquet file; name another") from None
    if FINGERPRINT in said and not {SETTINGS, SCANS} <= said:
        raise ConfigError(f"--output {path} was written by an earlier release; remove it, or name another")
    return FINGERPRINT in said


def _refuse_place(output: Path, paths: Sequence[Path]) -> None:
    places = [output.stat()] if output.exists() else []
    places += [folder.stat() for folder in output.parents]
    taken = {(place.st_dev, place.st_ino) for place in places}
    for path in paths:
        try:
            status = path.stat()
        except (OSError, ValueError):
            continue
        if (status.st_dev, status.st_ino) in taken:
            raise ConfigError("--output lies in the export or in the folder of a scan; write to another folder")


def _stamp(path: Path) -> Stamp:
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return [status.st_size, status.st_mtime_ns]


def embedding_table(keys: Sequence[str], features_BF: np.ndarray) -> pa.Table:
    """EMBEDDINGS: one row per scan."""
    return pa.table([pa.array(keys, pa.string()), pa.array(list(features_BF), pa.list_(pa.float32()))], EMBEDDINGS)


def risk_table(
    keys: Sequence[str], codes: Sequence[str], horizons_days: Sequence[float], risk_BKH: np.ndarray
) -> pa.Table:
    """RISKS: one row per scan, task and horizon, in that order."""
    scans, num_tasks, num_horizons = risk_BKH.shape
    columns = [
        np.repeat(np.array(keys, object), num_tasks * num_horizons),
        np.tile(np.repeat(np.array(codes, object), num_horizons), scans),
        np.tile(np.array(horizons_days, float), scans * num_tasks),
        risk_BKH.reshape(-1),
    ]
    return pa.table(columns, schema=RISKS)
