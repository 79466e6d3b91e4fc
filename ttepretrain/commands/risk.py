"""`ttepretrain risk`: probability of every task within a horizon, from scans.

B scans, K tasks, T bins, H horizons.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ttepretrain.commands.arguments import add_model_arguments, check_model_arguments
from ttepretrain.commands.scans import find_scans
from ttepretrain.errors import ConfigError
from ttepretrain.log import log
from ttepretrain.tasks import TaskSet

if TYPE_CHECKING:
    import pyarrow as pa

    from ttepretrain.commands.batches import Rows

SUMMARY = "compute the risk of every task within a horizon"
DESCRIPTION = """\
Compute the probability that each task happens within each horizon and before
death. The output is a parquet file with the columns key, task, horizon_days and
risk. A scan that cannot be read is skipped; quarantine.parquet beside the output
gives the reason.

Run the same command again to resume: scans already in the output are not read
again."""
EXAMPLE = "runs/default/pretrain/tte/export scans/ --horizons 30,180,365 -o risks.parquet"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument(
        "--horizons", type=_days, required=True, metavar="DAYS,DAYS", help="days after the scan, such as 30,180,365"
    )
    parser.add_argument("--tasks", nargs="+", metavar="CODE", help="compute these tasks only (default: all)")


def run(parsed: argparse.Namespace) -> None:
    check_model_arguments(parsed)
    risk_of_scans(
        parsed.export, parsed.inputs, parsed.output, parsed.batch_size, parsed.device, parsed.horizons, parsed.tasks
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
    """Write the risk of every usable scan, task and horizon to `output`; scans that it already has are not read again.

    Warns about a horizon beyond the follow-up of training. Raises ConfigError for a horizon within the blackout or a
    code that is no task of the export.
    """
    import torch

    from ttepretrain.commands.batches import fill, report
    from ttepretrain.commands.outputs import RISKS, result_file, risk_table
    from ttepretrain.export.folder import read_export
    from ttepretrain.export.load import load_model
    from ttepretrain.survival.curves import cumulative_incidence

    export = read_export(folder)
    tasks = export.tasks
    columns = _columns(tasks, codes)
    early = [days for days in horizons_days if days <= tasks.blackout_days]
    if early:
        raise ConfigError(f"--horizons must lie after the blackout of {tasks.blackout_days:g} days; got {early}")
    followed = math.inf if export.follow_up_days is None else export.follow_up_days
    late = [days for days in horizons_days if days > followed]
    if late:
        log.warning(
            "horizons %s lie beyond the %g days for which enough subjects were followed in training; these risks "
            "assume that the hazards of the last bin stay constant", late, followed,
        )  # fmt: skip
    if export.synthetic:
        log.warning("the model was trained on synthetic data; these risks mean nothing for a patient")
    scans = find_scans(inputs)
    chosen = [tasks.codes[k] for k in columns]

    def load() -> Rows:
        model = load_model(folder).to(device)

        def rows_of(keys: list[str], volume_BDHW: torch.Tensor) -> pa.Table:
            with torch.inference_mode():
                z_BTK = model(volume_BDHW.to(device))
                risks = [
                    cumulative_incidence(z_BTK, days, tasks.bin_edges_days, tasks.blackout_days, tasks.death_task)
                    for days in horizons_days
                ]
            return risk_table(keys, chosen, horizons_days, torch.stack(risks, dim=2).cpu().numpy()[:, columns])

        return rows_of

    settings = {"horizons_days": list(horizons_days), "tasks": "all" if len(chosen) == tasks.num_tasks else chosen}
    per_scan = len(chosen) * len(horizons_days)
    with result_file(output, scans, export, RISKS, settings, per_scan) as results:
        fill(results, scans, export.spec, batch_size, load)
    report(len(scans), len(results.refused), output)


def _days(text: str) -> list[float]:
    try:
        days = [float(part) for part in text.split(",")]
    except ValueError:
        days = [math.nan]
    if not all(0 < day < math.inf for day in days):
        raise argparse.ArgumentTypeError(f"must be days after the scan, such as 30,180,365; got {text!r}")
    return days


def _columns(tasks: TaskSet, codes: Sequence[str] | None) -> list[int]:
    unknown = sorted(set(codes or []) - set(tasks.codes))
    if unknown:
        raise ConfigError(f"--tasks: {', '.join(unknown)} is not a task of this export; its tasks.json lists them")
    return [k for k, code in enumerate(tasks.codes) if codes is None or code in codes]
