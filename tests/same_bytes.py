"""Does a change of the code change a byte of what a run writes?

    .venv/bin/python tests/same_bytes.py REVISION [--skip default] [--allow tiny/prepared/summary.json ...]

Runs REVISION and the working tree under `build/same_bytes/`, with one salt, and compares the files: cohort and
`prepared/` of `tiny` and of `default`, labels of the MIMIC-IV demo (where the fixtures are), and the export of a `tiny`
run of 20 steps. Exit 1 names every file that differs. Times, versions, checksums of whole folders and stamps of caches
differ between any two runs and are left out.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "same_bytes"
DEMO = Path("ehr_meds_mimic4demo/MIMIC-IV-DEMO-MEDS")
# Times and versions; checksums of the rest. Stamps (stages/*.json, *.stamp) hold hashes of code and dates.
LEFT_OUT = ("provenance.json", "manifest.json")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("revision", help="git revision to compare the working tree with")
    parser.add_argument("--skip", nargs="*", default=[], choices=["default", "demo", "training"])
    parser.add_argument("--allow", nargs="*", default=[], help="files that may differ, e.g. tiny/prepared/summary.json")
    arguments = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    revision = git("rev-parse", arguments.revision)
    before, after = WORK / revision[:12], WORK / "worktree"
    done = before / ".done"  # holds what was skipped
    if not done.exists() or not set(done.read_text().split()) <= set(arguments.skip):
        shutil.rmtree(before, ignore_errors=True)
        subprocess.run(["git", "clone", "--quiet", "--no-checkout", ROOT, before], check=True)
        subprocess.run(["git", "-C", before, "checkout", "--quiet", revision], check=True)
        run_all(before, arguments.skip)
        done.write_text(" ".join(arguments.skip))
    shutil.rmtree(after, ignore_errors=True)
    files = git("ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    for name in files:
        if (ROOT / name).is_file():
            (after / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, after / name)
    run_all(after, arguments.skip)
    return compare(before / "runs", after / "runs", set(arguments.allow))


def git(*arguments: str) -> str:
    return subprocess.run(["git", "-C", ROOT, *arguments], check=True, capture_output=True, text=True).stdout.strip()


def run_all(clone: Path, skip: list[str]) -> None:
    """Every stage from the folder of one version, with the environment of this clone."""
    salt = WORK / "salt"
    if not salt.exists():
        salt.write_bytes(hashlib.sha256(b"same bytes").digest())
        salt.chmod(0o600)
    common = [f"prepare.salt_file={salt}"]
    stage(clone, "jobs.cohort", "configs/tiny.yaml")
    stage(clone, "jobs.prepare", "configs/tiny.yaml", *common)
    if "training" not in skip:
        stage(clone, "jobs.pretrain", "configs/tiny.yaml", "train.max_steps=20", *common)
    demo = Path(os.environ.get("TTE_FIXTURES", ROOT.parent / "shared" / "fixtures")).absolute() / DEMO
    if "demo" not in skip and demo.is_dir():
        studies = demo_studies(demo)
        given = [f"input.studies={studies}", f"input.ehr={demo}", "prepare.stages=[labels]", "name=demo"]
        given += ["ehr.phenotypes=configs/phenotypes/icd_mimic.yaml", "ehr.num_tasks=800"]
        stage(clone, "jobs.prepare", "configs/tiny.yaml", *common, *given)
    if "default" not in skip:
        stage(clone, "jobs.cohort", "configs/default.yaml")
        stage(clone, "jobs.prepare", "configs/default.yaml", *common)


def stage(clone: Path, module: str, *arguments: object) -> None:
    print(f"{clone.name}: {module} {' '.join(map(str, arguments))}", flush=True)
    environment = os.environ | {"PYTHONPATH": str(clone), "RAY_USAGE_STATS_ENABLED": "0"}
    with (WORK / f"{clone.name}.log").open("a") as log:
        subprocess.run(
            [sys.executable, "-m", module, *map(str, arguments)], cwd=clone, env=environment, check=True,
            stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip


def demo_studies(demo: Path) -> Path:
    """A study five hours into every admission of the demo, every third one of a bare date (the demo has no scans)."""
    import polars as pl

    events = pl.scan_parquet(demo / "data" / "**" / "*.parquet").select("subject_id", "time", "code").collect()
    entries = events.filter(pl.col("code").str.starts_with("HOSPITAL_ADMISSION")).unique().sort("subject_id", "time")
    day = pl.col("time").dt.truncate("1d")
    table = entries.select(
        pl.format("s{}", pl.int_range(pl.len())).alias("study_id"),
        "subject_id",
        study_time=pl.when(pl.int_range(pl.len()) % 3 == 0).then(day).otherwise(pl.col("time") + pl.duration(hours=5)),
    )
    path = WORK / "demo_studies.parquet"
    table.write_parquet(path)
    return path


def compare(before: Path, after: Path, allowed: set[str]) -> int:
    """Print what differs; the number of differences that were not allowed, at most 1."""
    names = {
        path.relative_to(root).as_posix() for root in (before, after) for path in root.rglob("*") if compared(path)
    }
    same, wrong = 0, []
    for name in sorted(names):
        pair = [root / name for root in (before, after)]
        absent = [root.name for root, path in zip((before.parent, after.parent), pair) if not path.is_file()]
        if absent:
            wrong.append(f"{name}: not in {absent[0]}")
        elif pair[0].read_bytes() != pair[1].read_bytes():
            wrong.append(f"{name}: {pair[0].stat().st_size} bytes before, {pair[1].stat().st_size} after")
        else:
            same += 1
    for line in wrong:
        print("differs:" if line.split(":")[0] not in allowed else "differs, allowed:", line)
    print(f"{same} files equal byte for byte, {len(wrong)} differ")
    return int(any(line.split(":")[0] not in allowed for line in wrong))


def compared(path: Path) -> bool:
    """A file that two runs on equal input make equal."""
    if not path.is_file() or any(part.startswith(".") for part in path.parts[-2:]):
        return False
    if path.name in LEFT_OUT or path.suffix == ".stamp" or (path.parent.name == "stages" and path.suffix == ".json"):
        return False
    if "pretrain" in path.parts:  # the rest holds times and rates
        return path.name in ("model.safetensors", "tasks.json")
    return "cohort" in path.parts or "prepared" in path.parts


if __name__ == "__main__":
    sys.exit(main())
