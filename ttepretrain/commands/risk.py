"""`ttepretrain risk`: probability of every task within a horizon, from scans.

B scans, K tasks, T bins.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import torch

from ttepretrain.commands.batches import volumes_of
from ttepretrain.commands.main import say_what_came
from ttepretrain.commands.outputs import write_quarantine
from ttepretrain.commands.scans import find_scans
from ttepretrain.errors import BadStudy, ConfigError
from ttepretrain.export.folder import read_export
from ttepretrain.export.write import load_model
from ttepretrain.files import replacing
from ttepretrain.survival.curves import cumulative_incidence
from ttepretrain.tasks import TaskSet

SCHEMA = pa.schema(
    [("key", pa.string()), ("task", pa.string()), ("horizon_days", pa.float64()), ("risk", pa.float64())]
)


def risk_of_scans(
    folder: Path,
    inputs: Sequence[Path],
    output: Path,
    batch_size: int,
    device: str,
    horizons_days: Sequence[float],
    codes: Sequence[str] | None,
) -> None:
    """Write the risk of every usable scan, task and horizon; the whole file appears at once.

    Warns of a horizon beyond the follow-up of training.
    Raises ConfigError for a horizon inside the blackout or a code that is no task of the export.
    """
    export = read_export(folder)
    tasks = export.tasks
    columns = _columns(tasks, codes)
    early = [days for days in horizons_days if days <= tasks.blackout_days]
    if early:
        raise ConfigError(f"--horizons must lie after the blackout of {tasks.blackout_days:g} days; got {early}")
    followed = math.inf if export.follow_up_days is None else export.follow_up_days
    late = [days for days in horizons_days if days > followed]
    if late:
        print(
            f"warning: horizons {late} lie beyond the {followed:g} days for which enough subjects were "
            "followed in training; these risks hold only if the last bin's hazards go on as they were",
            file=sys.stderr, flush=True,
        )  # fmt: skip
    if export.synthetic:
        print("warning: trained on synthetic data; these risks mean nothing for a patient", file=sys.stderr, flush=True)
    scans = find_scans(inputs)
    model = load_model(folder).to(device)
    refused: dict[str, BadStudy] = {}
    with replacing(output) as part, parquet.ParquetWriter(part, SCHEMA, compression="zstd") as writer:
        for keys, volume_BDHW in volumes_of(scans, export.spec, batch_size, refused):
            with torch.inference_mode():
                z_BTK = model(volume_BDHW.to(device))
                risks = [
                    cumulative_incidence(z_BTK, days, tasks.bin_edges_days, tasks.blackout_days, tasks.death_task)
                    for days in horizons_days
                ]
            risk_BKH = torch.stack(risks, dim=2).cpu().numpy()[:, columns]
            writer.write_table(_rows(keys, [tasks.codes[k] for k in columns], horizons_days, risk_BKH))
    write_quarantine(output.with_name("quarantine.parquet"), {scan.key for scan in scans}, refused)
    say_what_came(len(scans), len(refused), output)


def _columns(tasks: TaskSet, codes: Sequence[str] | None) -> list[int]:
    unknown = sorted(set(codes or []) - set(tasks.codes))
    if unknown:
        raise ConfigError(f"--tasks: {', '.join(unknown)} is no task of the export; tasks.json in it lists them")
    return [k for k, code in enumerate(tasks.codes) if codes is None or code in codes]


def _rows(keys: Sequence[str], codes: Sequence[str], horizons_days: Sequence[float], risk_BKH: np.ndarray) -> pa.Table:
    scans, num_tasks, num_horizons = risk_BKH.shape
    columns = [
        np.repeat(np.array(keys, object), num_tasks * num_horizons),
        np.tile(np.repeat(np.array(codes, object), num_horizons), scans),
        np.tile(np.array(horizons_days, float), scans * num_tasks),
        risk_BKH.reshape(-1),
    ]
    return pa.table(columns, schema=SCHEMA)
