"""One CT series out of a DICOM folder: the ways in which usual readers go wrong unnoticed, and hostile files."""

import logging
import math
import os
import shutil
import warnings

import gdcm
import numpy as np
import pydicom
import pytest
from pydicom.uid import (
    EnhancedCTImageStorage,
    ImplicitVRLittleEndian,
    MRImageStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from ttepretrain.errors import BadStudy
from ttepretrain.volume.checks import Flag, Reason
from ttepretrain.volume.dicom.reader import read_dicom
from ttepretrain.volume.preprocess import preprocess_ct, read_ct
from ttepretrain.volume.source import source_hash
from ttepretrain.volume.spec import LUNG, VolumeSpec


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "scan"


def reason_of(path) -> Reason:
    with pytest.raises(BadStudy) as refusal:
        read_ct(path)
    return refusal.value.code


def edit_files(files, edit):
    for d, file in enumerate(files):
        dataset = pydicom.dcmread(file)
        edit(d, dataset)
        dataset.save_as(file, enforce_file_format=True)


def shift(dataset, mm):
    x, y, z = dataset.ImagePositionPatient
    dataset.ImagePositionPatient = [x, y, z + mm]


# -- the twelve series ------------------------------------------------------------------------------------------------


def test_a_normal_series_is_read_as_written(folder, chest, write_series):
    write_series(folder, *chest)
    image = read_dicom(folder)
    np.testing.assert_array_equal(image.hu_DHW, chest[0])
    assert image.hu_DHW.dtype == np.int16
    np.testing.assert_allclose(image.affine, chest[1], atol=1e-6)
    assert image.flags == ()


# B11
@pytest.mark.parametrize("number", ["reversed", "constant", "missing"])
def test_instance_numbers_do_not_matter(folder, chest, write_series, number):
    def renumber(d, dataset):
        dataset.InstanceNumber = {"reversed": 100 - d, "constant": 1, "missing": None}[number]

    write_series(folder, *chest, edit=renumber)
    np.testing.assert_array_equal(read_dicom(folder).hu_DHW, chest[0])


def test_slices_are_ordered_along_the_normal_whatever_the_direction(folder, chest, geometry, write_series):
    """A coronal series, and an axial one written from head to feet, lie where their affines say."""
    hu_DHW, affine = chest
    turned = affine.copy()
    turned[:3] = geometry.rotation(90, 0, 0) @ affine[:3]
    write_series(folder, hu_DHW, turned)
    image = read_dicom(folder)
    for index in ((0, 0, 0), (3, 7, 11)):
        same = np.rint(np.linalg.inv(image.affine) @ turned @ [*index, 1]).astype(int)[:3]
        assert image.hu_DHW[tuple(same)] == hu_DHW[index]


# B7
def test_a_missing_slice_is_refused(folder, chest, write_series):
    write_series(folder, *chest)[5].unlink()
    assert reason_of(folder) == Reason.MISSING_SLICE


@pytest.mark.parametrize("gone", [(4, 5), (2, 8), (1,), (10,), (3, 5, 7)])
def test_more_and_other_missing_slices_are_refused(folder, chest, write_series, gone, geometry):
    shape = (12, 30, 40)
    files = write_series(folder, chest[0], geometry.dicom_affine(shape, (2.5, 5.5, 5.0)))
    for d in gone:
        files[d].unlink()
    assert reason_of(folder) == Reason.MISSING_SLICE


def test_a_missing_end_is_not_seen_and_not_claimed(folder, chest, write_series):
    for file in write_series(folder, *chest)[-2:]:
        file.unlink()
    np.testing.assert_array_equal(read_dicom(folder).hu_DHW, chest[0][:-2])


# B8
def test_an_identical_duplicate_is_dropped_and_flagged(folder, chest, write_series):
    files = write_series(folder, *chest)
    shutil.copy(files[4], folder / "copy.dcm")
    image = read_dicom(folder)
    np.testing.assert_array_equal(image.hu_DHW, chest[0])
    assert image.flags == (Flag.DUPLICATE_DROPPED,)


# B8
def test_two_pictures_at_one_position_are_refused(folder, chest, write_series):
    files = write_series(folder, *chest)
    shutil.copy(files[4], folder / "copy.dcm")
    edit_files([folder / "copy.dcm"], lambda _, ds: setattr(ds, "PixelData", ds.PixelData[:-2] + b"\7\7"))
    assert reason_of(folder) == Reason.DUPLICATE_SLICE


# B9
def test_spacing_in_runs_is_resampled_onto_an_even_grid(folder, geometry, write_series):
    """2 mm steps, then 4 mm steps, of a volume that is linear along the slices: interpolation is exact."""
    z_mm = np.array([0, 2, 4, 6, 8, 10, 14, 18, 22, 26.0])
    hu_DHW = np.broadcast_to((z_mm * 10 - 1000)[:, None, None], (10, 12, 14)).astype(np.int16).copy()
    hu_DHW[:, 4:8, 4:9] = 50
    affine = geometry.dicom_affine((10, 12, 14), (2.0, 5.5, 5.0))
    write_series(folder, hu_DHW, affine, edit=lambda d, ds: shift(ds, z_mm[d] - 2.0 * d))
    image = read_ct(folder)
    assert image.flags == (Flag.UNEVEN_SPACING,)
    assert image.hu_DHW.shape == (14, 12, 14)
    np.testing.assert_allclose(image.hu_DHW[:, 0, 0], np.arange(0, 27, 2) * 10 - 1000, atol=1e-3)
    np.testing.assert_allclose(image.hu_DHW[:, 5, 5], 50, atol=1e-4)
    assert image.spacing_mm[0] == pytest.approx(2.0)


def test_a_step_beyond_ten_millimetres_is_a_hole(folder, chest, write_series):
    write_series(folder, *chest, edit=lambda d, ds: shift(ds, 3.0 * (d > 5)))
    assert reason_of(folder) == Reason.MISSING_SLICE


@pytest.mark.parametrize("step_mm", [0.33, 0.45, 0.625])
def test_positions_rounded_to_tenths_are_even(folder, chest, geometry, write_series, step_mm):
    affine = geometry.dicom_affine((12, 30, 40), (step_mm, 5.5, 5.0))

    def rounded(_, dataset):
        dataset.ImagePositionPatient = [round(float(v), 1) for v in dataset.ImagePositionPatient]

    write_series(folder, chest[0], affine, edit=rounded)
    image = read_dicom(folder)
    assert image.flags == ()
    np.testing.assert_array_equal(image.hu_DHW, chest[0])
    assert image.spacing_mm[0] == pytest.approx(step_mm, abs=0.01)


# B10
@pytest.mark.parametrize("degrees", [-25, -15, 5, 20])
def test_gantry_tilt_is_undone_to_half_a_voxel(folder, geometry, write_series, degrees):
    """A tilted scan of the chest and a straight one give the same volume."""
    shape, spacing = (24, 50, 52), (4.0, 4.0, 4.5)
    spec = VolumeSpec((5.0, 5.0, 5.0), (20, 28, 36), (-1024, 3071), (LUNG,))
    volumes = []
    for name, lean in (("straight", 0.0), ("tilted", math.tan(math.radians(degrees)))):
        affine = geometry.dicom_affine(shape, spacing, lean)
        hu_DHW = np.round(geometry.phantom_hu(geometry.grid_mm(affine, shape))).astype(np.int16)
        write_series(folder / name, hu_DHW, affine)
        volumes.append(preprocess_ct(folder / name, spec))
    straight, tilted = volumes
    assert straight.flags == ()
    assert tilted.flags == (Flag.GANTRY_TILT,)
    # the leaning field of view moves what is covered, and so the centre, but not the anatomy
    middle = (slice(7, 13), slice(4, -4), slice(4, -4))
    errors = [
        np.abs(volume.hu_DHW - geometry.phantom_hu(geometry.grid_mm(volume.affine, spec.shape_DHW)))[middle]
        for volume in volumes
    ]
    shifted = geometry.grid_mm(tilted.affine, spec.shape_DHW) + np.array([0.0, 2.5, 0.0])  # half a voxel
    half_voxel = np.abs(geometry.phantom_hu(shifted) - tilted.hu_DHW)[middle]
    assert errors[1].mean() < 1.3 * errors[0].mean()
    assert errors[1].mean() < 0.7 * half_voxel.mean()


# B12
def test_the_larger_of_two_series_is_read_and_the_other_flagged(folder, chest, write_series):
    hu_DHW, affine = chest
    write_series(folder, hu_DHW[:7] + 1, affine, series=2)
    write_series(folder / "deeper", hu_DHW, affine, series=1)
    image = read_dicom(folder)
    np.testing.assert_array_equal(image.hu_DHW, hu_DHW)
    assert image.flags == (Flag.OTHER_SERIES,)


def test_originals_come_before_reformats_with_more_slices(folder, chest, write_series):
    hu_DHW, affine = chest
    reformat = lambda _, ds: setattr(ds, "ImageType", ["DERIVED", "SECONDARY", "REFORMATTED"])  # noqa: E731
    write_series(folder, hu_DHW, affine, series=2, edit=reformat)
    write_series(folder, hu_DHW[:7], affine, series=1)
    np.testing.assert_array_equal(read_dicom(folder).hu_DHW, hu_DHW[:7])


def test_a_file_stands_for_its_series(folder, chest, write_series):
    """Other series, even of another patient, and files that are no image do not disturb it."""
    hu_DHW, affine = chest
    files = write_series(folder, hu_DHW[:7], affine, series=1)
    write_series(folder, hu_DHW, affine, series=2, edit=lambda _, ds: setattr(ds, "PatientID", "another"))
    (folder / "notes.txt").write_text("nothing")
    np.testing.assert_array_equal(read_dicom(files[2]).hu_DHW, hu_DHW[:7])
    assert reason_of(folder / "notes.txt") == Reason.NOT_DICOM


# B14
def test_slope_and_sign_may_differ_from_slice_to_slice(folder, chest, write_series):
    hu_DHW, affine = chest

    def store(d, dataset):
        if d % 3 == 1:
            dataset.RescaleSlope, dataset.RescaleIntercept = 2, -2048
            dataset.PixelData = ((hu_DHW[d].astype(int) + 2048) // 2).astype(np.uint16).tobytes()
        if d % 3 == 2:
            dataset.PixelRepresentation, dataset.RescaleIntercept = 1, 0
            dataset.PixelData = hu_DHW[d].astype(np.int16).tobytes()

    write_series(folder, hu_DHW, affine, edit=store)
    expected = hu_DHW.copy()
    expected[1::3] -= expected[1::3] % 2
    np.testing.assert_array_equal(read_dicom(folder).hu_DHW, expected)


def test_a_fractional_slope_gives_fractional_hu(folder, chest, write_series):
    write_series(folder, *chest, edit=lambda _, ds: setattr(ds, "RescaleSlope", "0.5"))
    hu_DHW = read_dicom(folder).hu_DHW
    assert hu_DHW.dtype == np.float32
    np.testing.assert_allclose(hu_DHW, (chest[0] + 1024.0) * 0.5 - 1024)


# B12
def test_a_localizer_in_the_series_is_dropped_and_flagged(folder, chest, write_series):
    hu_DHW, affine = chest

    def localizer(_, dataset):
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        dataset.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]

    write_series(folder, hu_DHW, affine)
    scout = write_series(folder / "scout", hu_DHW[:1], affine, edit=localizer)
    image = read_dicom(folder)
    np.testing.assert_array_equal(image.hu_DHW, hu_DHW)
    assert image.flags == (Flag.IMAGES_SKIPPED,)
    assert reason_of(scout[0].parent) == Reason.LOCALIZER


# B12
@pytest.mark.parametrize("what", ["rows", "spacing", "orientation", "sideways"])
def test_slices_that_do_not_fit_together_are_refused(folder, chest, write_series, what):
    def misfit(d, dataset):
        if d != 6:
            return
        if what == "rows":
            dataset.Rows, dataset.PixelData = 15, dataset.PixelData[: 15 * 40 * 2]
        elif what == "spacing":
            dataset.PixelSpacing = [5.5, 6.0]
        elif what == "orientation":
            dataset.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
        else:
            x, y, z = dataset.ImagePositionPatient
            dataset.ImagePositionPatient = [x + 20, y, z]

    write_series(folder, *chest, edit=misfit)
    assert reason_of(folder) == Reason.MIXED_GEOMETRY


# B13
@pytest.mark.parametrize("keyword", ["PatientID", "StudyInstanceUID"])
def test_two_identities_in_one_series_are_refused(folder, chest, write_series, keyword):
    write_series(folder, *chest, edit=lambda d, ds: d == 3 and setattr(ds, keyword, "1.2.3.4"))
    assert reason_of(folder) == Reason.IDENTITY_CONFLICT


# B13
def test_two_patients_in_one_folder_are_refused(folder, chest, write_series):
    write_series(folder, *chest)
    write_series(folder, *chest, series=2, edit=lambda _, ds: setattr(ds, "PatientID", "another"))
    assert reason_of(folder) == Reason.IDENTITY_CONFLICT


# A11
def test_two_slices_are_too_few(folder, chest, write_series):
    write_series(folder, chest[0][5:7], chest[1])
    assert reason_of(folder) == Reason.TOO_FEW_SLICES


# -- values -----------------------------------------------------------------------------------------------------------


# B14
def test_unused_bits_are_cleared_and_padding_becomes_air(folder, chest, write_series):
    hu_DHW, affine = chest

    def store(d, dataset):
        dataset.BitsStored, dataset.HighBit = 12, 11
        stored = (np.clip(hu_DHW[d], -1024, 3071).astype(int) + 1024).astype(np.uint16)
        stored[:2] = 4000
        dataset.PixelPaddingValue = 4000
        dataset.PixelData = (stored | 0xA000).tobytes()

    write_series(folder, hu_DHW, affine, edit=store)
    image = read_dicom(folder)
    assert (image.hu_DHW[:, :2] == -1024).all()
    np.testing.assert_array_equal(image.hu_DHW[:, 2:], hu_DHW[:, 2:])


# B14
@pytest.mark.parametrize("written", [-2000, 65536 - 2000])
def test_signed_padding_below_air(folder, chest, write_series, written):
    hu_DHW, affine = chest

    def store(d, dataset):
        stored = hu_DHW[d].astype(np.int16)
        stored[:, :3] = -2000
        dataset.PixelRepresentation, dataset.RescaleIntercept = 1, 0
        dataset.PixelData = stored.tobytes()
        dataset.add_new("PixelPaddingValue", "SS" if written < 0 else "US", written)

    write_series(folder, hu_DHW, affine, edit=store)
    image = read_dicom(folder)
    assert (image.hu_DHW[:, :, :3] == -1024).all()
    np.testing.assert_array_equal(image.hu_DHW[:, :, 3:], hu_DHW[:, :, 3:])


# B1 (Rows, NumberOfFrames), B6, B16
@pytest.mark.parametrize(
    ("keyword", "value", "reason"),
    [
        ("RescaleSlope", "nan", Reason.BAD_SCALING),
        ("RescaleSlope", "1e400", Reason.BAD_SCALING),
        ("RescaleSlope", "", Reason.BAD_SCALING),
        ("RescaleSlope", "0", Reason.BAD_SCALING),
        ("RescaleIntercept", None, Reason.BAD_SCALING),
        ("RescaleType", "MGML", Reason.NOT_HU),
        ("PixelSpacing", ["0", "0"], Reason.BAD_SPACING),
        ("PixelSpacing", ["nan", "1"], Reason.BAD_SPACING),
        ("PixelSpacing", ["1"], Reason.BAD_SPACING),
        ("PixelSpacing", None, Reason.BAD_SPACING),
        ("PixelSpacing", ["0.01", "0.01"], Reason.BAD_SPACING),
        ("PixelSpacing", ["50", "50"], Reason.BAD_SPACING),
        ("ImageOrientationPatient", ["1", "0", "0", "1", "0", "0"], Reason.BAD_AFFINE),
        ("ImageOrientationPatient", None, Reason.BAD_AFFINE),
        ("ImagePositionPatient", ["nan", "0", "0"], Reason.BAD_AFFINE),
        ("Rows", 65535, Reason.BAD_SHAPE),
        ("NumberOfFrames", "2147483647", Reason.UNSUPPORTED_MULTIFRAME),
        ("NumberOfFrames", "-3", Reason.UNSUPPORTED_MULTIFRAME),
        ("SOPClassUID", EnhancedCTImageStorage, Reason.UNSUPPORTED_MULTIFRAME),
        ("SOPClassUID", SecondaryCaptureImageStorage, Reason.NOT_CT),
        ("Modality", "MR", Reason.NOT_CT),
        ("PhotometricInterpretation", "MONOCHROME1", Reason.NOT_CT),
        ("SamplesPerPixel", 3, Reason.NOT_CT),
        ("BitsAllocated", 8, Reason.NOT_CT),
        ("BurnedInAnnotation", "YES", Reason.BURNED_IN),
        ("ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"], Reason.LOCALIZER),
        ("HighBit", 14, Reason.UNREADABLE),
    ],
)
def test_a_header_that_makes_no_ct_is_refused(folder, chest, write_series, keyword, value, reason):
    def edit(_, dataset):
        if value is None:
            delattr(dataset, keyword)
        elif isinstance(value, str | list) and keyword != "ImageType" and "UID" not in keyword:
            vr = pydicom.datadict.dictionary_VR(keyword)
            dataset._dict[pydicom.tag.Tag(keyword)] = raw_element(keyword, vr, value)
        else:
            setattr(dataset, keyword, value)

    write_series(folder, *chest, edit=edit)
    assert reason_of(folder) == reason


@pytest.mark.parametrize("keyword", ["ConvolutionKernel", "ImageType"])
def test_a_number_where_text_belongs_is_no_crash(folder, chest, write_series, keyword):
    """One flipped byte of an element's type makes a tag of its value."""

    def edit(_, dataset):
        dataset._dict[pydicom.tag.Tag(keyword)] = raw_element(keyword, "AT", "B30f")

    write_series(folder, *chest, edit=edit)
    np.testing.assert_array_equal(read_ct(folder).hu_DHW, chest[0])


def raw_element(keyword, vr, value):
    """An element with text that pydicom would refuse to set."""
    text = "\\".join(value if isinstance(value, list) else [value]).encode()
    text += b" " * (len(text) % 2)
    tag = pydicom.tag.Tag(keyword)
    return pydicom.dataelem.RawDataElement(tag, vr, len(text), text, 0, False, True, True)


# -- files ------------------------------------------------------------------------------------------------------------


# B4
def test_truncated_pixels_and_headers_are_refused(folder, chest, write_series):
    files = write_series(folder, *chest)
    whole = files[4].read_bytes()
    for keep in (len(whole) - 500, len(whole) - 30 * 40 * 2 - 4, 400, 140):
        files[4].write_bytes(whole[:keep])
        assert reason_of(folder) in (Reason.TRUNCATED, Reason.UNREADABLE), keep


# B4
def test_what_is_no_dicom(folder):
    folder.mkdir()
    assert reason_of(folder) == Reason.NOT_DICOM
    (folder / "empty").write_bytes(b"")
    (folder / "random").write_bytes(np.random.default_rng(0).bytes(5000))
    assert reason_of(folder) == Reason.NOT_DICOM


# B4
def test_a_report_is_no_image(folder, chest, write_series):
    def report(_, dataset):
        dataset.SOPClassUID, dataset.Modality = "1.2.840.10008.5.1.4.1.1.88.11", "SR"
        for keyword in ("Rows", "Columns", "PixelData"):
            delattr(dataset, keyword)

    write_series(folder, chest[0][:1], chest[1], edit=report)
    assert reason_of(folder) == Reason.NOT_IMAGE


@pytest.mark.parametrize(
    "syntax",
    [
        gdcm.TransferSyntax.ImplicitVRLittleEndian,
        gdcm.TransferSyntax.ExplicitVRBigEndian,
        gdcm.TransferSyntax.RLELossless,
        gdcm.TransferSyntax.JPEGLosslessProcess14,
        gdcm.TransferSyntax.JPEGLosslessProcess14_1,
        gdcm.TransferSyntax.JPEGLSLossless,
        gdcm.TransferSyntax.JPEG2000Lossless,
    ],
)
def test_lossless_syntaxes_give_the_same_hu(folder, chest, write_series, recode, syntax):
    """Written by another library's encoders."""
    for file in write_series(folder, *chest):
        recode(file, syntax)
    image = read_dicom(folder)
    np.testing.assert_array_equal(image.hu_DHW, chest[0])
    assert image.flags == ()


def test_a_damaged_compressed_slice_is_refused_in_silence(folder, chest, write_series, capfd):
    files = write_series(folder, *chest)
    for file in files:
        dataset = pydicom.dcmread(file)
        dataset.compress(RLELossless)
        dataset.save_as(file)
    data = files[2].read_bytes()
    files[2].write_bytes(data[:-600])
    assert reason_of(folder) in (Reason.UNREADABLE, Reason.TRUNCATED)
    assert capfd.readouterr() == ("", "")


# B18
def test_nothing_that_names_a_patient_leaves_the_reader(folder, chest, write_series, capfd, caplog):
    """Odd values that pydicom likes to quote, free text in the kept tags, and every refusal above stay silent."""

    def canaries(_, dataset):
        for keyword in ("PatientName", "StudyDescription", "SeriesDescription", "ImageComments", "InstitutionName"):
            setattr(dataset, keyword, "Canary^Name")
        dataset._dict[pydicom.tag.Tag("PatientBirthDate")] = raw_element("PatientBirthDate", "DA", "Canary1970")
        dataset._dict[pydicom.tag.Tag("StudyInstanceUID")] = raw_element("StudyInstanceUID", "UI", "Canary.1")
        dataset._dict[pydicom.tag.Tag("InstanceNumber")] = raw_element("InstanceNumber", "IS", "Canary")
        dataset.Manufacturer, dataset.ConvolutionKernel = "Canary Hospital", "for J. Canary"
        dataset.ContrastBolusAgent = "Canary 370"
        dataset.private_block(0x0099, "CANARY", create=True).add_new(1, "LO", "Canary^Name")
        dataset.add_new((0x6000, 0x3000), "OW", b"Canary" * 100)  # an overlay

    with warnings.catch_warnings(action="ignore"):  # pydicom warns of what it is told to write
        write_series(folder, *chest, edit=canaries)
    caplog.clear()
    with caplog.at_level(logging.DEBUG):
        image = read_dicom(folder)
    seen = repr((image.flags, image.acquisition)) + caplog.text + "".join(capfd.readouterr())
    assert "anary" not in seen
    assert image.acquisition["manufacturer"] == "other"
    assert image.acquisition["kernel"] is None
    assert image.acquisition["contrast"] is True


# A11
def test_an_mr_series_is_no_ct(folder, chest, write_series):
    def mr(_, dataset):
        dataset.SOPClassUID, dataset.Modality, dataset.SeriesInstanceUID = MRImageStorage, "MR", generate_uid()

    write_series(folder, *chest, edit=mr, syntax=ImplicitVRLittleEndian)
    assert reason_of(folder) == Reason.NOT_CT


def test_slices_behind_a_link_that_leads_nowhere_refuse_the_series(folder, chest, write_series):
    """An archive whose files were not all fetched; nine slices of twelve would be a shorter scan without a word."""
    write_series(folder, *chest)
    for file in sorted(folder.iterdir())[-3:]:
        file.unlink()
        file.symlink_to(folder.parent / "not_fetched" / file.name)
    for read in (read_ct, source_hash):
        with pytest.raises(BadStudy, match="NOT_FOUND"):
            read(folder)


def test_slices_in_linked_folders_are_read_once(folder, chest, write_series, tmp_path):
    """Four slices lie elsewhere; a link back to the series itself adds none."""
    write_series(folder, *chest)
    expected = read_ct(folder).hu_DHW
    (tmp_path / "elsewhere").mkdir()
    for file in sorted(folder.iterdir())[-4:]:
        file.rename(tmp_path / "elsewhere" / file.name)
    (folder / "more").symlink_to(tmp_path / "elsewhere")
    (folder / "self").symlink_to(folder)
    np.testing.assert_array_equal(read_ct(folder).hu_DHW, expected)


def test_a_folder_that_cannot_be_listed_refuses_the_series(folder, chest, write_series, monkeypatch):
    """Tests run as root, so the refusal of the operating system is put in its place."""
    write_series(folder, *chest)
    (folder / "closed").mkdir()
    scandir = os.scandir

    def refuse(path):
        if os.fspath(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    for read in (read_ct, source_hash):
        with pytest.raises(BadStudy, match="PERMISSION"):
            read(folder)
