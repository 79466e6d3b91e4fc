"""Forty-odd canaries in headers, file names, paths, ids and records: none leaves prepared/, whatever is run.

Every file outside the protected folder is searched as it lies on disk and decoded (parquet values and schema metadata,
members of zip archives, text in PNG), and so is everything that is printed, also by runs that fail.
"""

import gzip
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import nibabel
import polars as pl
import pyarrow.parquet as parquet
import pydicom
import pytest
from pydicom.uid import PYDICOM_ROOT_UID

from data.testing import settings, write_hospital

pytestmark = pytest.mark.slow

TEXT_TAGS = (
    "PatientName", "PatientID", "AccessionNumber", "InstitutionName", "InstitutionAddress", "ReferringPhysicianName",
    "OperatorsName", "PatientAddress", "PatientTelephoneNumbers", "OtherPatientIDs", "StudyID", "StudyDescription",
    "SeriesDescription", "ProtocolName", "PatientComments", "ImageComments", "StationName", "DeviceSerialNumber",
    "RequestedProcedureDescription", "PerformedProcedureStepDescription", "AdditionalPatientHistory", "EthnicGroup",
    "Occupation", "MedicalRecordLocator", "Manufacturer", "ManufacturerModelName", "ConvolutionKernel",
    "ContrastBolusAgent",
)  # fmt: skip
UID_TAGS = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SOPInstanceUID")
NIFTI_FIELDS = ("descrip", "aux_file", "db_name", "intent_name")
FIRST_SUBJECT = 7_731_040_817  # subject ids are canaries themselves
PHENOTYPES = """
phenotypes:
  finding: {codes: [TEST/A], horizons_days: [180]}
  other: {codes: [TEST/B], horizons_days: [180]}
"""
CONFIG = """
name: run
model: {encoder: resnet18, head_dim: 4}
train: {epochs: 1, batch_size: 8, precision: fp32}
eval: {bootstraps: 100, precision: fp32, horizons_days: [180]}
"""


class Canaries:
    """Names each place once and remembers what stands there."""

    def __init__(self):
        self.placed: dict[str, bytes] = {}

    @property
    def common(self) -> set[bytes]:
        """A few strings of which every canary contains one."""
        upper = {canary[2:] for place, canary in self.placed.items() if place.endswith("as bytes")}
        return {b"canary", b"7731040", b"19310418", b"1931-04-18"} | upper

    def text(self, place: str) -> str:
        return self._place(place, f"Qx{len(self.placed):02d}Canary")

    def uid(self, place: str) -> str:
        return self._place(place, f"{PYDICOM_ROOT_UID}77310408{len(self.placed):02d}")

    def number(self, place: str, value: int) -> int:
        self.placed[f"{place} as bytes"] = value.to_bytes(8, "little")
        self._place(place, str(value))
        return value

    def _place(self, place: str, canary: str) -> str:
        self.placed[place] = canary.encode()
        return canary


def plant_dicom(folder: Path, canaries: Canaries) -> None:
    tags = {tag: canaries.text(tag) for tag in TEXT_TAGS} | {tag: canaries.uid(tag) for tag in UID_TAGS}
    private = canaries.text("private tag")
    birth = canaries._place("PatientBirthDate", "19310418")
    canaries._place("AcquisitionDate", "1931-04-18")
    for number, path in enumerate(sorted(folder.iterdir())):
        data = pydicom.dcmread(path)
        for tag, value in tags.items():
            setattr(data, tag, f"{value}.{number}" if tag == "SOPInstanceUID" else value)
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
        data.PatientBirthDate = data.AcquisitionDate = birth
        data.private_block(0x0033, "CREATOR", create=True).add_new(0x01, "LO", private)
        data.save_as(path)
    folder.rename(folder.with_name(canaries.text("folder of a series")))


def plant_nifti(path: Path, canaries: Canaries) -> None:
    image = nibabel.load(path)
    for field in NIFTI_FIELDS:
        image.header[field] = canaries.text(f"NIfTI {field}")
    nibabel.save(image, path)
    named = canaries.text("file name of a NIfTI")
    path.rename(path.with_name(f"{named}.nii.gz"))


def plant_records(ehr: Path, canaries: Canaries) -> None:
    """A note in every shard's text_value, and a code that one patient alone has, with a name in it."""
    for shard in (ehr / "data").rglob("*.parquet"):
        events = pl.read_parquet(shard)
        events = events.with_columns(
            subject_id=pl.col("subject_id") + FIRST_SUBJECT, text_value=pl.lit(canaries.text(f"text of {shard.name}"))
        )
        rare = canaries.text(f"rare code of {shard.name}")
        events = events.with_columns(
            code=pl.when(pl.int_range(pl.len()) == 5).then(pl.lit(f"LOCAL/seen by {rare}")).otherwise("code")
        )
        events.write_parquet(shard)
    splits = ehr / "metadata" / "subject_splits.parquet"
    pl.read_parquet(splits).with_columns(pl.col("subject_id") + FIRST_SUBJECT).write_parquet(splits)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    canaries = Canaries()
    archive = tmp_path_factory.mktemp("archive") / canaries.text("folder of the archive")
    studies = write_hospital(archive, 30)
    images = archive / "images"
    named = {image: image for image in studies["image"]}
    before = set(images.iterdir())
    plant_dicom(images / "02", canaries)
    plant_nifti(images / "05.nii.gz", canaries)
    new = {path.is_dir(): path.name for path in set(images.iterdir()) - before}
    named |= {"images/02": f"images/{new[True]}", "images/05.nii.gz": f"images/{new[False]}"}
    cut = images / f"{canaries.text('name of a damaged file')}.nii.gz"
    (images / "06.nii.gz").rename(cut)
    cut.write_bytes(cut.read_bytes()[:-30])
    named["images/06.nii.gz"] = f"images/{cut.name}"
    for subject in studies["subject_id"]:
        canaries.number(f"subject {subject}", subject + FIRST_SUBJECT)
    study, site = canaries.text("study id"), canaries.text("column of the study table")
    studies.with_columns(
        study_id=pl.concat_str(pl.lit(study), pl.col("study_id")),
        subject_id=pl.col("subject_id") + FIRST_SUBJECT,
        image=pl.col("image").replace_strict(named),
        site=pl.lit(site),
    ).write_parquet(archive / "studies.parquet")
    plant_records(archive / "ehr", canaries)
    return archive, canaries


@pytest.fixture(scope="module")
def outcome(planted, tmp_path_factory, repository):
    """(root of the run, everything printed) after prepare, pretrain, eval, embed, doctor, and an eval that fails."""
    archive, _ = planted
    where = tmp_path_factory.mktemp("where")
    (where / "phenotypes.yaml").write_text(PHENOTYPES)
    options = settings(archive, f"ehr.phenotypes={where}/phenotypes.yaml", f"paths.root={where}")
    (where / "run.yaml").write_text(CONFIG)
    printed = []

    def run(expected: int, *command) -> None:
        done = subprocess.run(
            [sys.executable, *map(str, command)],
            cwd=where, env=os.environ | {"PYTHONPATH": str(repository)}, capture_output=True, timeout=300,
        )  # fmt: skip
        printed.append(done.stdout + done.stderr)
        assert done.returncode == expected, (done.stdout + done.stderr).decode()[-3000:]

    def command_line(expected: int, *arguments) -> None:
        run(expected, "-c", "from ttepretrain.commands.main import main; main()", *arguments)

    root = where / "run"
    run(0, "-m", "jobs.prepare", where / "run.yaml", "--plan", "--json", where / "plan.json", *options)
    for job in ("prepare", "pretrain", "evaluation"):
        run(0, "-m", f"jobs.{job}", where / "run.yaml", *options)
    (where / "plan.json").rename(root / "plan.json")
    table = where / "scans.csv"
    rows = pl.read_parquet(archive / "studies.parquet")["image"].to_list()
    table.write_text("key,image\n" + "".join(f"k{n},{archive / image}\n" for n, image in enumerate(rows)))
    command_line(0, "embed", root / "pretrain" / "tte" / "export", table, "-o", root / "embeddings.parquet")
    command_line(0, "doctor", archive / "images", "--preset", "small", "--json", root / "doctor.json",
                 "--montage", root / "montage.png")  # fmt: skip
    victim = next((root / "prepared" / "volumes").iterdir())
    victim.write_bytes(victim.read_bytes()[:-5])
    (root / "eval" / "embeddings.parquet").rename(root / "eval" / "first.parquet")
    run(4, "-m", "jobs.evaluation", where / "run.yaml", *options)
    return root, b"".join(printed)


def decoded(path: Path) -> bytes:
    """Everything that can be read out of a file, after its plain bytes."""
    data = path.read_bytes()
    if path.suffix == ".parquet":
        table = parquet.read_table(path)
        data += json.dumps(table.to_pylist(), default=str).encode() + str(table.schema.metadata).encode()
    elif path.suffix == ".png":
        from PIL import Image

        with Image.open(path) as image:
            data += str(image.info).encode()
    elif path.suffix == ".gz":
        data += gzip.decompress(data)
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if member.compress_type != zipfile.ZIP_STORED]
            data += b"".join(archive.read(member) for member in members)
    return data


def found(data: bytes, canaries: Canaries) -> list[str]:
    lower = data.lower()
    if not any(part in lower for part in canaries.common):  # a hundred searches of a checkpoint take a minute
        return []
    return [place for place, canary in canaries.placed.items() if canary.lower() in lower]


def test_no_output_outside_prepared_holds_a_canary(outcome, planted):
    root, _ = outcome
    outside = [path for path in root.rglob("*") if path.is_file() and "prepared" not in path.relative_to(root).parts]
    names = {path.name for path in outside}
    expected = {"config.yaml", "metrics.jsonl", "subjects.parquet", "model.safetensors", "embeddings.parquet",
                "predictions.parquet", "report.html", "doctor.json", "montage.png", "plan.json",
                "quarantine.parquet"}  # fmt: skip
    assert expected <= names
    leaks = {str(path.relative_to(root)): places for path in outside if (places := found(decoded(path), planted[1]))}
    assert not leaks


def test_nothing_that_is_printed_holds_a_canary(outcome, planted):
    assert b"report:" in outcome[1]
    assert b"does not match its checksum" in outcome[1]  # the failing run's message is among them
    assert found(outcome[1], planted[1]) == []


def test_the_search_finds_what_is_there(outcome, planted):
    """In prepared/, which may hold ids: the same search sees study ids and subjects."""
    root, canaries = outcome[0], planted[1]
    assert len([place for place in canaries.placed if "as bytes" not in place and "subject" not in place]) >= 40
    seen = found(decoded(root / "prepared" / "labels.parquet"), canaries)
    assert {"study id", "subject 101", "subject 101 as bytes"} <= set(seen)
    assert all(any(part in canary.lower() for part in canaries.common) for canary in canaries.placed.values())
    everywhere = {place for path in (root / "prepared").rglob("*.*") for place in found(decoded(path), canaries)}
    headers = {*TEXT_TAGS, *UID_TAGS, "PatientBirthDate", "private tag", *(f"NIfTI {field}" for field in NIFTI_FIELDS)}
    assert not everywhere & headers
    assert not [place for place in everywhere if place.startswith("text of")]
