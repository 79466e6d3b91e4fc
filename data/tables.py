"""Parquet files written whole."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import polars as pl

from ttepretrain.files import write_atomic


def write_parquet(frame: pl.DataFrame, path: Path, mode: int = 0o644) -> None:
    """Equal frames give equal bytes. In memory first: polars leaves a partial file when a disk fills."""
    buffer = BytesIO()
    frame.write_parquet(buffer, compression="zstd")
    write_atomic(path, buffer.getvalue(), mode)
