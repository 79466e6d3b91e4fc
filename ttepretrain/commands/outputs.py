"""The files that `ttepretrain embed` writes: embeddings.parquet, and quarantine.parquet beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

from ttepretrain.errors import BadStudy, ConfigError
from ttepretrain.files import replacing

FINGERPRINT = b"ttepretrain_export"  # in the file's metadata: which export made the rows
QUARANTINE = pa.schema([("key", pa.string()), ("code", pa.string()), ("detail", pa.string())])


class EmbeddingTable:
    """Rows key -> float32 [F] of one export. Opening an existing file keeps its rows when that export made them."""

    def __init__(self, path: Path, fingerprint: str):
        self.rows: dict[str, np.ndarray] = {}
        self._path, self._fingerprint = path, fingerprint
        if not path.exists():
            return
        try:
            table = parquet.read_table(path)
        except (pa.ArrowInvalid, OSError):
            raise ConfigError(f"--output {path} exists and is not a parquet file; name another") from None
        made_by = (table.schema.metadata or {}).get(FINGERPRINT)
        if made_by is None:
            raise ConfigError(f"--output {path} exists and was not written by this command; name another")
        if made_by.decode() == fingerprint:
            self.rows = dict(zip(table["key"].to_pylist(), table["embedding"].to_numpy()))
        else:
            print(f"{len(table)} rows in {path.name} are of another export and will be replaced")

    def save(self) -> None:
        """Columns key str, embedding list<f32>; the file is whole at every instant."""
        columns = {
            "key": pa.array(list(self.rows), pa.string()),
            "embedding": pa.array(list(self.rows.values()), pa.list_(pa.float32())),
        }
        with replacing(self._path) as part:
            parquet.write_table(pa.table(columns).replace_schema_metadata({FINGERPRINT: self._fingerprint}), part)


def write_quarantine(path: Path, given: set[str], refused: dict[str, BadStudy]) -> None:
    """Columns key, code, detail: what this run refused, and what earlier ones refused of scans not given this time."""
    earlier = parquet.read_table(path).to_pylist() if path.exists() else []
    records = [record for record in earlier if record["key"] not in given]
    records += [{"key": key, "code": str(error.code), "detail": error.detail} for key, error in refused.items()]
    if records or earlier:
        with replacing(path) as part:
            parquet.write_table(pa.Table.from_pylist(records, QUARANTINE), part)
