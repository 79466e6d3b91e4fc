"""jobs.prepare on a small hospital: complete, repeatable, killable, and silent about who the patients are."""

import hashlib
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as parquet
import pytest

from data.prepared.opened import PreparedStudies
from data.prepared.schema import Table, file_of
from data.testing import chest, settings, write_dicom, write_hospital, write_nifti, write_studies
from data.volumes.cache import read_volume
from jobs.prepare import main
from ttepretrain.errors import ConfigError, IntegrityError, LeakageError
from ttepretrain.lock import folder_lock
from ttepretrain.tasks import TaskSet

SALT = bytes(range(32))
TIMES = ("started", "finished")
# As in tests/jobs/test_privacy.py: strings that stand for a patient, placed wherever one may be named.
CANARY = "CANARY7731^MRN"


@pytest.fixture(scope="module")
def hospital(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hospital")
    write_hospital(folder)
    (folder / "salt").write_bytes(SALT)
    (folder / "run.yaml").write_text("name: run\n")
    return folder


def arguments(hospital, *more):
    repository = Path(__file__).parents[2]
    common = [f"prepare.salt_file={hospital}/salt", f"ehr.phenotypes={repository}/configs/phenotypes/default.yaml"]
    return [f"{hospital}/run.yaml", *settings(hospital, *common, *more)]


def start(where, hospital, *more):
    """The job as its own process, its outputs in where/runs/run/prepared."""
    where.mkdir(exist_ok=True)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.prepare", *arguments(hospital, *more)],
        cwd=where, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def run(where, hospital, *more):
    """(exit code, everything printed, prepared folder)."""
    job = start(where, hospital, *more)
    output, _ = job.communicate(timeout=120)
    return job.returncode, output, where / "runs" / "run" / "prepared"


def contents(prepared):
    """Every file's bytes by name; provenance without its times, the lock not at all."""
    files = {p.relative_to(prepared).as_posix(): p.read_bytes() for p in prepared.rglob("*") if p.is_file()}
    del files[".lock"]
    provenance = json.loads(files.pop("provenance.json"))
    return files, {key: value for key, value in provenance.items() if key not in TIMES}


@pytest.fixture(scope="module")
def undisturbed(hospital, tmp_path_factory):
    code, output, prepared = run(tmp_path_factory.mktemp("undisturbed"), hospital)
    assert code == 0, output
    return prepared


# --- what is written


@pytest.mark.slow
def test_every_study_arrives_with_labels_keys_covariates_and_its_voxels(undisturbed, hospital):
    studies = pl.read_parquet(hospital / "studies.parquet")
    tables = {p.stem: pl.read_parquet(p) for p in undisturbed.glob("*.parquet")}
    for name in ("labels", "keys", "covariates", "volumes"):
        assert tables[name]["study_id"].to_list() == sorted(studies["study_id"])
    assert tables["quarantine"].height == 0
    assert tables["covariates"]["scan_hour"].unique().to_list() == [10]
    assert tables["covariates"]["site"].to_list() == studies["site"].to_list()
    # every fifth study is DICOM, whose header names the scanner
    assert tables["covariates"]["kvp"].to_list() == [120.0 if n % 5 == 2 else None for n in range(15)]
    assert tables["labels"].schema["task_index"] == pl.List(pl.Int32)
    assert TaskSet.load(undisturbed / "tasks.json").num_tasks > 0
    for row in tables["volumes"].iter_rows(named=True):
        hu_DHW = read_volume(undisturbed / row["path"], row["checksum"])
        assert (hu_DHW.dtype, list(hu_DHW.shape), row["shape"]) == (np.int16, [12, 16, 20], [12, 16, 20])
    assert [len(PreparedStudies.open(undisturbed, split)) for split in ("train", "tuning", "held_out")] == [9, 3, 3]


@pytest.mark.slow
def test_the_manifest_has_the_checksum_of_every_file(undisturbed):
    manifest = json.loads((undisturbed / "manifest.json").read_text())
    files, _ = contents(undisturbed)
    del files["manifest.json"]
    assert {name: entry["sha256"] for name, entry in manifest["files"].items()} == {
        name: hashlib.sha256(data).hexdigest() for name, data in files.items()
    }


@pytest.mark.slow
def test_every_file_and_table_is_as_the_schema_says(undisturbed):
    files, _ = contents(undisturbed)
    for name in files:
        file = file_of(name)
        assert stat.S_IMODE((undisturbed / name).stat().st_mode) == file.mode, name
        if isinstance(file, Table):
            file.check(parquet.read_table(undisturbed / name))


@pytest.mark.slow
def test_the_folder_and_the_keys_are_the_owners_alone(undisturbed):
    modes = {name: stat.S_IMODE((undisturbed / name).stat().st_mode) for name in ("", "salt", "keys.parquet")}
    assert modes == {"": 0o700, "salt": 0o600, "keys.parquet": 0o600}


# --- again, killed, changed


@pytest.mark.slow
def test_a_second_run_reuses_everything_and_a_changed_source_alone_is_made_again(undisturbed, hospital, tmp_path):
    before = contents(undisturbed)
    for folder in (hospital, undisturbed.parents[2]):
        shutil.copytree(folder, tmp_path / folder.name)
    where = tmp_path / undisturbed.parents[2].name
    prepared = where / "runs" / "run" / "prepared"
    files = {p: p.stat().st_mtime_ns for p in (prepared / "volumes").iterdir()}

    code, output, _ = run(where, hospital)
    assert code == 0, output
    assert "labels of 15 studies, reused" in output
    assert "volumes of 15 studies, 15 from the cache; 0 bad studies" in output
    assert contents(prepared) == before
    assert {p: p.stat().st_mtime_ns for p in (prepared / "volumes").iterdir()} == files

    # the same path, size on disk aside, with its old times, in a moved hospital: content is what counts
    moved = tmp_path / hospital.name
    source = moved / "images" / "00.nii.gz"
    times = source.stat()
    write_nifti(source, chest(77))
    os.utime(source, ns=(times.st_atime_ns, times.st_mtime_ns))
    code, output, _ = run(where, moved, f"prepare.salt_file={hospital}/salt")
    assert code == 0, output
    assert "labels of 15 studies, reused" in output
    assert "volumes of 15 studies, 14 from the cache" in output


@pytest.mark.slow
def test_bad_entries_of_the_cache_are_rebuilt_to_the_byte_and_the_others_reused(undisturbed, hospital, tmp_path):
    """Cut, damaged, another study's, a folder, gone: the next run leaves the cache as it was."""
    where = shutil.copytree(undisturbed.parents[2], tmp_path / "copy")
    prepared = where / "runs" / "run" / "prepared"
    cut, flipped, foreign, folder, gone, sound = sorted((prepared / "volumes").glob("*.b2nd"))[:6]
    cut.write_bytes(cut.read_bytes()[:-500])
    flipped.write_bytes(bytes([*flipped.read_bytes()[:600], 0, *flipped.read_bytes()[601:]]))
    shutil.copy(sound, foreign)
    folder.unlink()
    folder.mkdir()
    gone.unlink()
    assert flipped.read_bytes() != (undisturbed / "volumes" / flipped.name).read_bytes()
    code, output, _ = run(where, hospital, "prepare.stages=[volumes]")
    assert code == 0, output
    assert "volumes of 15 studies, 10 from the cache; 0 bad studies" in output
    for path in (undisturbed / "volumes").iterdir():
        assert (prepared / "volumes" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_killed_at_two_random_moments_and_run_again_it_gives_the_same_bytes(undisturbed, hospital, tmp_path):
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    draw = random.Random(seed)
    volumes = tmp_path / "runs" / "run" / "prepared" / "volumes"
    reached = [
        # while the folder is set up or the labels are made
        (lambda: (volumes.parent / "keys.parquet").exists(), draw.uniform(0, 5)),
        # while volumes are made
        (lambda: len(list(volumes.glob("*.b2nd"))) >= draw.randint(1, 12), draw.uniform(0, 0.2)),
    ]
    for arrived, delay in reached:
        job = start(tmp_path, hospital)
        while job.poll() is None and not arrived():
            time.sleep(0.01)
        time.sleep(delay)
        job.send_signal(signal.SIGKILL)
        job.communicate()
    code, output, prepared = run(tmp_path, hospital)
    assert code == 0, output
    assert contents(prepared) == contents(undisturbed)


@pytest.mark.slow
def test_frozen_tasks_and_label_tables_serve_another_run(undisturbed, hospital, tmp_path):
    """Tasks and labels stay to the byte; the table's finding is a phenotype with its MEDS label file."""
    table = tmp_path / "findings.csv"
    table.write_text(
        "study_id,phenotype,kind,label,horizon_days\nct-00,finding,prognosis,False,30\nno,finding,prognosis,1,30\n"
    )
    more = ["prepare.stages=[labels]", f"ehr.tasks={undisturbed}/tasks.json", f"ehr.label_tables=[{table}]"]
    code, output, prepared = run(tmp_path, hospital, *more)
    assert code == 0, output
    for name in ("tasks.json", "tasks.csv", "labels.parquet"):
        assert (prepared / name).read_bytes() == (undisturbed / name).read_bytes(), name
    counts = json.loads((prepared / "summary.json").read_text())["labels"]
    assert counts["frozen_tasks_fitted_on"] == "same"
    assert (counts["label_tables"]["used"], counts["label_tables"]["unknown_study"]) == (1, 1)
    finding = pl.read_parquet(prepared / "phenotypes.parquet").filter(phenotype="finding")
    assert finding.select("study_id", "label").rows() == [("ct-00", False)]
    assert pl.read_parquet(prepared / "labels_meds" / "finding" / "30d.parquet")["boolean_value"].to_list() == [False]
    assert "labels_meds/finding/30d.parquet" in json.loads((prepared / "manifest.json").read_text())["files"]


# --- refusals before anything is started


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("prepare.num_cpu=1", "unknown key prepare.num_cpu; did you mean prepare.num_cpus?"),
        ("prepare.stages=[label]", "prepare.stages must be one of labels, volumes; did you mean 'labels'"),
        ("input.ehr=/nowhere", "input.ehr: /nowhere is not a folder"),
        ("input.studies=/nowhere.csv", "input.studies: /nowhere.csv is not a file"),
        ("input.studies=null", "input.studies is needed beside input.ehr"),
        ("input.ehr=null", "input.ehr is needed by the labels stage"),
        ("paths.root=/dev/null", "cannot be used"),
    ],
)  # fmt: skip
def test_a_wrong_key_or_path_is_named_and_nothing_is_written(tmp_path, monkeypatch, override, message):
    write_studies(tmp_path, 1)
    (tmp_path / "ehr").mkdir()
    (tmp_path / "run.yaml").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as raised:
        main([*arguments(tmp_path), override])
    assert message in str(raised.value)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_typo_exits_2_within_seconds(hospital, tmp_path):
    began = time.monotonic()
    code, output, _ = run(tmp_path, hospital, "volume.spacing=[1,1,1]")
    assert (code, "did you mean volume.spacing_mm?" in output) == (2, True)
    assert time.monotonic() - began < 15  # 1 s on an idle machine


def test_a_folder_with_files_of_something_else_is_left_alone(hospital, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "run" / "prepared"
    folder.mkdir(parents=True)
    (folder / "thesis.txt").touch()
    with pytest.raises(ConfigError, match="holds files of something else"):
        main(arguments(hospital))
    assert [p.name for p in folder.iterdir() if p.is_file()] == ["thesis.txt"]


def test_a_second_job_in_the_same_folder_is_told_who_is_there(hospital, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "run" / "prepared"
    folder.mkdir(parents=True)
    with folder_lock(folder), pytest.raises(IntegrityError, match=f"in use by process {os.getpid()} on "):
        main(arguments(hospital))


def test_a_subject_in_two_splits_stops_the_run(hospital, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_studies(tmp_path, 2).with_columns(subject_id=7).with_columns(
        split=pl.Series(["train", "held_out"])
    ).write_parquet(tmp_path / "studies.parquet")
    with pytest.raises(LeakageError, match="1 subjects are in two splits"):
        main([*arguments(hospital), f"input.studies={tmp_path}/studies.parquet"])


# --- bad studies


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """A hospital with a canary in every place that may name a patient, and six studies that must be refused."""
    folder = tmp_path_factory.mktemp(f"damaged-{CANARY}")
    studies = write_hospital(folder, 30)
    (folder / "run.yaml").write_text("name: run\n")
    (folder / "salt").write_bytes(SALT)
    images = folder / "images"
    cut = images / f"{CANARY}.nii.gz"
    (images / "00.nii.gz").rename(cut)
    cut.write_bytes(cut.read_bytes()[:-8])
    shutil.rmtree(images / "02")
    write_dicom(images / "02", chest(2), patient=CANARY)
    (images / "02" / "005.dcm").unlink()
    shutil.rmtree(images / "07")
    write_dicom(images / f"{CANARY} 07", chest(7), patient=CANARY)  # good, and its header is full of names
    shutil.copy(images / "10.nii.gz", images / "15.nii.gz")  # both in train
    (images / "03.nii.gz").write_text(CANARY)
    image = {
        "ct-00": f"images/{CANARY}.nii.gz", "ct-07": f"images/{CANARY} 07", "ct-04": f"../{CANARY}.nii.gz",
        "ct-05": f"images/{CANARY}-absent.nii.gz",
    }  # fmt: skip
    studies = studies.with_columns(
        image=pl.col("study_id").replace_strict(image, default=pl.col("image")),
        study_id="study " + pl.lit(CANARY) + pl.col("study_id"),
        study_time=pl.when(pl.col("study_id") != "ct-06").then("study_time"),
    )
    studies.write_parquet(folder / "studies.parquet")
    return folder


@pytest.fixture(scope="module")
def quarantined(damaged, tmp_path_factory):
    code, output, prepared = run(tmp_path_factory.mktemp("quarantined"), damaged)
    assert code == 0, output
    return output, prepared


@pytest.mark.slow
def test_bad_studies_are_recorded_with_their_reason_and_the_others_go_on(quarantined):
    _, prepared = quarantined
    table = pl.read_parquet(prepared / "quarantine.parquet")
    found = {row["study_id"][-2:]: (row["stage"], row["code"]) for row in table.iter_rows(named=True)}
    assert found.pop("03")[1] in ("NOT_NIFTI", "UNREADABLE", "CRC", "TRUNCATED")
    assert found == {
        "00": ("volumes", "TRUNCATED"),
        "02": ("volumes", "MISSING_SLICE"),
        "04": ("volumes", "OUTSIDE_ROOT"),
        "05": ("volumes", "NOT_FOUND"),
        "06": ("table", "BAD_ROW"),
    }
    assert pl.read_parquet(prepared / "volumes.parquet").height == 24
    summary = json.loads((prepared / "summary.json").read_text())
    assert summary["quarantine"]["MISSING_SLICE"] == 1
    assert summary["studies"]["refused_rows"] == 1


@pytest.mark.slow
def test_the_same_content_under_two_ids_is_flagged_on_both(quarantined):
    volumes = pl.read_parquet(quarantined[1] / "volumes.parquet")
    flagged = volumes.filter(pl.col("flags").list.contains("DUPLICATE_CONTENT"))
    assert [study_id[-2:] for study_id in flagged["study_id"]] == ["10", "15"]
    assert flagged["path"].n_unique() == 1


@pytest.mark.slow
def test_no_name_of_a_patient_is_printed_or_copied_from_headers(quarantined):
    output, prepared = quarantined
    assert "ready: train 14" in output
    assert CANARY not in output
    # raw study ids are allowed in here; what stands in image paths and in DICOM headers is not
    allowed = {"keys", "labels", "covariates", "phenotypes", "volumes", "acquisition_times", "quarantine"}
    for path in prepared.rglob("*"):
        # config.yaml holds the input paths as the user gave them
        if path.is_file() and path.stem not in allowed | {"config"}:
            assert CANARY.encode() not in path.read_bytes(), path.name
    for name in allowed:
        table = pl.read_parquet(prepared / f"{name}.parquet").drop("study_id")
        assert CANARY not in table.write_json(), name


@pytest.mark.slow
def test_too_many_bad_studies_exit_3_and_stay_listed(hospital, tmp_path):
    broken = shutil.copytree(hospital, tmp_path / "broken")
    for path in (broken / "images").glob("*.nii.gz"):
        path.write_bytes(path.read_bytes()[:100])
    code, output, prepared = run(tmp_path, broken)
    assert code == 3
    assert "8 of 15 studies are bad, at most 7.5 may be: TRUNCATED 8" in output
    assert pl.read_parquet(prepared / "quarantine.parquet").height == 8
    assert not (prepared / "manifest.json").exists()
