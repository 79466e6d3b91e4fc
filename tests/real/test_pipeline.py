"""The pipeline on real scans and a real EHR, up to an embedding.

The scans and the records are of different people: the link between them is made up here, to exercise every stage on
files that hospitals and scanners wrote. No score is expected of it.
"""

import json
import shutil
import subprocess
import sys
from datetime import timedelta

import numpy as np
import polars as pl
import pytest

pytestmark = pytest.mark.slow

IMAGES = {  # fixture path -> place beside the study table, split of the subject it is linked to
    "ct_totalseg/example_ct_dicom": ("totalseg_dicom", "train"),
    "ct_totalseg/example_ct.nii.gz": ("totalseg_3mm.nii.gz", "train"),
    "ct_cip_lowres/ct-64Dicom": ("chest_dicom", "train"),
    "ct_totalseg/example_ct_sm.nii.gz": ("totalseg_small.nii.gz", "tuning"),
}
CONFIG = """
name: real
input: {{studies: {studies}, ehr: {ehr}}}
prepare: {{num_cpus: 1}}
ehr: {{num_tasks: 64, phenotypes: configs/phenotypes/icd_mimic.yaml}}
volume: {{preset: small, spacing_mm: [8, 8, 8], shape_DHW: [32, 40, 48]}}
model: {{encoder: resnet18, head_dim: 8}}
train: {{epochs: 2, batch_size: 1}}
"""


@pytest.fixture(scope="module")
def studies(fixtures, tmp_path_factory):
    """A study table: six hours into everybody's first admission; four of the studies have an image."""
    folder = tmp_path_factory.mktemp("archive")
    meds = fixtures / "ehr_meds_mimic4demo" / "MIMIC-IV-DEMO-MEDS"
    events = pl.scan_parquet(meds / "data" / "**" / "*.parquet").select("subject_id", "time", "code")
    table = (
        events.filter(pl.col("code").str.starts_with("HOSPITAL_ADMISSION"))
        .group_by("subject_id")
        .agg(study_time=pl.col("time").min() + timedelta(hours=6))
        .join(pl.scan_parquet(meds / "metadata" / "subject_splits.parquet"), on="subject_id")
        .sort("subject_id")
        .collect()
    )
    image = dict.fromkeys(table["subject_id"].to_list())
    for path, (place, split) in IMAGES.items():
        source = fixtures / path
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, folder / place)
        free = table.filter(pl.col("split") == split)["subject_id"].to_list()
        image[next(subject for subject in free if image[subject] is None)] = place
    table = table.with_columns(
        study_id=pl.format("S{}", pl.col("subject_id")),
        image=pl.col("subject_id").replace_strict(image, return_dtype=pl.String),
    )
    table.write_parquet(folder / "studies.parquet")
    return folder / "studies.parquet", meds


@pytest.fixture(scope="module")
def run_folder(studies, repository, tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    (folder / "real.yaml").write_text(CONFIG.format(studies=studies[0], ehr=studies[1]))
    for job in ("cohort", "prepare", "pretrain"):
        done = subprocess.run(
            [sys.executable, "-m", f"jobs.{job}", folder / "real.yaml", f"paths.root={folder}"],
            cwd=repository, capture_output=True, text=True, timeout=400,
        )  # fmt: skip
        assert done.returncode == 0, f"{job}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return folder / "real"


def test_every_real_scan_is_read_and_every_exclusion_is_counted(run_folder):
    volumes = pl.read_parquet(run_folder / "prepared" / "volumes.parquet")
    quarantine = pl.read_parquet(run_folder / "prepared" / "quarantine.parquet")
    assert (len(volumes), len(quarantine)) == (len(IMAGES), 0), quarantine
    labels = pl.read_parquet(run_folder / "prepared" / "labels.parquet")
    assert len(labels) > 80
    assert labels["task_index"].list.len().sum() > 500
    tasks = json.loads((run_folder / "prepared" / "tasks.json").read_text())
    assert len(tasks["tasks"]) == 65  # 64 and death


def test_a_few_steps_train_on_real_scans(run_folder):
    lines = [json.loads(line) for line in (run_folder / "pretrain" / "tte" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line.get("loss") is not None]
    assert len(losses) == 6  # three train studies with an image and labels, one per step, two epochs
    assert np.isfinite(losses).all()
    assert any(line.get("loss_tuning") is not None for line in lines)


def test_the_export_alone_embeds_a_dicom_folder_and_a_nifti_file(run_folder, fixtures):
    from ttepretrain import load_encoder

    encoder = load_encoder(run_folder / "pretrain" / "tte" / "export")
    embedding = encoder.embed([fixtures / path for path in IMAGES])
    assert embedding.shape == (len(IMAGES), encoder.feature_dim)
    assert np.isfinite(embedding).all()
    assert len(np.unique(embedding.round(4), axis=0)) == len(IMAGES)
