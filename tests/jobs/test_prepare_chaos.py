"""SIGKILL of Ray workers and of the driver, at seeded moments of preparing `tiny`, loses and doubles nothing.

Three kills here; `make chaos` sets TTE_CHAOS_KILLS=20. Every second victim is the driver, which takes its workers
along and is started again with the same line; the others are workers, which the running driver has to bear.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

from ttepretrain.errors import ExitCode

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("TTE_CHAOS_KILLS", "3"))
SEED = int(os.environ.get("TTE_CHAOS_SEED", "4"))
SALT = bytes(range(32))
TIMES = ("started", "finished")
START_SECONDS, RUN_SECONDS = 60.0, 240.0


@pytest.fixture(scope="module")
def cohort(tmp_path_factory, repository):
    """Root with the `tiny` cohort and the salt that all runs share."""
    root = tmp_path_factory.mktemp("cohort")
    (root / "salt").write_bytes(SALT)
    command = [sys.executable, "-m", "jobs.cohort", "configs/tiny.yaml", f"paths.root={root}"]
    subprocess.run(command, cwd=repository, env=environment(repository), check=True, capture_output=True, timeout=240)
    return root


def environment(repository):
    return os.environ | {"PYTHONPATH": str(repository)}


def start(root, cohort, repository):
    folder = cohort / "tiny" / "cohort"
    inputs = [f"input.studies={folder}/studies.parquet", f"input.ehr={folder}/ehr", f"prepare.salt_file={cohort}/salt"]
    command = [sys.executable, "-m", "jobs.prepare", "configs/tiny.yaml", *inputs, "prepare.num_cpus=2"]
    with (root / "log").open("ab") as log:
        return subprocess.Popen(
            [*command, "name=run", f"paths.root={root}"],
            cwd=repository, env=environment(repository), stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip


def contents(root):
    """Every file's bytes by name, provenance and configuration (which holds the root) without what must differ."""
    prepared = root / "run" / "prepared"
    files = {p.relative_to(prepared).as_posix(): p.read_bytes() for p in prepared.rglob("*") if p.is_file()}
    del files[".lock"]
    provenance = json.loads(files.pop("provenance.json"))
    files["config.yaml"] = files["config.yaml"].replace(str(root).encode(), b"ROOT")
    manifest = json.loads(files.pop("manifest.json"))
    del manifest["files"]["config.yaml"]
    return files, manifest, {key: value for key, value in provenance.items() if key not in TIMES}


def workers_of(driver: int) -> list[int]:
    """Ray worker processes below a driver, idle ones included; not Ray's agents, with which its server ends."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            children.setdefault(int(stat.read_text().rpartition(")")[2].split()[1]), []).append(int(stat.parent.name))
        except OSError:
            continue
    found, waiting = [], [driver]
    while waiting:
        waiting += (below := children.get(waiting.pop(), []))
        found += [pid for pid in below if (name := command(pid)).startswith("ray::") and "Agent" not in name]
    return found


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def kill_once(job, root, draw, driver_dies: bool) -> bool:
    """Kill the driver or one of its workers at a drawn moment; False when the job was over before."""
    arrived, deadline = (root / "run" / "prepared" / "keys.parquet"), time.monotonic() + START_SECONDS
    began = time.time()
    while job.poll() is None and time.monotonic() < deadline:
        if arrived.exists() and arrived.stat().st_mtime >= began - 1 and workers_of(job.pid):
            break
        time.sleep(0.02)
    time.sleep(draw.uniform(0, 1.5))
    if job.poll() is not None:
        return False
    if driver_dies:
        job.kill()
        job.wait(30)
        return True
    if victims := workers_of(job.pid):
        os.kill(draw.choice(sorted(victims)), signal.SIGKILL)
    return bool(victims)


@pytest.mark.timeout(60 + 60 * KILLS + 2 * RUN_SECONDS)
def test_kills_of_workers_and_drivers_change_no_byte(cohort, repository, tmp_path):
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    for root in (calm, rough):
        root.mkdir()
    assert start(calm, cohort, repository).wait(RUN_SECONDS) == 0, (calm / "log").read_text()[-2000:]

    print(f"TTE_CHAOS_SEED={SEED} TTE_CHAOS_KILLS={KILLS}")
    draw = random.Random(SEED)
    done = {"driver": 0, "worker": 0}
    cache = rough / "run" / "prepared" / "volumes"
    job = start(rough, cohort, repository)
    try:
        for _ in range(4 * KILLS):
            if sum(done.values()) == KILLS:
                break
            if job.poll() is not None:  # finished, by chance: some of its work is taken away
                assert job.returncode in (ExitCode.OK, ExitCode.RESOURCES), (rough / "log").read_text()[-2000:]
                for path in draw.sample(sorted(cache.iterdir()), min(20, len(list(cache.iterdir())))):
                    path.unlink()
                job = start(rough, cohort, repository)
            # in turns, so that no session loses two workers: one study may not cost more, or it counts as poison
            victim = "driver" if done["driver"] < done["worker"] else "worker"
            done[victim] += kill_once(job, rough, draw, victim == "driver")
            if victim == "driver" and job.wait(RUN_SECONDS) == -signal.SIGKILL:
                job = start(rough, cohort, repository)
        for _ in range(3):
            if (code := job.wait(RUN_SECONDS)) != ExitCode.RESOURCES:
                break
            job = start(rough, cohort, repository)  # the machine was too busy to start Ray
    finally:
        job.kill()
        job.wait()
    assert code == 0, (rough / "log").read_text()[-2000:]
    assert sum(done.values()) == KILLS, done
    if KILLS > 1:
        assert min(done.values()) > 0, done

    assert contents(rough) == contents(calm)
    volumes = pl.read_parquet(rough / "run" / "prepared" / "volumes.parquet")
    assert volumes["study_id"].is_unique().all()
    bad = pl.read_parquet(rough / "run" / "prepared" / "quarantine.parquet")
    assert sorted([*volumes["study_id"], *bad["study_id"]]) == sorted(
        pl.read_parquet(cohort / "tiny" / "cohort" / "studies.parquet")["study_id"]
    )
    assert not list((rough / "run").rglob("*.tmp"))
