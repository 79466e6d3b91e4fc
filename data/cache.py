"""The volume cache: one blosc2 file per content, found by a hash of the image bytes before anything is decoded.

volumes/<content_key>.b2nd    int16 [D, H, W] HU on the spec's grid
                              + "record": what else a row of volumes.parquet says, "seal": hash of name and both
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ttepretrain.errors import IntegrityError
from ttepretrain.files import write_atomic
from ttepretrain.volume.spec import PREPROCESS_VERSION, VolumeSpec


@dataclass(frozen=True)
class VolumeRecord:
    """What is known of a cached volume besides its voxels."""

    shape: list[int]  # D H W
    spacing_mm: list[float]  # D H W
    affine: list[float]  # 16, row by row: index (D, H, W, 1) -> RAS+ mm
    flags: list[str]  # repairs
    acquisition: dict  # allow-listed attributes of the scanner
    source_spacing_mm: list[float]  # D H W
    source_hash: str
    voxel_hash: str  # equal for two studies with the same content, whatever their files look like


def content_key(source_hash: str, selected: str, spec: VolumeSpec) -> str:
    """Name of the volume that `spec` makes of these bytes, of what `selected` names among them.

    Windows do not count: they are applied on the device.
    """
    grid = [list(spec.spacing_mm), list(spec.shape_DHW), list(spec.hu_range)]
    beyond = [spec.beyond_grid()] if spec.beyond_grid() else []
    document = json.dumps([source_hash, selected, PREPROCESS_VERSION, grid, *beyond])
    return hashlib.sha256(document.encode()).hexdigest()[:40]


def write_volume(path: Path, hu_DHW: np.ndarray, record: VolumeRecord) -> str:
    """Write the file whole; returns the sha256 of its bytes. Equal input under an equal name gives equal bytes."""
    import blosc2

    array = blosc2.asarray(
        np.ascontiguousarray(hu_DHW),
        # Bit shuffle: the upper bits of neighbouring HU are nearly constant.
        cparams=blosc2.CParams(
            codec=blosc2.Codec.ZSTD, clevel=1, filters=[blosc2.Filter.BITSHUFFLE], filters_meta=[0], nthreads=1
        ),
    )
    array.schunk.vlmeta["record"] = json.dumps(asdict(record), sort_keys=True)
    array.schunk.vlmeta["seal"] = _seal(path, array.schunk.vlmeta["record"], record.voxel_hash)
    data = array.to_cframe()
    write_atomic(path, data)
    return hashlib.sha256(data).hexdigest()


def read_volume(path: Path, checksum: str) -> np.ndarray:
    """int16 HU [D, H, W]. Raises IntegrityError when the file is not the one that was written, OSError as it comes."""
    import blosc2

    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != checksum:
        raise IntegrityError("a cached volume does not match its checksum; run jobs.prepare again to rebuild it")
    array = blosc2.ndarray_from_cframe(data, copy=False)
    array.schunk.dparams = blosc2.DParams(nthreads=1)  # the loader reads several files at once
    return array[:]


def read_record(path: Path) -> tuple[VolumeRecord, str] | None:
    """Record and sha256 of a cached file; None when it is absent or damaged (not what was sealed)."""
    import blosc2

    try:
        data = path.read_bytes()
        array = blosc2.ndarray_from_cframe(data, copy=False)
        text, seal = array.schunk.vlmeta["record"], array.schunk.vlmeta["seal"]
        record = VolumeRecord(**json.loads(text))
        # before anything is allocated: a flipped bit can ask for petabytes
        if list(array.shape) != record.shape or array.dtype != np.int16:
            return None
        if seal != _seal(path, text, hash_voxels(array[:])):
            return None
        return record, hashlib.sha256(data).hexdigest()
    except FileNotFoundError:
        return None
    except OSError:
        raise
    except Exception:  # whatever blosc2 and json make of damaged bytes: SyntaxError and MemoryError, too
        return None


def hash_voxels(hu_DHW: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(hu_DHW, dtype="<i2")).hexdigest()


def _seal(path: Path, record: str, voxel_hash: str) -> str:
    """The name is part of it: a sound file of another study under this one's name is foreign."""
    return hashlib.sha256((path.stem + record + voxel_hash).encode()).hexdigest()
