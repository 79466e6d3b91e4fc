"""Labels at INSPECT's density against the parquet scan and against the object-per-event design.

    python -m benchmarks.labels                      500 subjects, 5.8 M events, three repeats: about a minute
    python -m benchmarks.labels --subjects 19402     the whole of INSPECT's size, 225 M events, once

scan     polars decodes subject_id, time and code of every file with as many threads as there are workers
labels   data.labels.stage.make_labels over Ray workers that run already: input hashes, all passes, all files written
objects  the published design (benchmarks/objects.py), on a stated sample of CTs, on one core

Seconds are of the clock; cpu_seconds of all processes together, which other work on the machine disturbs less.
Peak memory: all_processes_pss is that of this process, the workers and Ray's servers at one moment (PSS, four looks a
second, benchmarks/processes.py), in a run of its own, as looking takes a tenth of the machine. The resident sizes
beside it are each process's own largest, whenever that was, and count libraries and Ray's object store once per
process: their sum is more than there ever was.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.processes import cpu_seconds, forget_peak, peak_rss_mib, watched_memory, workers
from jobs.provenance import REPOSITORY, now, provenance
from ttepretrain.files import write_json

if TYPE_CHECKING:
    import polars as pl

PACKAGES = ["numpy", "polars", "pyarrow", "ray"]
COLUMNS = ["subject_id", "time", "code"]
WHOLE = 19_402  # subjects
PASSES = ("survey_files", "count_shard")
OBJECT_CTS = 40  # sample of the slow design
SCANS = 3  # before the labels, and after them
PHENOTYPES = """phenotypes:
  mortality: {codes: [MEDS_DEATH], horizons_days: [30, 365]}
  readmission: {codes: ["HOSPITAL_ADMISSION*"], after_stay: true, horizons_days: [30, 365]}
"""


def main() -> None:
    options = _options()
    if options.scan is not None:  # a process of its own: polars takes its number of threads from the environment
        print(json.dumps(scan(options.scan)))
        return
    folder = Path(tempfile.mkdtemp(prefix="labels-", dir=options.folder))
    try:
        result = measure(folder, options.subjects, options.seed, options.cpus, options.repeats)
    finally:
        shutil.rmtree(folder)
    result = {"command": " ".join(["python -m benchmarks.labels", *sys.argv[1:]])} | result
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.output, result)
    print(json.dumps(result, indent=1))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.labels")
    parser.add_argument("--subjects", type=int, default=500)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--cpus", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, help="default: 3, and 1 from 5,000 subjects on")
    parser.add_argument("--folder", type=Path, help="for 15 bytes per event; default: the system's temporary folder")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "benchmarks" / "results" / "labels.json")
    parser.add_argument("--scan", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.repeats = options.repeats or (3 if options.subjects < 5000 else 1)
    return options


def measure(folder: Path, subjects: int, seed: int, cpus: int, repeats: int) -> dict:
    import polars as pl

    from benchmarks.records import write_records
    from data.workers import map_shards, ray_session

    ehr = folder / "ehr"
    (folder / "phenotypes.yaml").write_text(PHENOTYPES)
    pl.thread_pool_size()  # jobs.prepare has read its inputs before the session narrows the workers' environment
    # Ray's 15 would favour the scan wherever something else runs
    os.environ |= {"RAY_worker_niceness": "0"}
    with ray_session(cpus):
        began = time.perf_counter()
        studies, closure = write_records(ehr, subjects, seed, map_shards)
        generated = time.perf_counter() - began
        size = sum(path.stat().st_size for path in ehr.rglob("*.parquet"))
        # Seconds long, so that other work shows: before and after the labels, whose median is compared.
        scans = [run_scan(ehr, cpus) for _ in range(SCANS)]
        with watched_memory() as together:  # first: in a new clone the loops are compiled, once
            run_labels(folder, studies, subjects)
        runs = [run_labels(folder, studies, subjects) for _ in range(repeats)]
        scans += [run_scan(ehr, cpus) for _ in range(SCANS)]
    events = scans[0]["events"]
    labels, scanned = median_of(runs, "seconds"), median_of(scans, "seconds")
    passes = statistics.median(sum(run["stages"][name] for name in PASSES) for run in runs)
    objects = run_objects(ehr, folder / "prepared", studies)
    return {
        "date": now(),
        "hardware": hardware(cpus),
        **provenance(PACKAGES),
        "data": {
            "subjects": subjects, "cts": len(studies), "events": events, "parquet_bytes": size, "seed": seed,
            "mean_closure": round(closure, 2), "tasks": runs[0]["tasks"], "generated_s": round(generated, 2),
        },
        "scan": {
            "seconds": [run["seconds"] for run in scans], "cpu_seconds": [run["cpu_seconds"] for run in scans],
            "events_per_s": round(events / scanned),
        },
        "labels": {
            "seconds": [run["seconds"] for run in runs], "cpu_seconds": [run["cpu_seconds"] for run in runs],
            "events_per_s": round(events / labels),
            "cts_per_s": round(len(studies) / labels, 1), "stages_s": runs[-1]["stages"],
            "peak_mib": {"all_processes_pss": together[0]}
            | {key: max(run["peak_mib"][key] for run in runs) for key in runs[0]["peak_mib"]},
        },
        "objects": objects,
        "ratio_to_scan": round(labels / scanned, 2),
        "ratio_to_scan_cpu": round(median_of(runs, "cpu_seconds") / median_of(scans, "cpu_seconds"), 2),
        "passes_to_scan": round(passes / scanned, 2),  # without hashes, ontology, task choice and files written
        "objects_over_labels_per_ct": round(objects["seconds_per_ct"] / (labels / len(studies)), 1),
        "objects_over_reading_per_ct": round(objects["seconds_per_ct"] / objects["read_label_seconds_per_ct"], 1),
    }  # fmt: skip


def median_of(runs: list[dict], key: str) -> float:
    return statistics.median(run[key] for run in runs)


def run_scan(ehr: Path, cpus: int) -> dict:
    command = [sys.executable, "-m", "benchmarks.labels", "--scan", str(ehr)]
    environment = os.environ | {"POLARS_MAX_THREADS": str(cpus), "PYTHONPATH": str(REPOSITORY)}
    return json.loads(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


def scan(ehr: Path) -> dict:
    """The second of two scans, so that the files are in the page cache, as they are for the labels."""
    import polars as pl

    for _ in range(2):
        began, before = time.perf_counter(), time.process_time()
        events = sum(pl.read_parquet(path, columns=COLUMNS).height for path in sorted(ehr.glob("data/*.parquet")))
        seconds, spent = time.perf_counter() - began, time.process_time() - before
    return {"events": events, "seconds": round(seconds, 3), "cpu_seconds": round(spent, 3)}


def run_labels(folder: Path, studies: pl.DataFrame, subjects: int) -> dict:
    """One run from nothing, with the time of each pass and each process's own peak memory."""
    from data.labels.stage import make_labels
    from data.workers import map_shards
    from ehr.config import EhrConfig

    share = min(1.0, subjects / WHOLE)  # of the default thresholds, so that a small size has as many tasks
    config = EhrConfig(
        phenotypes=str(folder / "phenotypes.yaml"),
        min_events=max(1, round(20 * share)),
        min_patients=max(1, round(11 * share)),
    )
    shutil.rmtree(folder / "prepared", ignore_errors=True)
    (folder / "prepared").mkdir()
    stages: dict[str, float] = defaultdict(float)

    def timed_map(function, items) -> list:
        began = time.perf_counter()
        results = map_shards(function, items)
        stages[getattr(function, "func", function).__name__] += time.perf_counter() - began
        return results

    for process in workers():
        forget_peak(process)
    fitted_on = {"hash": "", "count": len(studies)}
    spent = sum(map(cpu_seconds, workers()))
    began = time.perf_counter()
    made = make_labels(folder / "prepared", folder / "ehr", None, studies, config, fitted_on, timed_map)
    seconds = time.perf_counter() - began
    spent = sum(map(cpu_seconds, workers())) - spent
    stages["driver"] = seconds - sum(stages.values())
    peaks = {process.name: peak_rss_mib(process) for process in workers()}
    driver = peaks.pop(str(os.getpid()))
    return {
        "seconds": round(seconds, 3),
        "cpu_seconds": round(spent, 3),
        "tasks": made.counts["tasks"]["tasks"],
        "stages": {name: round(value, 3) for name, value in stages.items()},
        "peak_mib": {
            "driver_rss": driver, "largest_worker_rss": max(peaks.values()),
            "sum_of_rss_peaks": driver + sum(peaks.values()),
        },
    }  # fmt: skip


def run_objects(ehr: Path, prepared: Path, studies: pl.DataFrame) -> dict:
    """Seconds per CT of the published design on a sample, and of reading our labels of the same CTs instead."""
    import polars as pl

    from benchmarks.objects import DAY, Ontology, event_objects, label

    metadata = pl.read_parquet(ehr / "metadata" / "codes.parquet")
    ontology = Ontology(dict(metadata.select("code", "parent_codes").iter_rows()))
    codes = [task["code"] for task in json.loads((prepared / "tasks.json").read_text())["tasks"]]
    tasks = set(codes)
    for code in codes:  # the cache of ancestors is warm, as after a patient or two
        ontology.all_parents(code)
    sample = studies.head(OBJECT_CTS)
    events = pl.read_parquet(ehr / "data" / "00000.parquet", columns=COLUMNS)
    built, read, differing, num_events = 0.0, 0.0, 0, 0
    labels = pl.read_parquet(prepared / "labels.parquet", columns=["study_id", "task_index", "event_days"])
    for study, subject, study_time in sample.select("study_id", "subject_id", "study_time").iter_rows():
        own = events.filter(subject_id=subject)
        times, names = own["time"].to_list(), own["code"].to_list()
        num_events += len(own)
        began = time.perf_counter()
        slow = label(event_objects(times, names), study_time, ontology, tasks, DAY)
        built += time.perf_counter() - began
        began = time.perf_counter()
        _, indices, days = labels.row(by_predicate=pl.col("study_id") == study)
        read += time.perf_counter() - began
        differing += dict(zip((codes[k] for k in indices), days)) != slow
    return {
        "sample_cts": len(sample),
        "events_per_ct": round(num_events / len(sample)),
        "seconds_per_ct": round(built / len(sample), 5),
        "read_label_seconds_per_ct": round(read / len(sample), 5),
        "cts_with_other_labels_than_ours": differing,
    }


def hardware(cpus: int) -> dict:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    memory = int(Path("/proc/meminfo").read_text().split()[1]) >> 20
    return {
        "cpu": models[0] if models else platform.machine(), "cpus_used": cpus, "memory_gib": memory,
        "load_average_after": round(os.getloadavg()[0], 2),
    }  # fmt: skip


if __name__ == "__main__":
    main()
