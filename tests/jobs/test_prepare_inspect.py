"""jobs.prepare on a small release in INSPECT's layout, its EHR as nested MEDS: from the public tables to prepared/."""

import json
import os
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from data.testing import chest, load_module, write_nifti

REPOSITORY = Path(__file__).parents[2]
NUM = 40
CORRUPT, UNDATED = 5, 7  # numbers of studies
CODES = [f"TEST/{n}" for n in range(20)]


def write_release(folder: Path) -> None:
    load_module(REPOSITORY / "tests" / "data" / "inspect_release.py").write_inspect(folder, NUM)
    for n in range(NUM):
        write_nifti(folder / "CTPA" / f"PE{n:04d}.nii.gz", chest(n))
    damaged = folder / "CTPA" / f"PE{CORRUPT:04d}.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:2000])
    mapping = folder / "study_mapping_20250611.tsv"
    undated = f"{datetime(2015, 1, 1, 9, 30) + timedelta(days=UNDATED)}"
    mapping.write_text(mapping.read_text().replace(undated, ""))


def write_nested_ehr(folder: Path) -> None:
    rng = np.random.default_rng(0)
    patients = []
    for n in range(NUM):
        scan = datetime(2015, 1, 1, 9, 30) + timedelta(days=n)
        times = [scan + timedelta(days=float(days)) for days in np.sort(rng.uniform(-200, 900, 12))]
        events = [{"time": time, "measurements": [{"code": str(rng.choice(CODES))}]} for time in times]
        birth = {"time": datetime(1950, 5, 17), "measurements": [{"code": "SNOMED/184099003"}]}
        patients.append({"patient_id": 1_000_000 + n, "events": [birth, *events]})
    (folder / "data").mkdir(parents=True)
    pl.DataFrame(patients).write_parquet(folder / "data" / "0.parquet")


@pytest.mark.slow
def test_public_tables_become_labels_and_volumes_and_a_corrupt_volume_is_quarantined(tmp_path):
    release, mapping = tmp_path / "inspect", tmp_path / "inspect" / "study_mapping_20250611.tsv"
    write_release(release)
    write_nested_ehr(tmp_path / "meds")
    (tmp_path / "inspect.yaml").write_text("name: inspect\n")
    job = subprocess.run(
        [sys.executable, "-m", "jobs.prepare", f"{tmp_path}/inspect.yaml", f"input.studies={mapping}",
         f"input.ehr={tmp_path}/meds", f"ehr.label_tables=[{release}/labels_20250611.tsv]",
         f"ehr.phenotypes={REPOSITORY}/configs/phenotypes/inspect.yaml", "ehr.min_events=2", "ehr.min_patients=2",
         "prepare.num_cpus=2", "volume.spacing_mm=[14.0,13.0,12.0]", "volume.shape_DHW=[12,16,20]"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, text=True, timeout=180,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert job.returncode == 0, job.stdout
    assert "scrubbed of deaths and readmissions" in job.stdout
    assert "times are in minutes (tte_mortality, tte_readmission, " in job.stdout
    assert "imp0" not in job.stdout and "PE0" not in job.stdout  # noqa: PT018
    prepared = tmp_path / "runs" / "inspect" / "prepared"
    summary = json.loads((prepared / "summary.json").read_text())
    assert summary["studies"]["inspect"]["no_procedure_DATETIME"] == sum(summary["studies"]["inspect"].values()) == 1
    assert summary["labels"]["nested_meds"] | {"patients": NUM, "rows": NUM * 13} == summary["labels"]["nested_meds"]
    assert sum(summary["splits"]["ready"].values()) == NUM - 2
    quarantine = pl.read_parquet(prepared / "quarantine.parquet")
    assert quarantine["study_id"].to_list() == [f"imp{CORRUPT:04d}"]
    mortality = pl.read_parquet(prepared / "phenotypes.parquet").filter(phenotype="mortality")
    assert set(mortality["horizon_days"]) == {30.0, 180.0, 365.0, None}
    assert mortality["study_id"].n_unique() == NUM - 1
    assert "provenance" in pl.read_parquet(prepared / "covariates.parquet").columns
