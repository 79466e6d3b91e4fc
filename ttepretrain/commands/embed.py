"""`ttepretrain embed`: one feature vector per scan."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ttepretrain.commands.arguments import add_model_arguments, check_model_arguments
from ttepretrain.commands.scans import find_scans

if TYPE_CHECKING:
    from ttepretrain.commands.batches import Rows

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
    from ttepretrain.commands.batches import fill, report
    from ttepretrain.commands.outputs import EMBEDDINGS, embedding_table, result_file
    from ttepretrain.export.folder import read_export
    from ttepretrain.export.load import load_encoder

    export = read_export(folder)

    def load() -> Rows:
        encoder = load_encoder(folder, device)
        return lambda keys, volume_BDHW: embedding_table(keys, encoder.embed_hu(volume_BDHW).numpy())

    with result_file(output, scans, export, EMBEDDINGS, {}) as results:
        fill(results, scans, export.spec, batch_size, load)
    report(len(scans), len(results.refused), output)
