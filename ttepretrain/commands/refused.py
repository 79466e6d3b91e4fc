"""quarantine.parquet beside an output of `ttepretrain embed` or `risk`: the scans that were refused, and why."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet

from ttepretrain.errors import BadStudy, ConfigError
from ttepretrain.files import remove_leftovers, replacing
from ttepretrain.lock import file_lock

QUARANTINE = pa.schema([("key", pa.string()), ("code", pa.string()), ("detail", pa.string())])
QUARANTINE_NAME = "quarantine.parquet"


@contextmanager
def opened(path: Path) -> Iterator[parquet.ParquetFile]:
    """pyarrow itself opens no file whose name is not UTF-8."""
    with path.open("rb") as file:
        yield parquet.ParquetFile(file, page_checksum_verification=True)


def quarantine_of(output: Path) -> Path:
    """quarantine.parquet beside an output; a link is followed."""
    return Path(os.path.realpath(output.with_name(QUARANTINE_NAME)))


def _read_quarantine(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    if path.is_file():
        try:
            with opened(path) as file:
                table = file.read()
        except (pa.ArrowException, OSError):
            table = None
        if table is not None and table.schema.equals(QUARANTINE):
            return table.to_pylist()
    raise ConfigError(f"{path} was not written by this command; write --output to another folder")


def check_quarantine(path: Path) -> None:
    """ConfigError, before the work, where it could not be written at the end."""
    try:
        with file_lock(path, wait=True):
            _read_quarantine(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}; write --output to another folder") from None


def write_quarantine(output: Path, tried: set[str], refused: Mapping[str, BadStudy]) -> None:
    """Write quarantine.parquet beside `output`; columns key, code, detail.

    It has the scans that this run refused, and those of earlier runs that were not `tried` again. Commands with other
    outputs in the folder write it too, one at a time.
    """
    path = quarantine_of(output)
    with file_lock(path, wait=True):
        remove_leftovers(path)
        earlier = _read_quarantine(path)
        records = [record for record in earlier if record["key"] not in tried]
        records += [{"key": key, "code": str(error.code), "detail": error.detail} for key, error in refused.items()]
        if records != earlier:
            with replacing(path) as part, part.open("wb") as file:
                parquet.write_table(pa.Table.from_pylist(records, QUARANTINE), file)
