"""Parquet files written whole."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import polars as pl
import pyarrow.parquet as parquet

from ttepretrain.files import write_atomic


def write_parquet(frame: pl.DataFrame, path: Path, mode: int = 0o644) -> None:
    """Equal frames give equal bytes. In memory first: a full disk leaves no partial file."""
    buffer = BytesIO()
    # store_schema=False: dictionaries (categorical codes) save memory here, readers see the strings they stand for.
    table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
    parquet.write_table(table, buffer, compression="zstd", store_schema=False)
    write_atomic(path, buffer.getvalue(), mode)
