"""The volume cache: one blosc2 file per content, found by a hash of the image bytes before decoding.

volumes/<content_key>.b2nd    int16 HU [D, H, W] on the spec's grid, in chunks that are read and checked separately
                              + "record": the rest of the row of volumes.parquet; "chunks": hashes of the chunks
                              + "seal": hash of name, voxels, record and chunk hashes
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ttepretrain.errors import IntegrityError, ResourceError
from ttepretrain.files import write_atomic
from ttepretrain.volume.spec import PREPROCESS_VERSION, VolumeSpec

if TYPE_CHECKING:
    import blosc2

CHUNK_VOXELS = 56  # at most, per axis; smaller chunks make volumes larger and slower to read


@dataclass(frozen=True)
class VolumeRecord:
    """What is known about a cached volume besides its voxels."""

    shape: list[int]  # D H W
    spacing_mm: list[float]  # D H W
    affine: list[float]  # 16, row by row: index (D, H, W, 1) -> RAS+ mm
    flags: list[str]  # repairs
    acquisition: dict  # ACQUISITION_KEYS
    source_spacing_mm: list[float]  # D H W
    source_hash: str
    voxel_hash: str  # equal for two studies with equal voxels, whatever their files
    acquired: str | None = None  # ISO, on the scanner's clock; midnight: only a date; None: not stated


def content_key(source_hash: str, selected: str, spec: VolumeSpec) -> str:
    """Name of the volume that `spec` makes of these bytes; `selected` says which part of them is read.

    Windows have no influence: they are applied on the device.
    """
    grid = [list(spec.spacing_mm), list(spec.shape_DHW), list(spec.hu_range)]
    beyond = [spec.beyond_grid()] if spec.beyond_grid() else []
    document = json.dumps([source_hash, selected, PREPROCESS_VERSION, grid, *beyond])
    return hashlib.sha256(document.encode()).hexdigest()[:40]


def write_volume(path: Path, hu_DHW: np.ndarray, record: VolumeRecord) -> str:
    """Write the file atomically and return the sha256 of its bytes. Equal input and name give equal bytes."""
    import blosc2

    chunks = _chunks(hu_DHW.shape)
    array = blosc2.asarray(
        np.ascontiguousarray(hu_DHW),
        chunks=chunks,
        blocks=chunks,  # else blosc2 chooses by the processor's cache, and bytes differ between machines
        # Bit shuffle: the upper bits of neighbouring HU are nearly constant.
        cparams=blosc2.CParams(
            codec=blosc2.Codec.ZSTD, clevel=1, filters=[blosc2.Filter.BITSHUFFLE], filters_meta=[0], nthreads=1
        ),
    )
    schunk = array.schunk
    text = json.dumps(asdict(record), sort_keys=True)
    hashes = json.dumps([hashlib.sha256(schunk.get_chunk(n)).hexdigest() for n in range(schunk.nchunks)])
    schunk.vlmeta["record"], schunk.vlmeta["chunks"] = text, hashes
    schunk.vlmeta["seal"] = _seal(path, text + hashes, record.voxel_hash)
    data = array.to_cframe()
    if path.is_dir() and not path.is_symlink():  # not ours; a sparse frame of blosc2, for example
        shutil.rmtree(path)
    write_atomic(path, data)
    return hashlib.sha256(data).hexdigest()


def read_volume(path: Path, checksum: str) -> np.ndarray:
    """int16 HU [D, H, W]. Raises IntegrityError if the file is not the one that was written, and OSError."""
    import blosc2

    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != checksum:
        raise IntegrityError("a cached volume does not match its checksum; run jobs.prepare again to rebuild it")
    array = blosc2.ndarray_from_cframe(data, copy=False)
    array.schunk.dparams = blosc2.DParams(nthreads=1)  # the loader reads several files at once
    return array[:]


@contextmanager
def declared_cache(folder: Path) -> Iterator[None]:
    """ResourceError for a cache folder that cannot be read or written: no study is to blame for it."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ResourceError(
            f"the volume cache cannot be used ({reason}); check that {folder} is there and writable"
        ) from None


def read_crop(path: Path, start_DHW: Sequence[int], shape_DHW: Sequence[int]) -> np.ndarray:
    """int16 HU of the box of `shape_DHW` voxels that begins at `start_DHW`. Only the chunks it touches are read.

    Raises IntegrityError if these chunks or the record are not what was written, OSError, and ValueError for a box that
    leaves the volume.
    """
    import blosc2

    ends_DHW = [start + size for start, size in zip(start_DHW, shape_DHW)]
    out_DHW = np.empty(shape_DHW, np.int16)
    try:
        array = blosc2.open(str(path), mode="r")
        record, hashes = _sealed(path, array)
        inside = all(start >= 0 and end <= size for start, end, size in zip(start_DHW, ends_DHW, record.shape))
        if not inside:
            raise IndexError
        chunk_DHW = _chunks(record.shape)
        grid_DHW = [math.ceil(size / chunk) for size, chunk in zip(record.shape, chunk_DHW)]
        met = [range(a // c, math.ceil(b / c)) for a, b, c in zip(start_DHW, ends_DHW, chunk_DHW)]
        for place in itertools.product(*met):
            number = int(np.ravel_multi_index(place, grid_DHW))
            voxels_DHW = _unpacked(array.schunk.get_chunk(number), hashes[number]).reshape(chunk_DHW)
            corner = [p * c for p, c in zip(place, chunk_DHW)]
            low = [max(a, o) for a, o in zip(start_DHW, corner)]
            high = [min(b, o + c) for b, o, c in zip(ends_DHW, corner, chunk_DHW)]
            out_DHW[_box(low, high, start_DHW)] = voxels_DHW[_box(low, high, corner)]
        return out_DHW
    except OSError:
        raise
    except IndexError:
        raise ValueError(f"a box at {list(start_DHW)} of {list(shape_DHW)} voxels leaves the volume") from None
    except Exception:  # as in read_record
        raise IntegrityError("a cached volume is damaged; run jobs.prepare again to rebuild it") from None


def read_record(path: Path, shape_DHW: Sequence[int]) -> tuple[VolumeRecord, str] | None:
    """Record and sha256 of a cached file; None if it is missing, damaged or of another shape."""
    import blosc2

    try:
        data = path.read_bytes()
        array = blosc2.ndarray_from_cframe(data, copy=False)
        record, hashes = _sealed(path, array)  # before allocating: a flipped bit can request petabytes
        chunks = map(array.schunk.get_chunk, range(array.schunk.nchunks))
        if [
            hashlib.sha256(chunk).hexdigest() for chunk in chunks
        ] != hashes:  # a damaged bit may leave the voxels unchanged
            return None
        if record.shape != list(shape_DHW) or hash_voxels(array[:]) != record.voxel_hash:
            return None
        return record, hashlib.sha256(data).hexdigest()
    except (FileNotFoundError, IsADirectoryError):
        return None
    except OSError:
        raise
    except Exception:  # damaged bytes make blosc2 and json raise anything, even SyntaxError and MemoryError
        return None


def _sealed(path: Path, array: blosc2.NDArray) -> tuple[VolumeRecord, list[str]]:
    """Record and chunk hashes of an opened file; ValueError unless they and the layout match the seal."""
    text, hashes, seal = (array.schunk.vlmeta[name] for name in ("record", "chunks", "seal"))
    record = VolumeRecord(**json.loads(text))
    laid_out = list(array.shape) == record.shape and array.chunks == array.blocks == _chunks(array.shape)
    if not laid_out or array.dtype != np.int16 or seal != _seal(path, text + hashes, record.voxel_hash):
        raise ValueError("not what was sealed")
    return record, json.loads(hashes)


def _chunks(shape_DHW: Sequence[int]) -> tuple[int, ...]:
    """Shape of a chunk: every axis is divided into equal parts."""
    return tuple(math.ceil(size / math.ceil(size / CHUNK_VOXELS)) for size in shape_DHW)


def _unpacked(chunk: bytes, sha256: str) -> np.ndarray:
    import blosc2

    if hashlib.sha256(chunk).hexdigest() != sha256:
        raise ValueError("not what was sealed")
    return np.frombuffer(blosc2.decompress2(chunk, nthreads=1), np.int16)


def _box(low: Sequence[int], high: Sequence[int], origin: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(a - o, b - o) for a, b, o in zip(low, high, origin))


def hash_voxels(hu_DHW: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(hu_DHW, dtype="<i2").data).hexdigest()


def _seal(path: Path, said: str, voxel_hash: str) -> str:
    """Includes the name, so that an intact file of another study under this name is detected."""
    return hashlib.sha256((path.stem + said + voxel_hash).encode()).hexdigest()
