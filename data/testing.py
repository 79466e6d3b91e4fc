"""A hospital in a folder for tests: a few studies as real NIfTI and DICOM files, and a MEDS data set that fits them."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from types import ModuleType

import numpy as np
import polars as pl

START = datetime(2020, 1, 1, 10, 30)
CODES = [f"TEST/{letter}" for letter in "ABCDEFGH"]
SPLIT_PATTERN = ("train", "train", "train", "tuning", "held_out")  # of subject 101, 102, ... in turn


def load_module(path: Path) -> ModuleType:
    """The module in a file of the tests: they are no package, so nothing there can be imported."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def chest(seed: int, shape_DHW: tuple[int, int, int] = (14, 30, 36)) -> np.ndarray:
    """int16 HU: an ellipse of tissue with two lungs, other voxels for every seed."""
    rng = np.random.default_rng(seed)
    d, h, w = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape_DHW), indexing="ij")
    hu_DHW = np.full(shape_DHW, -1000.0)
    hu_DHW[(h / 0.7) ** 2 + (w / 0.9) ** 2 < 1] = 40
    size = 0.25 + 0.1 * rng.random()
    for side in (-0.4, 0.4):
        hu_DHW[(h / 0.4) ** 2 + ((w - side) / size) ** 2 + (d / 0.9) ** 2 < 1] = -850
    return (hu_DHW + rng.normal(0, 10, shape_DHW)).clip(-1024, 3071).astype(np.int16)


def write_nifti(path: Path, hu_DHW: np.ndarray, spacing_mm_DHW: Sequence[float] = (9.0, 8.0, 7.0)) -> None:
    import nibabel

    image = nibabel.Nifti1Image(hu_DHW.transpose(2, 1, 0), np.diag([*reversed(spacing_mm_DHW), 1.0]))
    image.header.set_xyzt_units("mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)


def write_dicom(
    folder: Path, hu_DHW: np.ndarray, spacing_mm_DHW: Sequence[float] = (9.0, 8.0, 8.0), patient: str = "nobody"
) -> None:
    """One file per slice, slices from the feet up; `patient` goes where a name may stand."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    folder.mkdir(parents=True)
    study, series, frame = (generate_uid(entropy_srcs=[str(folder), level]) for level in "abc")
    for index, hu_HW in enumerate(hu_DHW[:, ::-1]):  # rows run from the front to the back
        data = Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = CTImageStorage
        data.SOPInstanceUID = generate_uid(entropy_srcs=[str(folder), str(index)])
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
        data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = study, series, frame
        data.PatientName = data.PatientID = data.AccessionNumber = data.StudyDescription = patient
        data.Modality, data.Manufacturer, data.KVP, data.ConvolutionKernel = "CT", "SIEMENS", "120", "B30f"
        data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        data.InstanceNumber, data.SliceThickness = index + 1, spacing_mm_DHW[0]
        data.Rows, data.Columns = hu_HW.shape
        data.PixelSpacing = list(spacing_mm_DHW[1:])
        data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        data.ImagePositionPatient = [0, 0, index * spacing_mm_DHW[0]]
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
        data.RescaleSlope, data.RescaleIntercept = 1, -1024
        data.PixelData = (hu_HW.astype(np.int16) + 1024).astype("<i2").tobytes()
        data.save_as(folder / f"{index:03d}.dcm", enforce_file_format=True)


def write_studies(folder: Path, num_subjects: int) -> pl.DataFrame:
    """studies.parquet of one study per subject 101, 102, ..., every fifth a DICOM folder, with its images."""
    rows = []
    for n in range(num_subjects):
        image = f"images/{n:02d}" if n % 5 == 2 else f"images/{n:02d}.nii.gz"
        write = write_dicom if n % 5 == 2 else write_nifti
        write(folder / image, chest(n))
        rows.append(
            {
                "study_id": f"ct-{n:02d}",
                "subject_id": 101 + n,
                "study_time": START + timedelta(days=n),
                "image": image,
                "split": SPLIT_PATTERN[n % len(SPLIT_PATTERN)],
                "site": f"site {n % 2}",
            }
        )
    table = pl.DataFrame(rows)
    table.write_parquet(folder / "studies.parquet")
    return table


def write_meds(folder: Path, studies: pl.DataFrame, seed: int = 0) -> None:
    """A MEDS data set in two shards: a birth, history and events after the scan of every study's subject."""
    rng = np.random.default_rng(seed)
    rows = []
    for study in studies.sort("subject_id").iter_rows(named=True):
        subject, t0 = study["subject_id"], study["study_time"]
        rows.append((subject, datetime(1950, 5, 17), "MEDS_BIRTH"))
        times = np.sort(rng.uniform(-300, 700, 24))
        rows += [(subject, t0 + timedelta(days=float(t)), str(rng.choice(CODES))) for t in times]
    events = pl.DataFrame(
        rows, schema={"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String}, orient="row"
    ).with_columns(numeric_value=pl.lit(None, pl.Float32))
    middle = studies["subject_id"].sort()[studies.height // 2]
    for shard, part in enumerate((pl.col("subject_id") < middle, pl.col("subject_id") >= middle)):
        path = folder / "data" / "train" / f"{shard}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        events.filter(part).write_parquet(path)
    metadata = folder / "metadata"
    metadata.mkdir()
    codes = [{"code": code, "description": code.lower(), "parent_codes": ["TEST/ROOT"]} for code in CODES]
    pl.DataFrame(codes).write_parquet(metadata / "codes.parquet")
    (metadata / "dataset.json").write_text(json.dumps({"dataset_name": "test", "meds_version": "0.4.1"}))
    studies.select("subject_id", "split").unique().write_parquet(metadata / "subject_splits.parquet")


def write_hospital(folder: Path, num_subjects: int = 15) -> pl.DataFrame:
    """studies.parquet, images/ and ehr/ in `folder`; the table of studies."""
    folder.mkdir(parents=True, exist_ok=True)
    studies = write_studies(folder, num_subjects)
    write_meds(folder / "ehr", studies)
    return studies


def settings(folder: Path, *more: str) -> list[str]:
    """Arguments of jobs.prepare for such a folder, after the configuration file."""
    return [
        f"input.studies={folder}/studies.parquet",
        f"input.ehr={folder}/ehr",
        "prepare.num_cpus=2",
        "volume.spacing_mm=[14.0,13.0,12.0]",
        "volume.shape_DHW=[12,16,20]",
        "ehr.min_events=2",
        "ehr.min_patients=2",
        *more,
    ]
