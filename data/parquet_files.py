"""Parquet files written whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as parquet
from polars.datatypes import DataTypeClass

from ttepretrain.files import replacing


def write_parquet(
    frame: pl.DataFrame, path: Path, mode: int = 0o644, check: Callable[[pa.Table], None] | None = None
) -> None:
    """Equal frames give equal bytes. check: sees the table before it is written, and raises where it is wrong."""
    # store_schema=False: dictionaries (categorical codes) save memory here, readers see the strings they stand for.
    table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
    if check is not None:
        check(table)
    with replacing(path, mode) as sibling:
        sibling.touch(mode)
        parquet.write_table(table, sibling, store_schema=False, **_encoding(frame.schema))


def _encoding(schema: pl.Schema) -> dict:
    """Where pyarrow's choice wastes time: lists of ascending numbers take half of it as differences, and less space;
    lists of categories a quarter without least and greatest string. Neither gains from compression; lists of times do,
    by snappy in half of zstd's time.
    """
    leaf = {name: f"{name}.list.element" if isinstance(t, pl.List) else name for name, t in schema.items()}
    inner = {leaf[name]: t.inner for name, t in schema.items() if isinstance(t, pl.List)}
    return {
        "compression": {name: _compression(inner.get(name)) for name in leaf.values()},
        "use_dictionary": [name for name in leaf.values() if name not in inner or not inner[name].is_numeric()],
        "column_encoding": {name: "DELTA_BINARY_PACKED" for name, t in inner.items() if t.is_integer()},
        "write_statistics": [name for name in leaf.values() if inner.get(name) not in (pl.Categorical, pl.Enum)],
    }


def _compression(element: pl.DataType | DataTypeClass | None) -> str:
    """element: of a list; None of any other column."""
    if element is None or element == pl.String:
        return "zstd"
    return "snappy" if element.is_float() else "none"
