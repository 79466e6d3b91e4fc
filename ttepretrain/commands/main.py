"""Command line of the library: `ttepretrain info | embed | risk | doctor`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from ttepretrain.commands.scans import find_scans
from ttepretrain.errors import BadDataError, BadStudy, ConfigError, exit_with

SCANS = "NIfTI file, DICOM folder, folder of either, or a table (csv, parquet) with columns key,image"
SAVE_SECONDS = 60.0  # work that a killed run loses at most


def main() -> None:
    """Entry point of the `ttepretrain` script."""
    exit_with(run, "ttepretrain")


def run(arguments: list[str]) -> None:
    """One command. Raises the DeclaredError that decides the exit code."""
    parser = argparse.ArgumentParser(prog="ttepretrain", description="3D CT encoders pretrained on time-to-event data")
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")
    info = commands.add_parser("info", help="encoder, volume spec, tasks and provenance of an export")
    info.add_argument("export", type=Path, metavar="EXPORT")
    embed = commands.add_parser(
        "embed",
        help="features of scans",
        description="Features of scans, as parquet with columns key and embedding. Scans that cannot be used go to "
        "quarantine.parquet beside it. Running the command again goes on where it stopped.",
    )
    risk = commands.add_parser(
        "risk",
        help="probability of every task within a horizon",
        description="Probability that a task happens within the horizon and before death, as parquet with columns key, "
        "task, horizon_days, risk. Scans that cannot be used go to quarantine.parquet beside it.",
    )
    risk.add_argument(
        "--horizons", type=_days, required=True, metavar="DAYS,DAYS", help="days from the scan: 30,180,365"
    )
    risk.add_argument("--tasks", nargs="+", metavar="CODE", help="these tasks only (default: all of the export)")
    for command in (embed, risk):
        _add_scan_arguments(command)
    _add_doctor(commands)
    parsed = parser.parse_args(arguments)
    if parsed.command == "info":
        print_info(parsed.export)
        return
    if parsed.command == "doctor":
        run_doctor(parsed)
        return
    if parsed.batch_size < 1:
        raise ConfigError(f"--batch-size must be at least 1; got {parsed.batch_size}")
    if not parsed.output.absolute().parent.is_dir():
        raise ConfigError(f"--output: the folder {parsed.output.absolute().parent} does not exist")
    given = (parsed.export, parsed.inputs, parsed.output, parsed.batch_size, parsed.device)
    if parsed.command == "embed":
        embed_scans(*given)
    else:
        from ttepretrain.commands.risk import risk_of_scans

        risk_of_scans(*given, parsed.horizons, parsed.tasks)


def _add_doctor(commands) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="what would become of scans: reasons, geometry, HU, a picture",
        description="One pass over scans, as jobs.prepare and embed would read them: why some cannot be used, what was "
        "repaired, spacing, size and HU. Scans are numbered in the order of their sorted paths; nothing names them.",
    )
    doctor.add_argument("inputs", type=Path, nargs="+", metavar="DIR", help=SCANS)
    doctor.add_argument("--preset", default="default", help="volume spec: a value of volume.preset (default: default)")
    doctor.add_argument("--json", type=Path, metavar="FILE", help="write everything that was found")
    doctor.add_argument("--montage", type=Path, metavar="FILE.png", help="write what a network will see of some scans")
    doctor.add_argument("--montage-scans", type=int, default=6, metavar="N", help="how many of them (default 6)")


def run_doctor(parsed: argparse.Namespace) -> None:
    """Raises ConfigError for an output that cannot be written, before any scan is read."""
    from ttepretrain.commands.doctor import diagnose

    for option, path in (("--json", parsed.json), ("--montage", parsed.montage)):
        if path and not path.absolute().parent.is_dir():
            raise ConfigError(f"{option}: the folder {path.absolute().parent} does not exist")
    if parsed.montage_scans < 1:
        raise ConfigError(f"--montage-scans must be at least 1; got {parsed.montage_scans}")
    diagnose(parsed.inputs, parsed.preset, parsed.json, parsed.montage, parsed.montage_scans)


def _add_scan_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("export", type=Path, metavar="EXPORT")
    command.add_argument("inputs", type=Path, nargs="+", metavar="INPUT", help=SCANS)
    command.add_argument("-o", "--output", type=Path, required=True, help="parquet file to write or to complete")
    command.add_argument("--batch-size", type=int, default=4, help="scans per forward pass (default 4)")
    command.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")


def _days(text: str) -> list[float]:
    days = [float(part) for part in text.split(",")]
    if not all(0 < day < float("inf") for day in days):
        raise ValueError
    return days


def print_info(folder: Path) -> None:
    from ttepretrain.export.folder import read_export

    export = read_export(folder)
    spec, tasks = export.spec, export.tasks
    lines = {
        "encoder": f"{export.model.encoder}, norm {export.model.norm}, {export.feature_dim} features",
        "shape D H W": " x ".join(map(str, spec.shape_DHW)) + " voxels",
        "spacing D H W": " x ".join(f"{mm:g}" for mm in spec.spacing_mm) + " mm",
        "HU": f"{spec.hu_range[0]} to {spec.hu_range[1]}",
        "windows": ", ".join(f"centre {centre:g} width {width:g}" for centre, width in spec.windows),
        "tasks": f"{tasks.num_tasks}; the first: {', '.join(tasks.codes[:3])}",
        "bin edges": ", ".join(f"{edge:g}" for edge in tasks.bin_edges_days) + " days",
        "at risk": f"after day {tasks.blackout_days:g}, recurrence {tasks.recurrence}",
        "fitted on": f"{tasks.fitted_on.get('count')} train subjects",
        **{f"provenance {key}": value for key, value in export.provenance.items()},
        **{f"version {key}": value for key, value in export.versions.items()},
        "fingerprint": export.fingerprint,
    }
    width = max(map(len, lines))
    print("\n".join(f"{key:{width}}  {value}" for key, value in lines.items()))
    if export.synthetic:
        print("Trained on synthetic data: the weights know nothing about patients.")


def embed_scans(folder: Path, inputs: Sequence[Path], output: Path, batch_size: int, device: str) -> None:
    """Write the embedding of every usable scan to `output` and the others' reasons to quarantine.parquet beside it.

    Scans that `output` already has from the same export are not read again; refused ones are tried again.
    """
    scans = find_scans(inputs)
    from ttepretrain.commands.batches import volumes_of
    from ttepretrain.commands.outputs import EmbeddingTable, write_quarantine
    from ttepretrain.export.folder import read_export
    from ttepretrain.export.write import load_encoder

    table = EmbeddingTable(output, read_export(folder).fingerprint)
    todo = [scan for scan in scans if scan.key not in table.rows]
    print(f"{len(scans)} scans, {len(scans) - len(todo)} of them embedded before", flush=True)
    refused: dict[str, BadStudy] = {}
    if todo:
        saved = time.monotonic()
        encoder = load_encoder(folder, device)
        for keys, volume_BDHW in volumes_of(todo, encoder.spec, batch_size, refused):
            table.rows.update(zip(keys, encoder.embed_hu(volume_BDHW).numpy()))
            if time.monotonic() - saved > SAVE_SECONDS:
                table.save()
                saved = time.monotonic()
                print(f"{len(table.rows)} embedded, {len(refused)} refused", flush=True)
    table.save()
    write_quarantine(output.with_name("quarantine.parquet"), {scan.key for scan in scans}, refused)
    say_what_came(len(scans), len(refused), output)


def say_what_came(scans: int, refused: int, output: Path) -> None:
    """Raises BadDataError when every scan was refused."""
    if refused == scans:
        raise BadDataError(f"none of {scans} scans can be used; quarantine.parquet has the reasons")
    print(f"{scans - refused} of {scans} scans are in {output.name}")
    if refused:
        print(f"{refused} cannot be used; quarantine.parquet has the reasons")
