"""`ttepretrain embed`: one feature vector per scan."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from ttepretrain.commands.arguments import add_model_arguments, check_model_arguments
from ttepretrain.commands.scans import find_scans
from ttepretrain.errors import BadStudy

SAVE_SECONDS = 60.0  # a killed run loses at most this much work

SUMMARY = "compute one feature vector per scan"
DESCRIPTION = """\
Compute the features of every scan and write them to a parquet file with the
columns key and embedding (a list of float32). A scan that cannot be read is
skipped; quarantine.parquet beside the output gives the reason.

Run the same command again to resume: scans already in the output are not read
again."""
EXAMPLE = "runs/default/pretrain/tte/export scans/ -o embeddings.parquet"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)


def run(parsed: argparse.Namespace) -> None:
    check_model_arguments(parsed)
    embed_scans(parsed.export, parsed.inputs, parsed.output, parsed.batch_size, parsed.device)


def embed_scans(folder: Path, inputs: Sequence[Path], output: Path, batch_size: int, device: str) -> None:
    """Write the embedding of every usable scan to `output`, and the reasons of the others to quarantine.parquet.

    Scans that `output` already has from the same export are not read again; refused ones are tried again.
    """
    scans = find_scans(inputs)
    from ttepretrain.commands.batches import volumes_of
    from ttepretrain.commands.outputs import EmbeddingTable, report, write_quarantine
    from ttepretrain.export.folder import read_export
    from ttepretrain.export.load import load_encoder

    table = EmbeddingTable(output, read_export(folder).fingerprint)
    todo = [scan for scan in scans if scan.key not in table.rows]
    print(f"{len(scans)} scans, {len(scans) - len(todo)} of them already embedded", flush=True)
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
    write_quarantine(output, {scan.key for scan in scans}, refused)
    report(len(scans), len(refused), output)
