"""A model applied to scans on disk, in batches of volumes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute
import torch
from torch import Tensor

from ttepretrain.commands.outputs import ResultFile
from ttepretrain.commands.say import say
from ttepretrain.commands.scans import Scan
from ttepretrain.errors import BadDataError, BadStudy, ExportError
from ttepretrain.volume.preprocess import preprocess_ct
from ttepretrain.volume.refusal import read_or_refuse
from ttepretrain.volume.spec import VolumeSpec

Rows = Callable[[list[str], Tensor], pa.Table]  # of keys and their int16 HU [B, D, H, W]


def fill(
    results: ResultFile, scans: Sequence[Scan], spec: VolumeSpec, batch_size: int, load: Callable[[], Rows]
) -> None:
    """Add the rows of every usable scan that `results` lacks. `load` brings the model where there is one to do."""
    todo = results.missing(scans)
    if len(todo) < len(scans):
        say(f"{len(scans)} scans, {len(scans) - len(todo)} of them already done")
    if todo:
        rows_of = load()
        for keys, volume_BDHW in volumes_of(todo, spec, batch_size, results.refused):
            rows = rows_of(keys, volume_BDHW)
            _require_finite(rows.columns[-1])
            results.add(keys, rows)


def _require_finite(values: pa.ChunkedArray) -> None:
    while pa.types.is_list(values.type):
        values = pa.compute.list_flatten(values)
    if not np.isfinite(values.to_numpy()).all():
        raise ExportError("the export's network gives values that are not finite; copy or export it again")


def volumes_of(
    scans: Sequence[Scan], spec: VolumeSpec, batch_size: int, refused: dict[str, BadStudy]
) -> Iterator[tuple[list[str], Tensor]]:
    """Keys and int16 HU [B, D, H, W] of up to `batch_size` scans at a time. Refused scans are added to `refused`."""
    volumes: dict[str, np.ndarray] = {}
    for scan in scans:
        volume = read_or_refuse(preprocess_ct, scan.path, spec)
        if isinstance(volume, BadStudy):
            refused[scan.key] = volume
        else:
            volumes[scan.key] = volume.hu_DHW
        if len(volumes) == batch_size or (volumes and scan is scans[-1]):
            yield list(volumes), torch.from_numpy(np.stack(list(volumes.values())))
            volumes = {}


def report(scans: int, refused: int, output: Path) -> None:
    """Print how many scans are in `output`. Raises BadDataError when every scan was refused."""
    if refused == scans:
        raise BadDataError(f"none of {scans} scans can be used; quarantine.parquet has the reasons")
    say(f"{scans - refused} of {scans} scans are in {output.name}")
    if refused:
        say(f"{refused} cannot be used; quarantine.parquet has the reasons")
