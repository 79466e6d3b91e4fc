"""From cached volumes to batches on the device, against MONAI's PersistentDataset and DataLoader in the same run.

    python -m benchmarks.loader                         24 synthetic CTs, three repeats: two minutes

ours     data.batches.loader.BatchLoader: read, checksum, decompress, int16 batch (pinned and copied ahead on CUDA)
monai    PersistentDataset of the same volumes as float32 (torch.save), DataLoader with as many worker processes
cold     every cached file is dropped from the page cache before the epoch; warm: all are in it
crop     a box out of one volume (benchmarks/crops.py)
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.crops import crops
from benchmarks.labels import hardware
from benchmarks.scans import phantom, real_scans, seconds_of
from jobs.provenance import now, provenance
from ttepretrain.files import write_json
from ttepretrain.volume.spec import PRESETS, VolumeSpec

PACKAGES = ["torch", "monai", "numpy", "blosc2"]


def main() -> None:
    options = _options()
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # MONAI's, about its own arguments
    spec = PRESETS[options.preset]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory(prefix="loader-", dir=options.folder) as name:
        folder = Path(name)
        volumes = synthetic_volumes(spec, options.volumes)
        studies = write_ours(folder / "ours", volumes, spec)
        monai = write_monai(folder / "monai", volumes)
        readers = {
            "ours": lambda: _ours(studies, options.batch_size, options.workers, device),
            "monai": lambda: _monai(monai, options.batch_size, options.workers, device),
        }
        rates = measure(readers, folder, options.volumes // options.batch_size * options.batch_size, options.repeats)
        result = {
            "command": " ".join(["python -m benchmarks.loader", *sys.argv[1:]]),
            "date": now(),
            "hardware": hardware(options.workers) | {"device": device},
            **provenance(PACKAGES),
            "volume_spec": {"preset": options.preset} | spec.to_json(),
            "volumes": options.volumes,
            "batch_size": options.batch_size,
            "studies_per_second": rates,
            "ratio_of_medians": {
                kind: round(rates["ours"][kind]["median"] / rates["monai"][kind]["median"], 2) for kind in rates["ours"]
            },
            "bytes_per_volume": disk(folder, len(volumes)) | {"real": real_bytes(folder, spec)},
            "one_volume": one_volume(studies, options.repeats),
            "crop": crops(studies, monai, lambda: drop_from_page_cache(folder), options.repeats),
        }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.output, result)
    print(json.dumps(result, indent=1))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.loader")
    parser.add_argument("--volumes", type=int, default=24)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2, help="threads of ours, processes of MONAI's")
    parser.add_argument("--preset", default="default", choices=["default", "small"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where both caches are written; a disk, for tmpfs is never cold")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "loader.json")
    return parser.parse_args()


def synthetic_volumes(spec: VolumeSpec, num: int) -> list[np.ndarray]:
    """int16 HU on the spec's grid: two phantoms through preprocessing's grid, each with noise of its own."""
    from ttepretrain.volume.image import CTImage, to_ras
    from ttepretrain.volume.preprocess import to_grid

    shape_DHW = tuple(min(size, 256) for size in (spec.shape_DHW[0] * 3 // 2, 256, 256))
    drawn = []
    for seed in range(2):
        hu_DHW, affine, _ = phantom(shape_DHW, seed)
        drawn.append(to_grid(to_ras(CTImage(hu_DHW, affine, (), {})), spec)[0])
    rng = np.random.default_rng(5)
    return [
        (drawn[n % 2] + rng.integers(-4, 5, spec.shape_DHW, np.int16)).clip(*spec.hu_range).astype(np.int16)
        for n in range(num)
    ]


def write_ours(folder: Path, volumes: Sequence[np.ndarray], spec: VolumeSpec):
    """PreparedStudies of these volumes, with random labels."""
    from data.prepared.opened import PreparedStudies
    from data.prepared.random_folder import random_tables
    from data.prepared.write import write_prepared

    splits = ["train"] * len(volumes)
    tables, _ = random_tables(folder, splits, spec, lambda n: volumes[n], num_tasks=64)
    write_prepared(folder, tables, ["tasks.json"], spec)
    return PreparedStudies.open(folder, "train")


def write_monai(folder: Path, volumes: Sequence[np.ndarray]):
    """PersistentDataset, its cache filled: float32 [1, W, H, D], as its deterministic transforms end."""
    import torch
    from monai.data import MetaTensor, PersistentDataset
    from monai.transforms import Transform

    class Precomputed(Transform):  # what is no Transform counts as random, and is not cached
        def __call__(self, path: str) -> MetaTensor:
            return MetaTensor(torch.from_numpy(np.ascontiguousarray(np.load(path).T[None], np.float32) / 1000))

    source = folder.with_name("source")
    source.mkdir()
    paths = [str(source / f"{n}.npy") for n in range(len(volumes))]
    for path, hu_DHW in zip(paths, volumes):
        np.save(path, hu_DHW)
    dataset = PersistentDataset(paths, Precomputed(), folder)
    for n in range(len(paths)):
        dataset[n]
    shutil.rmtree(source)
    return dataset


def _ours(studies, batch_size: int, workers: int, device: str) -> Iterable:
    import torch

    from data.batches.loader import BatchLoader

    loader = BatchLoader(studies, batch_size, seed=0, threads=workers, device=torch.device(device))
    return (batch.to(device).volume_BDHW for batch in loader)


def _monai(dataset, batch_size: int, workers: int, device: str) -> Iterable:
    from monai.data import DataLoader

    loader = DataLoader(
        dataset, num_workers=workers, batch_size=batch_size, shuffle=True, drop_last=True, pin_memory=device == "cuda"
    )
    return (batch.to(device, non_blocking=True) for batch in loader)


def measure(readers: dict[str, Callable[[], Iterable]], folder: Path, num: int, repeats: int) -> dict:
    """Studies per second of whole epochs, cold and warm, both readers in turns."""
    rates: dict[str, dict[str, list[float]]] = {name: {"cold": [], "warm": []} for name in readers}
    for _ in range(repeats):
        for name, read in readers.items():
            for kind in ("cold", "warm"):
                if kind == "cold":
                    drop_from_page_cache(folder)
                took = seconds_of(lambda read=read: _exhaust(read()))
                rates[name][kind].append(round(num / took, 2))
    return {
        name: {kind: {"median": statistics.median(values), "all": values} for kind, values in kinds.items()}
        for name, kinds in rates.items()
    }


def _exhaust(batches: Iterable) -> None:
    import torch

    for _ in batches:
        pass
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def drop_from_page_cache(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)  # dirty pages stay
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def disk(folder: Path, num: int) -> dict:
    places = (folder / "ours" / "volumes", folder / "monai")
    ours, monai = (sum(file.stat().st_size for file in place.iterdir()) // num for place in places)
    return {"ours": ours, "monai": monai, "ratio": round(ours / monai, 4)}


def real_bytes(folder: Path, spec: VolumeSpec) -> dict:
    """Bytes of the real scans at hand in our cache, their share of float32, and how much of the grid is not air."""
    from data.prepared.random_folder import cached_volume
    from ttepretrain.volume.preprocess import preprocess_ct

    result = {}
    for name, path in real_scans().items():
        hu_DHW = preprocess_ct(path, spec).hu_DHW
        cached = cached_volume(folder / "real", name, hu_DHW, spec)
        size = (folder / "real" / "volumes" / f"{cached.content_key}.b2nd").stat().st_size
        result[name] = {
            "ours": size,
            "ratio": round(size / (4 * hu_DHW.size), 4),
            "above_lowest_hu": round(float((hu_DHW > spec.hu_range[0]).mean()), 3),
        }
    return result


def one_volume(studies, repeats: int) -> dict:
    """Milliseconds of the steps of one warm read, on one thread, and decompression's share of them."""
    import hashlib

    import blosc2

    steps: dict[str, list[float]] = {"read": [], "checksum": [], "decompress": []}
    for row in range(min(len(studies), 8 * repeats)):
        path = studies.folder / studies.volume_path[row]
        content = []
        steps["read"].append(seconds_of(lambda path=path, content=content: content.append(path.read_bytes())))
        steps["checksum"].append(seconds_of(lambda content=content: hashlib.sha256(content[0]).digest()))
        array = blosc2.ndarray_from_cframe(content[0], copy=False)
        array.schunk.dparams = blosc2.DParams(nthreads=1)
        steps["decompress"].append(seconds_of(lambda array=array: array[:]))
    median = {name: statistics.median(values) for name, values in steps.items()}
    share = median["decompress"] / sum(median.values())
    return {f"{name}_ms": round(1000 * value, 2) for name, value in median.items()} | {
        "decompress_share": round(share, 3)
    }


if __name__ == "__main__":
    main()
