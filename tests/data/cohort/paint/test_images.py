"""What is written is what was rendered, read back by the library's own readers and by pydicom and nibabel."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

import nibabel
import numpy as np
import pydicom
import pytest

from data.cohort.exam import BIOMARKERS
from data.cohort.paint.images import Identity, write_image
from data.cohort.paint.patient import draw_patient
from data.cohort.paint.scanner import ORIENTATIONS, SYNTAXES, Acquisition, damaged_kind, draw_acquisition, expose
from ttepretrain.errors import BadStudy
from ttepretrain.volume.preprocess import read_ct

IDENTITY = Identity("ct12345", 10_000_021, True, 61.4, datetime(2015, 3, 4, 16, 5, 6, 789))
SHAPE = (13, 40, 44)


def acquisition_for(storage: str, tilt: float = 0.0, **changes) -> Acquisition:
    rng = np.random.default_rng(2)
    patient = draw_patient(rng, np.full(len(BIOMARKERS), 0.5), female=True)
    drawn = draw_acquisition(rng, patient)
    angle = np.deg2rad(tilt)
    affine = np.eye(4)
    affine[:3, :3] = [[0, 0, -3.5], [0, -3.0 * np.cos(angle), 0], [5.0, 3.0 * np.sin(angle), 0]]
    affine[:3, 3] = (71.5, 55.25, -30.0)
    changes = {"slope": 1.0, "intercept": 0.0, "signed": True} | changes
    return replace(
        drawn, storage=storage, shape_DHW=SHAPE, affine=affine, spacing_mm=(5.0, 3.0, 3.5), tilt_degrees=tilt, **changes
    )


def some_hu(step: int = 1) -> np.ndarray:
    """A soft-edged cylinder in air, unlike along every axis, in multiples of `step`."""
    d, h, w = np.indices(SHAPE)
    inside = ((h - 18) / 14.0) ** 2 + ((w - 20) / 16.0) ** 2 < 1
    hu = np.where(inside, -800 + 70 * d + 9 * h - 5 * w, -1000) + np.random.default_rng(0).integers(-20, 20, SHAPE)
    return (hu // step * step).astype(np.int16)


@pytest.mark.parametrize("storage", sorted(set(SYNTAXES)))
@pytest.mark.parametrize(("signed", "slope", "intercept"), [(True, 1.0, 0.0), (False, 2.0, -1024.0)])
def test_dicom_returns_the_same_hu_at_the_same_place(tmp_path, storage, signed, slope, intercept):
    acquisition = acquisition_for(storage, slope=slope, intercept=intercept, signed=signed)
    hu_DHW = some_hu(int(slope))
    name = write_image(tmp_path, hu_DHW, acquisition, IDENTITY, None)
    image = read_ct(tmp_path / name)
    np.testing.assert_array_equal(image.hu_DHW, hu_DHW)
    np.testing.assert_allclose(image.affine, acquisition.affine, atol=1e-4)


@pytest.mark.parametrize("storage", ORIENTATIONS)
def test_nifti_returns_the_same_hu_at_the_same_place(tmp_path, storage):
    acquisition = acquisition_for(storage)
    hu_DHW = some_hu()
    name = write_image(tmp_path, hu_DHW, acquisition, IDENTITY, None)
    written = nibabel.load(tmp_path / name)
    assert "".join(nibabel.aff2axcodes(written.affine)) == storage
    index = (7, 11, 30)
    elsewhere = np.linalg.inv(written.affine) @ acquisition.affine @ (*index, 1)
    assert written.dataobj[tuple(np.rint(elsewhere[:3]).astype(int))] == hu_DHW[index]
    image = read_ct(tmp_path / name)
    elsewhere = np.linalg.inv(image.affine) @ acquisition.affine @ (*index, 1)
    assert image.hu_DHW[tuple(np.rint(elsewhere[:3]).astype(int))] == hu_DHW[index]


def test_a_tilted_series_carries_its_shear(tmp_path):
    acquisition = acquisition_for("explicit", tilt=9.0)
    name = write_image(tmp_path, some_hu(), acquisition, IDENTITY, None)
    np.testing.assert_allclose(read_ct(tmp_path / name).affine, acquisition.affine, atol=1e-4)


def test_headers_are_complete_and_uids_valid_and_reproducible(tmp_path):
    acquisition = acquisition_for("rle")
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        write_image(folder, some_hu(), acquisition, IDENTITY, None)
    first, second = (sorted((folder / IDENTITY.study_id).iterdir()) for folder in folders)
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in first]
    assert len({header.SOPInstanceUID for header in headers}) == SHAPE[0]
    for header in headers:
        assert all(uid.is_valid for uid in (header.SOPInstanceUID, header.SeriesInstanceUID, header.StudyInstanceUID))
        assert header.Modality == "CT"
        assert header.AcquisitionDateTime == "20150304160506.000789"
        assert header.PatientID == "SYN10000021"


@pytest.mark.parametrize(("order", "reason"), [(0, "TRUNCATED"), (1, "MISSING_SLICE"), (2, "CONSTANT")])
def test_spoilt_images_are_refused_for_their_own_reason(tmp_path, order, reason):
    for storage in ("jpegls", "RAS"):
        kind, acquisition = damaged_kind(acquisition_for(storage), order)
        name = write_image(tmp_path, some_hu(), acquisition, replace(IDENTITY, study_id=f"ct-{storage}"), kind)
        with pytest.raises(BadStudy, match=reason):
            read_ct(tmp_path / name)


def test_exposure_keeps_mean_hu_and_adds_the_stated_noise():
    acquisition = replace(acquisition_for("RAS"), sharp=True, noise_hu=10.0, scanner=2)
    flat = np.full((30, 50, 60), 40.0, np.float32)
    exposed = expose(flat, acquisition, np.random.default_rng(3))
    assert exposed.dtype == np.int16
    assert exposed.mean() == pytest.approx(40, abs=0.5)
    assert exposed.std() == pytest.approx(15, rel=0.1)
