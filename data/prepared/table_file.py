"""One table of `prepared/`, checked and written. Not in write.py: labels do not depend on how CT is read."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from data.parquet_files import write_parquet
from data.prepared.schema import Table


def write_table(folder: Path, table: Table, frame: pl.DataFrame) -> None:
    """Write a table of `prepared/`; raises IntegrityError where it is not as the schema says."""
    write_parquet(frame, folder / table.name, table.mode, table.check)
