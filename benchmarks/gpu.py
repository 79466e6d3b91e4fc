"""Every encoder on a GPU: CTs a second, arithmetic against the measured peak of a matrix product, memory.

    python -m benchmarks.gpu                                        writes benchmarks/results/gpu.json; needs CUDA
    python -m benchmarks.gpu --device cpu --size 32 --output FILE   the same on a CPU, to try the script

In this order, so that what matters most is there when time runs out; the file is written after every measurement
and `--resume` goes on with it:
    matrix product            bf16, the best of several sizes: the peak that all else is compared with
    loss, head step           benchmarks.loss on the device
    reference                 the network under the reference's settings (benchmarks/gpu_steps.py), one CT a step
    as_trained                forward and backward as the trainer does, batch sizes doubled until memory is full
    VARIANTS                  one thing changed, or two, at the best batch size of as_trained

A step is int16 HU -> one window -> encoder -> features -> gradients of all weights; no optimizer, no reading of scans.
Arithmetic is counted (2 per multiply-add, forward and backward), not read from the device.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.gpu_steps import Setting, matmul_tflops, measure_step, step_teraflop
from benchmarks.loss import hardware
from benchmarks.loss import measure as measure_loss
from jobs.provenance import REPOSITORY, now, provenance
from ttepretrain.errors import ConfigError, exit_with
from ttepretrain.files import write_json
from ttepretrain.models.config import CONVOLUTIONAL, ENCODERS

SHAPES_DHW = ((224, 224, 224), (160, 224, 224))
LARGEST_BATCH = 256
PUBLISHED_STUDIES, PUBLISHED_EPOCHS = 18_945, 20  # the schedule that hours are projected for
RESULT = REPOSITORY / "benchmarks" / "results" / "gpu.json"
VARIANTS = {
    "contiguous": Setting(channels_last=False),
    "autotuned": Setting(deterministic=False, autotuned=True),
    "kernels_last": Setting(kernels_last=True),
    "compiled": Setting(compiled=True),
    "compiled_last": Setting(compiled=True, kernels_last=True),
}


def main(arguments: list[str]) -> None:
    options = _options(arguments)
    results = Results(options)
    if options.reference:
        setting = Setting(precision="fp32", norm="batch", channels_last=False, anomalies=True)
        for encoder in options.encoders:
            results.step("reference", encoder, options.shapes[0], 1, setting)
        return
    # A process of its own: whether launches block is decided before CUDA starts. It goes on with the same file.
    ended = subprocess.run([*_command(options), "--reference"], cwd=REPOSITORY, check=False)
    results.document = json.loads(options.output.read_text()) | {"reference_exit": ended.returncode}
    for shape_DHW in options.shapes:
        for encoder in options.encoders:
            batch = 1
            while batch <= options.largest_batch and results.step("as_trained", encoder, shape_DHW, batch, Setting()):
                batch *= 2
    for variant in options.variants:
        for encoder, shape_DHW, batch in best_batches(results.document["steps"]):
            if encoder in CONVOLUTIONAL or variant == "compiled":  # a transformer has one convolution
                results.step(variant, encoder, shape_DHW, batch, VARIANTS[variant])


class Results:
    """The file. A measurement is in it as soon as it is made; under `--resume` none is made again."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.end = time.monotonic() + 60 * options.minutes
        self.document = json.loads(options.output.read_text()) if options.resume else _heading(options)

    def step(self, variant: str, encoder: str, shape_DHW: tuple[int, ...], batch: int, setting: Setting) -> bool:
        """Whether there is such a measurement; none once the time is up, out of memory, or without a package."""
        about = {"variant": variant, "encoder": encoder, "shape_DHW": list(shape_DHW), "batch": batch}
        for record in self.document["steps"]:
            if about.items() <= record.items():
                return "reason" not in record
        if time.monotonic() >= self.end:
            return False
        record = about | asdict(setting) | _outcome(encoder, shape_DHW, batch, setting, self.options)
        self.document["steps"].append(record)
        self.document["summary"] = summary(self.document)
        write_json(self.options.output, self.document)
        print(_line(record), flush=True)
        return "reason" not in record


def _heading(options: argparse.Namespace) -> dict:
    """All but the steps: what was run where, the matrix product, the loss."""
    document = {"command": "python -m benchmarks.gpu", "date": now(), "device": options.device}
    document |= {"hardware": hardware(options.device), **provenance(["torch", "numpy", "monai"])}
    if options.device == "cuda":
        document["memory_gib"] = round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1)
    document["matmul_tflops"] = matmul_tflops(options.device, options.matmul)
    document["peak_tflops"] = max(document["matmul_tflops"].values())
    size = argparse.Namespace(
        rows=32, tasks=options.tasks, events=min(250, options.tasks // 8), repeats=4 * options.repeats
    )
    document |= {"loss": measure_loss(options.device, 1, size), "steps": [], "summary": {}}
    write_json(options.output, document)
    return document


def _outcome(encoder: str, shape_DHW, batch: int, setting: Setting, options: argparse.Namespace) -> dict:
    """Times, rates and memory of a step, or the reason why there are none."""
    try:
        measured = measure_step(encoder, shape_DHW, batch, setting, options.device, options.repeats)
        teraflop = step_teraflop(encoder, shape_DHW, setting.norm)
    except torch.OutOfMemoryError:
        return {"reason": "out of memory"}
    except Exception as error:  # a package or kernel that this machine lacks must not cost the other encoders
        return {"reason": f"{type(error).__name__}: {error}".partition("\n")[0]}
    seconds = measured["seconds"]["median"]
    rates = {"cts_per_second": batch / seconds, "tflop_per_ct": teraflop, "tflops": batch * teraflop / seconds}
    return measured | {key: float(f"{value:.4g}") for key, value in rates.items()}


def best_batches(steps: list[dict]) -> list[tuple[str, tuple[int, ...], int]]:
    """(encoder, shape, batch) with most CTs a second of `as_trained`, one per encoder and shape."""
    best: dict[tuple, dict] = {}
    for step in steps:
        key = (step["encoder"], tuple(step["shape_DHW"]))
        if step["variant"] == "as_trained" and step.get("cts_per_second", 0) > best.get(key, {}).get(
            "cts_per_second", 0
        ):
            best[key] = step
    return [(*key, step["batch"]) for key, step in best.items()]


def summary(document: dict) -> dict[str, dict]:
    """Per encoder and shape: fastest step, share of the peak, hours of the published schedule and the reference's."""
    found: dict[str, dict] = {}
    for step in document["steps"]:
        if "reason" in step:
            continue
        key = f"{step['encoder']} {'x'.join(map(str, step['shape_DHW']))}"
        of_encoder = found.setdefault(key, {})
        hours = round(PUBLISHED_STUDIES * PUBLISHED_EPOCHS / step["cts_per_second"] / 3600, 2)
        if step["variant"] == "reference":
            of_encoder["reference_gpu_hours"] = hours
        elif hours < of_encoder.get("gpu_hours", float("inf")):
            of_encoder |= {name: step[name] for name in ("variant", "batch", "cts_per_second", "tflops")}
            of_encoder |= {"gpu_hours": hours, "share_of_peak": round(step["tflops"] / document["peak_tflops"], 3)}
    for of_encoder in found.values():
        if {"reference_gpu_hours", "gpu_hours"} <= of_encoder.keys():
            of_encoder["reference_over_ours"] = round(of_encoder["reference_gpu_hours"] / of_encoder["gpu_hours"], 1)
    return found


def _line(record: dict) -> str:
    about = f"{record['encoder']:<12} {record['variant']:<11} {record['shape_DHW']} batch {record['batch']:<4}"
    if "reason" in record:
        return f"{about} {record['reason']}"
    return f"{about} {record['cts_per_second']:8.3g} CT/s {record['tflops']:8.3g} TFLOP/s"


def _command(options: argparse.Namespace) -> list[str]:
    given = ["--resume", "--device", options.device, "--output", str(options.output), "--repeats", str(options.repeats)]
    size = ["--size", str(options.size)] if options.size else []
    return [sys.executable, "-m", "benchmarks.gpu", *given, *size, "--encoders", *options.encoders]


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--encoders", nargs="+", choices=ENCODERS, default=list(ENCODERS), metavar="NAME")
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--size", type=int, help="one cube of this size in place of 224^3 and 160 x 224 x 224")
    parser.add_argument("--largest-batch", type=int, default=LARGEST_BATCH)
    parser.add_argument("--tasks", type=int, default=8192, help="of the loss")
    parser.add_argument("--repeats", type=int, default=8, help="timed steps of every measurement")
    parser.add_argument("--minutes", type=float, default=25.0, help="no measurement of steps begins after this")
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--resume", action="store_true", help="go on with the file of an earlier start")
    parser.add_argument("--reference", action="store_true", help=argparse.SUPPRESS)  # what the first process starts
    options = parser.parse_args(arguments)
    on_cpu = options.device == "cpu"
    if not on_cpu and not torch.cuda.is_available():
        raise ConfigError("no CUDA device here; --device cpu --size 32 --output FILE tries the script on a CPU")
    if on_cpu and options.output == RESULT:
        raise ConfigError(f"{RESULT.name} is for GPUs; name another file with --output")
    options.output = options.output.absolute()
    options.shapes = ((options.size,) * 3,) if options.size else SHAPES_DHW
    options.matmul = (256,) if on_cpu else (4096, 8192, 16384)
    if options.reference:
        os.environ["CUDA_LAUNCH_BLOCKING"] = "1"  # as the reference sets it; read when CUDA starts
    return options


if __name__ == "__main__":
    exit_with(main, "gpu")
