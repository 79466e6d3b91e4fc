"""Arguments that several commands share, and their checks."""

from __future__ import annotations

import argparse
from pathlib import Path

from ttepretrain.errors import ConfigError

INPUT = (
    "a NIfTI file, a DICOM folder, a folder that contains any number of them, or a table (csv or parquet) with the "
    "columns key and image"
)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """EXPORT, INPUT, --output, --batch-size and --device, for a command that applies a model to scans."""
    parser.add_argument("export", type=Path, metavar="EXPORT", help="export folder, as written by pretraining")
    parser.add_argument("inputs", type=Path, nargs="+", metavar="INPUT", help=INPUT)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="parquet file to write")
    parser.add_argument("--batch-size", type=int, default=4, metavar="N", help="scans per forward pass (default: 4)")
    parser.add_argument("--device", default="cpu", help="torch device, such as cuda or cuda:1 (default: cpu)")


def check_model_arguments(parsed: argparse.Namespace) -> None:
    """ConfigError for an impossible value, before any scan is read."""
    if parsed.batch_size < 1:
        raise ConfigError(f"--batch-size must be at least 1; got {parsed.batch_size}")
    check_device(parsed.device)
    check_writable("--output", parsed.output)


def check_device(name: str) -> None:
    """ConfigError for a device that torch does not know or that this machine does not have."""
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError):  # torch built without CUDA asserts
        raise ConfigError(f"--device {name} is not there; use cpu, or cuda on a machine with a CUDA GPU") from None


def check_writable(option: str, path: Path) -> None:
    """ConfigError where the folder of an output file does not exist."""
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"{option}: the folder {path.absolute().parent} does not exist")
