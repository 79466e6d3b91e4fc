"""Command line of the library: `ttepretrain info EXPORT`, `ttepretrain embed EXPORT INPUT... -o embeddings.parquet`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ttepretrain.errors import BadDataError, BadStudy, ConfigError, exit_with
from ttepretrain.scans import Scan, find_scans

if TYPE_CHECKING:
    import numpy as np

    from ttepretrain.embedder import Embedder

SAVE_SECONDS = 60.0  # work that a killed run loses at most


def main() -> None:
    """Entry point of the `ttepretrain` script."""
    exit_with(run)


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
    embed.add_argument("export", type=Path, metavar="EXPORT")
    embed.add_argument(
        "inputs", type=Path, nargs="+", metavar="INPUT",
        help="NIfTI file, DICOM folder, folder of either, or a table (csv, parquet) with columns key,image",
    )  # fmt: skip
    embed.add_argument("-o", "--output", type=Path, required=True, help="parquet file to write or to complete")
    embed.add_argument("--batch-size", type=int, default=4, help="scans per forward pass (default 4)")
    embed.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    parsed = parser.parse_args(arguments)
    if parsed.command == "info":
        print_info(parsed.export)
    else:
        embed_scans(parsed.export, parsed.inputs, parsed.output, parsed.batch_size, parsed.device)


def print_info(folder: Path) -> None:
    from ttepretrain.export_folder import read_export

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
    if batch_size < 1:
        raise ConfigError(f"--batch-size must be at least 1; got {batch_size}")
    if not output.absolute().parent.is_dir():
        raise ConfigError(f"--output: the folder {output.absolute().parent} does not exist")
    scans = find_scans(inputs)
    from ttepretrain.embedding_table import EmbeddingTable, write_quarantine
    from ttepretrain.export import load_encoder
    from ttepretrain.export_folder import read_export

    table = EmbeddingTable(output, read_export(folder).fingerprint)
    todo = [scan for scan in scans if scan.key not in table.rows]
    print(f"{len(scans)} scans, {len(scans) - len(todo)} of them embedded before", flush=True)
    refused: dict[str, BadStudy] = {}
    if todo:
        saved = time.monotonic()
        for rows in _embedded(load_encoder(folder, device), todo, batch_size, refused):
            table.rows.update(rows)
            if time.monotonic() - saved > SAVE_SECONDS:
                table.save()
                saved = time.monotonic()
                print(f"{len(table.rows)} embedded, {len(refused)} refused", flush=True)
    table.save()
    write_quarantine(output.with_name("quarantine.parquet"), {scan.key for scan in scans}, refused)
    if len(refused) == len(scans):
        raise BadDataError(f"none of {len(scans)} scans can be used; quarantine.parquet has the reasons")
    print(f"{len(scans) - len(refused)} of {len(scans)} scans are in {output.name}")
    if refused:
        print(f"{len(refused)} cannot be used; quarantine.parquet has the reasons")


def _embedded(
    encoder: Embedder, scans: Sequence[Scan], batch_size: int, refused: dict[str, BadStudy]
) -> Iterator[dict[str, np.ndarray]]:
    """Embeddings by key, a batch at a time; scans that cannot be used go to `refused`."""
    import numpy as np
    import torch

    from ttepretrain.volume.preprocess import preprocess_ct

    volumes: dict[str, np.ndarray] = {}
    for scan in scans:
        try:
            volumes[scan.key] = preprocess_ct(scan.path, encoder.spec).hu_DHW
        except BadStudy as error:
            refused[scan.key] = error
        if len(volumes) == batch_size or (volumes and scan is scans[-1]):
            embedding_BF = encoder.embed_hu(torch.from_numpy(np.stack(list(volumes.values())))).numpy()
            yield dict(zip(volumes, embedding_BF))
            volumes = {}
