"""From a scan on disk to a cached volume, against MONAI's transforms in the same run; both on one core.

    python -m benchmarks.volumes                        300 x 512 x 512, three repeats: two minutes

ours     data.volumes.prepare_study.prepare_study: hash, decode, checks, resampling, checksum, cache file on disk
monai    LoadImage, Orientation, Spacing, ScaleIntensityRange, ResizeWithPadOrCrop to float32 in memory; no file
cpu      processor time with that of decoding children: what counts where other work runs beside
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import warnings
from pathlib import Path

from benchmarks.labels import hardware
from benchmarks.scans import cpu_seconds_of, monai_pipeline, real_scans, seconds_of, write_scans
from jobs.provenance import now, provenance
from ttepretrain.files import write_json
from ttepretrain.volume.spec import PRESETS, VolumeSpec

PACKAGES = ["torch", "monai", "numpy", "nibabel", "pydicom", "blosc2"]


def main() -> None:
    options = _options()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # decoding children inherit it
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # MONAI's, about its own arguments
    spec = PRESETS[options.preset]
    with tempfile.TemporaryDirectory(prefix="volumes-", dir=options.folder) as folder:
        scans = write_scans(Path(folder), tuple(options.shape)) | real_scans()
        rows = {name: compare(path, Path(folder), spec, options.repeats) for name, path in scans.items()}
    result = {
        "command": " ".join(["python -m benchmarks.volumes", *sys.argv[1:]]),
        "date": now(),
        "hardware": hardware(1),
        **provenance(PACKAGES),
        "synthetic_shape_DHW": options.shape,
        "volume_spec": {"preset": options.preset} | spec.to_json(),
        "scans": rows,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.output, result)
    print(json.dumps(result, indent=1))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.volumes")
    parser.add_argument("--shape", type=int, nargs=3, default=[300, 512, 512], metavar=("D", "H", "W"))
    parser.add_argument("--preset", default="default", choices=["default", "small"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where scans and cache are written (default: the system's)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "volumes.json")
    return parser.parse_args()


def compare(scan: Path, folder: Path, spec: VolumeSpec, repeats: int) -> dict:
    """Seconds of both, taken in turns after one unmeasured round that also warms the page cache."""
    from data.given.study import Study
    from data.volumes.prepare_study import PreparedVolume, prepare_study

    pipeline = monai_pipeline(spec)
    sizes = []

    def ours() -> None:
        with tempfile.TemporaryDirectory(dir=folder) as cache:
            made = prepare_study(Study("scan", scan.name), scan.parent, Path(cache), spec)
            assert isinstance(made, PreparedVolume), made
            sizes.append(sum(path.stat().st_size for path in Path(cache).iterdir()))

    seconds: dict[str, dict[str, list[float]]] = {name: {"wall": [], "cpu": []} for name in ("ours", "monai")}
    for repeat in range(repeats + 1):
        for name, work in (("ours", ours), ("monai", lambda: pipeline(scan))):
            wall: list[float] = []
            cpu = cpu_seconds_of(lambda work=work, wall=wall: wall.append(seconds_of(work)))
            if repeat:
                seconds[name]["wall"].append(round(wall[0], 3))
                seconds[name]["cpu"].append(round(cpu, 2))
    median = {name: {kind: statistics.median(v) for kind, v in kinds.items()} for name, kinds in seconds.items()}
    return {
        "seconds": seconds,
        "median_seconds": median,
        "speedup_of_medians": {
            kind: round(median["monai"][kind] / median["ours"][kind], 2) for kind in ("wall", "cpu")
        },
        "cached_bytes": sizes[-1],
    }


if __name__ == "__main__":
    main()
