"""The likelihood on ragged labels against the vectorised dense formulation: given z, loss and dz.

    python -m benchmarks.loss      B = 32, T = 8, K = 8,192: seconds on a CPU, and on a GPU where there is one

dense      exposures and event flags [B, T, K] from time and event [B, K], NLL = (x exp(z) - d z).sum(), autograd
ours       ttepretrain.survival.likelihood.nll_sum on the batch's sparse events
head step  the head's forward pass, our loss, and the backward pass to the features and all of the head's weights

Both start from labels on the device and end with dz from torch.autograd.grad, so that no gradient is copied. Repeats
alternate between the two, and z is written anew before each, as the head does: it lies in the cache as far as it fits.
Threads keep to their cores, as else two may share one for a whole run, by chance.
Memory: on a CPU the sum of what the operators allocate less what they free again at its highest (torch.profiler), on
CUDA the allocator's own peak; z itself is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ttepretrain.batch import Batch
from ttepretrain.labels import LabelTable, Ragged
from ttepretrain.models.head import PiecewiseExponentialHead
from ttepretrain.survival.likelihood import nll_sum

EDGES = (0.0, 20.0, 60.0, 130.0, 250.0, 430.0, 700.0, 1200.0, float("inf"))
BLACKOUT = 1.0
FEATURES, HEAD_DIM = 1024, 512  # DenseNet-121's features, model.head_dim's default


def labels_of(rows: int, tasks: int, events: int, seed: int) -> LabelTable:
    """`events` observed tasks in every row, uniform in its follow-up of up to 2,000 days."""
    rng = np.random.default_rng(seed)
    censor = rng.uniform(100, 2000, rows)
    index = np.concatenate([np.sort(rng.choice(tasks, events, replace=False)) for _ in range(rows)]).astype(np.int32)
    days = BLACKOUT + np.repeat(censor - BLACKOUT, events) * (1 - rng.random(rows * events))
    none = Ragged(np.zeros(rows + 1, np.int64), np.zeros(0, np.int32))
    return LabelTable(censor, Ragged(np.arange(rows + 1) * events, index), days, history=none, visit=none)


def dense_labels(labels: LabelTable, tasks: int) -> tuple[Tensor, Tensor]:
    """Time until event or censoring, and event: [B, K]."""
    time_BK = np.repeat(labels.censor_days[:, None], tasks, axis=1)
    event_BK = np.zeros(time_BK.shape, bool)
    time_BK[labels.events.row, labels.events.index] = labels.event_days
    event_BK[labels.events.row, labels.events.index] = True
    return torch.from_numpy(time_BK).float(), torch.from_numpy(event_BK)


def dense_nll(z_BTK: Tensor, time_BK: Tensor, event_BK: Tensor, edges: Tensor) -> Tensor:
    low, high = edges[:-1, None], edges[1:, None]
    time_B1K = time_BK[:, None]
    exposure_BTK = (torch.minimum(time_B1K, high) - low.clamp(min=BLACKOUT)).clamp(min=0)
    event_BTK = event_BK[:, None] & (low < time_B1K) & (time_B1K <= high)
    return (exposure_BTK * z_BTK.exp() - event_BTK * z_BTK).sum()


def contestants(
    rows: int, tasks: int, events: int, device: str
) -> tuple[Tensor, dict[str, Callable[[], tuple[Tensor, ...]]]]:
    """z, and name -> (loss, gradients) of one call."""
    labels = labels_of(rows, tasks, events, seed=0)
    batch = Batch.collate(torch.zeros(rows, 1, 1, 1, dtype=torch.int16), torch.arange(rows), labels).to(device)
    time_BK, event_BK = (part.to(device) for part in dense_labels(labels, tasks))
    edges = torch.tensor(EDGES, device=device)
    generator = torch.Generator().manual_seed(0)
    z_BTK = (torch.randn(rows, len(EDGES) - 1, tasks, generator=generator) - 9).to(device).requires_grad_()
    bias_TK = torch.full((len(EDGES) - 1, tasks), -9.0)
    head = PiecewiseExponentialHead(FEATURES, HEAD_DIM, bias_TK, seed=0).to(device)
    features_BF = torch.randn(rows, FEATURES, generator=generator).to(device).requires_grad_()

    def ours() -> tuple[Tensor, ...]:
        nll, _cells = nll_sum(z_BTK, batch, edges, BLACKOUT, "all")
        return nll, *torch.autograd.grad(nll, z_BTK)

    def dense() -> tuple[Tensor, ...]:
        nll = dense_nll(z_BTK, time_BK, event_BK, edges)
        return nll, *torch.autograd.grad(nll, z_BTK)

    def head_step() -> tuple[Tensor, ...]:
        nll, _cells = nll_sum(head(features_BF), batch, edges, BLACKOUT, "all")
        return nll, *torch.autograd.grad(nll, [features_BF, *head.parameters()])

    return z_BTK.detach(), {"ours": ours, "dense": dense, "head step": head_step}


def difference(ours: tuple[Tensor, ...], dense: tuple[Tensor, ...]) -> dict[str, float]:
    return {
        "loss_relative": abs((ours[0] - dense[0]) / dense[0]).item(),
        "dz_largest": float((ours[1] - dense[1]).abs().max()),
    }


def milliseconds(z_BTK: Tensor, calls: dict[str, Callable], repeats: int, device: str) -> dict[str, dict[str, float]]:
    """Median, quartiles and minimum of every call, taken in turn."""
    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 3):
        for name, call in calls.items():
            z_BTK.copy_(z_BTK.clone())
            wait()
            start = time.perf_counter()
            call()
            wait()
            if repeat >= 3:
                taken[name].append(1e3 * (time.perf_counter() - start))
    return {
        name: dict(
            zip(
                ("minimum", "quartile_1", "median", "quartile_3"),
                np.quantile(ms, [0, 0.25, 0.5, 0.75]).round(3).tolist(),
            )
        )
        for name, ms in taken.items()
    }


def peak_bytes(call: Callable, device: str) -> int:
    call()
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() - before
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        kept = call()
    changes = sorted(
        (e.start_ns(), e.nbytes()) for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"
    )
    del kept
    return int(np.cumsum([change for _, change in changes]).max())


def hardware(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def measure(device: str, threads: int, size: argparse.Namespace) -> dict:
    torch.set_num_threads(threads)
    z_BTK, calls = contestants(size.rows, size.tasks, size.events, device)
    ms = milliseconds(z_BTK, calls, size.repeats, device)
    memory = {name: peak_bytes(calls[name], device) for name in ("ours", "dense")}
    return {
        "device": device,
        "hardware": hardware(device),
        "threads": threads if device == "cpu" else None,
        "milliseconds": ms,
        "dense_over_ours": {key: round(ms["dense"][key] / ms["ours"][key], 2) for key in ("minimum", "median")},
        "peak_bytes": memory,
        "ours_over_dense_memory": round(memory["ours"] / memory["dense"], 3),
        "difference": difference(calls["ours"](), calls["dense"]()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tasks", type=int, default=8192)
    parser.add_argument("--events", type=int, default=250, help="observed events of a row")
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/loss.json"))
    arguments = parser.parse_args()
    load = os.getloadavg()
    runs = [measure("cpu", threads, arguments) for threads in (1, 2)]
    if torch.cuda.is_available():
        runs.append(measure("cuda", 1, arguments))
    result = {
        "date": date.today().isoformat(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "size": {
            "rows": arguments.rows,
            "bins": len(EDGES) - 1,
            "tasks": arguments.tasks,
            "events_a_row": arguments.events,
        },
        "repeats": arguments.repeats,
        "load_average": load,  # before the first run: a busy machine's medians say little
        "runs": runs,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    for run in runs:
        print(
            run["device"],
            run["threads"] or "",
            run["milliseconds"],
            run["dense_over_ours"],
            run["ours_over_dense_memory"],
        )


if __name__ == "__main__":
    if os.environ.get("OMP_PROC_BIND") != "true":  # read when torch is imported
        os.execve(sys.executable, [*sys.orig_argv], os.environ | {"OMP_PROC_BIND": "true"})
    main()
