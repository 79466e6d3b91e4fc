"""Arguments that several commands share, and their checks."""

from __future__ import annotations

import argparse
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ttepretrain.errors import ConfigError
from ttepretrain.files import remove_leftovers
from ttepretrain.lock import file_lock

INPUT = (
    "a NIfTI file, a DICOM folder, a folder that contains any number of them, or a table (csv or parquet) with the "
    "columns key and image"
)

LONGEST_NAME = 230  # bytes; temporary names are up to 20 longer, and file systems allow 255


def path_given(text: str) -> Path:
    """An unset variable of a shell must not stand for the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("is empty; write . for the current folder")
    return Path(text)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """EXPORT, INPUT, --output, --batch-size and --device, for a command that applies a model to scans."""
    parser.add_argument("export", type=path_given, metavar="EXPORT", help="export folder, as written by pretraining")
    parser.add_argument("inputs", type=path_given, nargs="+", metavar="INPUT", help=INPUT)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="parquet file to write")
    parser.add_argument("--batch-size", type=int, default=4, metavar="N", help="scans per forward pass (default: 4)")
    parser.add_argument("--device", default="cpu", help="torch device, such as cuda or cuda:1 (default: cpu)")


def check_model_arguments(parsed: argparse.Namespace) -> None:
    """ConfigError for an impossible value, before any scan is read."""
    if parsed.batch_size < 1:
        raise ConfigError(f"--batch-size must be at least 1; got {parsed.batch_size}")
    if parsed.output.suffix.lower() != ".parquet":
        raise ConfigError(f"--output is a parquet file: name it .parquet; got {parsed.output.name}")
    check_device(parsed.device)


def check_device(name: str) -> None:
    """ConfigError for a device that torch does not know or that this machine does not have."""
    import torch

    try:
        torch.zeros(1, device=name).cpu()  # a device without memory, such as meta, fails here
    except Exception:  # torch built without CUDA asserts; others miss a module or an operator
        raise ConfigError(f"--device {name} is not there; use cpu, or cuda on a machine with a CUDA GPU") from None


@contextmanager
def written_alone(option: str, path: Path, is_ours: Callable[[Path], bool]) -> Iterator[Path]:
    """The file to write for the option, the target where `path` is a link; no other process writes it in the block.

    Raises ConfigError before any work for what could not be written at the end, and for a file that is not ours;
    IntegrityError, naming the other process, where there is one. What killed writers of this file left is removed.
    """
    target = Path(os.path.realpath(path))
    try:
        _check_target(option, path, target)
    except OSError as error:  # a folder on the way that may not be entered
        raise ConfigError(f"{option} {path} cannot be written: {error.strerror}") from None
    with _locked(option, target):
        try:
            remove_leftovers(target)
            ours = not target.exists() or is_ours(target)
        except OSError as error:
            raise ConfigError(f"{option} {path} cannot be read: {error.strerror}") from None
        if not ours:
            raise ConfigError(f"{option} {path} exists and was not written by this command; name another")
        yield target


def _check_target(option: str, path: Path, target: Path) -> None:
    if len(os.fsencode(target.name)) > LONGEST_NAME:
        raise ConfigError(f"{option}: the name of {path} is too long")
    if not target.parent.is_dir():
        raise ConfigError(f"{option}: the folder {target.parent} does not exist")
    if target.is_dir():
        raise ConfigError(f"{option} {path} is a folder; name a file")
    if target.exists() and not stat.S_ISREG(target.stat().st_mode):
        raise ConfigError(f"{option} {path} is a pipe, socket or device; name a file")


@contextmanager
def _locked(option: str, target: Path) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(file_lock(target))
        except OSError as error:
            raise ConfigError(f"{option}: the folder {target.parent} cannot be written: {error.strerror}") from None
        yield
