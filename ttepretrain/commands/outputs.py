"""What `ttepretrain embed` and `risk` write and report: one table of results, and quarantine.parquet beside it.

B scans, K tasks, H horizons.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

from ttepretrain.errors import BadDataError, BadStudy, ConfigError
from ttepretrain.files import replacing
from ttepretrain.log import log

FINGERPRINT = b"ttepretrain_export"  # key of the file's metadata: which export made the rows
RISKS = pa.schema([("key", pa.string()), ("task", pa.string()), ("horizon_days", pa.float64()), ("risk", pa.float64())])
QUARANTINE = pa.schema([("key", pa.string()), ("code", pa.string()), ("detail", pa.string())])


class EmbeddingTable:
    """Rows key -> float32 [F] of one export. Opening an existing file keeps its rows if the same export made them."""

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
            log.warning(f"{len(table)} rows in {path.name} come from another export and will be replaced")

    def save(self) -> None:
        """Columns key str, embedding list<f32>; the file is whole at every instant."""
        columns = {
            "key": pa.array(list(self.rows), pa.string()),
            "embedding": pa.array(list(self.rows.values()), pa.list_(pa.float32())),
        }
        with replacing(self._path) as part:
            parquet.write_table(pa.table(columns).replace_schema_metadata({FINGERPRINT: self._fingerprint}), part)


def risk_table(
    keys: Sequence[str], codes: Sequence[str], horizons_days: Sequence[float], risk_BKH: np.ndarray
) -> pa.Table:
    """RISKS: one row per scan, task and horizon, in that order."""
    scans, num_tasks, num_horizons = risk_BKH.shape
    columns = [
        np.repeat(np.array(keys, object), num_tasks * num_horizons),
        np.tile(np.repeat(np.array(codes, object), num_horizons), scans),
        np.tile(np.array(horizons_days, float), scans * num_tasks),
        risk_BKH.reshape(-1),
    ]
    return pa.table(columns, schema=RISKS)


def write_quarantine(output: Path, given: set[str], refused: dict[str, BadStudy]) -> None:
    """Write quarantine.parquet beside `output`; columns key, code, detail.

    It has the scans that this run refused, and those of earlier runs that are not among the `given` keys.
    """
    path = output.with_name("quarantine.parquet")
    earlier = parquet.read_table(path).to_pylist() if path.exists() else []
    records = [record for record in earlier if record["key"] not in given]
    records += [{"key": key, "code": str(error.code), "detail": error.detail} for key, error in refused.items()]
    if records or earlier:
        with replacing(path) as part:
            parquet.write_table(pa.Table.from_pylist(records, QUARANTINE), part)


def report(scans: int, refused: int, output: Path) -> None:
    """Print how many scans are in `output`. Raises BadDataError when every scan was refused."""
    if refused == scans:
        raise BadDataError(f"none of {scans} scans can be used; quarantine.parquet has the reasons")
    print(f"{scans - refused} of {scans} scans are in {output.name}")
    if refused:
        print(f"{refused} cannot be used; quarantine.parquet has the reasons")
