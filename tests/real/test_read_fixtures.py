"""Real scans and real dirt, read by the one path. Expected values come from other readers or from the files' makers."""

import shutil
import warnings

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom import Dataset
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MediaStorageDirectoryStorage, generate_uid

from ttepretrain.errors import BadStudy
from ttepretrain.volume.checks import Flag, Reason
from ttepretrain.volume.dicom.frames import Picture
from ttepretrain.volume.dicom.headers import HeaderReader
from ttepretrain.volume.dicom.pixels import read_stack
from ttepretrain.volume.dicom.reader import read_dicom
from ttepretrain.volume.dicom.stack import arrange
from ttepretrain.volume.dicom.tags import slice_header
from ttepretrain.volume.preprocess import preprocess_ct, read_ct
from ttepretrain.volume.spec import PRESETS


def reason_of(path) -> Reason:
    with pytest.raises(BadStudy) as refusal:
        read_ct(path)
    return refusal.value.code


def simpleitk_affine(image) -> np.ndarray:
    """Index D H W -> RAS+ mm of a SimpleITK image."""
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return (np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)[:, [2, 1, 0, 3]]


def test_a_jpeg2000_series_with_empty_uids_equals_simpleitk(fixtures):
    folder = fixtures / "ct_totalseg" / "example_ct_dicom"
    ours = read_ct(folder)
    # by position: without a series UID, SimpleITK's own grouping finds nothing
    files = sorted(folder.iterdir(), key=lambda f: pydicom.dcmread(f, stop_before_pixels=True).ImagePositionPatient[2])
    theirs = SimpleITK.ReadImage([str(file) for file in files])
    np.testing.assert_array_equal(ours.hu_DHW, SimpleITK.GetArrayFromImage(theirs))
    np.testing.assert_allclose(ours.affine, simpleitk_affine(theirs), atol=1e-6)
    assert ours.flags == ()
    assert (ours.acquisition["manufacturer"], ours.acquisition["kvp"]) == ("siemens", 120.0)


def test_a_nifti_equals_nibabel(fixtures):
    path = fixtures / "ct_totalseg" / "example_ct.nii.gz"
    ours, theirs = read_ct(path), nibabel.load(path)
    np.testing.assert_array_equal(ours.hu_DHW, np.asarray(theirs.dataobj).transpose(2, 1, 0))
    np.testing.assert_allclose(ours.affine, theirs.affine[:, [2, 1, 0, 3]])


def test_the_dicom_chest_equals_its_nrrd_twin(fixtures):
    ours = read_ct(fixtures / "ct_cip_lowres" / "ct-64Dicom")
    theirs = SimpleITK.ReadImage(str(fixtures / "ct_cip_lowres" / "ct-64.nrrd"))
    np.testing.assert_array_equal(ours.hu_DHW, SimpleITK.GetArrayFromImage(theirs))
    np.testing.assert_allclose(ours.affine, simpleitk_affine(theirs), atol=2e-3)  # its headers are rounded


def test_bones_lie_behind_and_the_liver_on_the_right(fixtures):
    """The abdomen: spine at the back, liver (the large, even, enhanced organ) on the patient's right."""
    hu_DHW = preprocess_ct(fixtures / "ct_totalseg" / "example_ct_dicom", PRESETS["small"]).hu_DHW
    bone = (hu_DHW > 350)[:, :, 22:34]
    assert bone[:, :24].sum() > 5 * bone[:, 32:].sum()
    organ = (hu_DHW > 70) & (hu_DHW < 160)
    assert organ[:, 18:, 28:].sum() > 1.5 * organ[:, 18:, :28].sum()


def test_an_uneven_tilted_head_is_read_and_flagged(fixtures):
    """Tilt 18.5 degrees, steps of 4 then 7 mm along the normal, padding; the screens beside it are dropped."""
    folder = fixtures / "ct_dcmqa_ge_tilt"
    image = read_ct(folder / "GE")
    assert image.flags == (Flag.UNEVEN_SPACING, Flag.GANTRY_TILT)
    assert image.hu_DHW.min() >= -1024
    normal = np.cross(image.affine[:3, 1], image.affine[:3, 2])
    cosine = normal @ image.affine[:3, 0] / np.linalg.norm(normal) / image.spacing_mm[0]
    assert np.degrees(np.arccos(abs(cosine))) == pytest.approx(18.5, abs=0.01)
    positions = [pydicom.dcmread(f, stop_before_pixels=True).ImagePositionPatient[2] for f in (folder / "GE").iterdir()]
    covered = (image.hu_DHW.shape[0] - 1) * image.affine[2, 0]
    assert covered == pytest.approx(max(positions) - min(positions), abs=image.affine[2, 0])

    with_screens = read_ct(folder)
    np.testing.assert_array_equal(with_screens.hu_DHW, image.hu_DHW)
    assert with_screens.flags == (*image.flags, Flag.IMAGES_SKIPPED)
    assert reason_of(folder / "localizer") == Reason.LOCALIZER
    assert reason_of(folder / "exam_summary") == Reason.NOT_CT


def test_the_uneven_tilted_head_has_the_hu_of_its_files(fixtures):
    """Steps of 4.0, 1.08 and 7.0 mm along the normal; each voxel lies between those of the two files around it.

    By pydicom and numpy alone: stored values, padding to air, linear in z between slices that differ in z alone.
    """
    image = read_ct(fixtures / "ct_dcmqa_ge_tilt" / "GE")
    slices = [pydicom.dcmread(file) for file in (fixtures / "ct_dcmqa_ge_tilt" / "GE").iterdir()]
    slices.sort(key=lambda dataset: dataset.ImagePositionPatient[2])
    first = np.array(slices[0].ImagePositionPatient, float)
    along_W, along_H = np.reshape(np.array(slices[0].ImageOrientationPatient, float), (2, 3))
    normal = np.cross(along_W, along_H)
    positions = np.array([dataset.ImagePositionPatient for dataset in slices], float)
    steps_mm = np.diff(positions @ normal)
    np.testing.assert_allclose(steps_mm, [4.0019] * 13 + [1.0811] + [6.9986] * 13, atol=1e-4)
    assert {float(dataset.GantryDetectorTilt) for dataset in slices} == {18.5}
    assert np.degrees(np.arccos(normal[2])) == pytest.approx(18.5, abs=0.01)
    np.testing.assert_array_equal(positions[:, :2], np.broadcast_to(first[:2], (28, 2)))

    stored = np.stack([dataset.pixel_array for dataset in slices]).astype(float)
    assert {(d.RescaleSlope, d.RescaleIntercept, d.PixelPaddingValue) for d in slices} == {(1, 0, -1500)}
    hu_DHW = np.where(stored == -1500, -1024, stored)
    to_ras = np.diag([-1.0, -1.0, 1.0])
    depth = image.hu_DHW.shape[0]
    assert depth == 1 + round(steps_mm.sum() / steps_mm.min())
    for d in range(0, depth, 5):
        corner = to_ras @ image.affine[:3] @ [d, 0, 0, 1]
        np.testing.assert_allclose(corner[:2], first[:2], atol=1e-4)
        at = np.interp(corner[2], positions[:, 2], np.arange(28))
        low, share = min(int(at), 26), at - min(int(at), 26)
        expected = (1 - share) * hu_DHW[low] + share * hu_DHW[low + 1]
        np.testing.assert_allclose(image.hu_DHW[d], expected, atol=0.6)
    last = to_ras @ image.affine[:3] @ [depth - 1, 511, 511, 1]
    assert last == pytest.approx(
        positions[-1] + 511 * (along_W + along_H) * 0.4882812, abs=steps_mm.min() / 2
    )  # the grid ends within half a step of the last file


LOSSY = {"1.2.840.10008.1.2.4.81", "1.2.840.10008.1.2.4.91"}
REFUSED = {  # 12-bit lossy JPEG and its retired kin; 8-bit JPEG holds no HU
    "1.2.840.10008.1.2.4.50": Reason.NOT_CT,
    **{f"1.2.840.10008.1.2.4.{n}": Reason.UNSUPPORTED_SYNTAX for n in (51, 53, 55)},
}


def series_of(file, folder):
    """Three slices, 5 mm apart, out of one file; its encoded pixels and syntax untouched."""
    folder.mkdir()
    for d in range(3):
        dataset = pydicom.dcmread(file)
        dataset.SOPInstanceUID = pydicom.uid.generate_uid()
        x, y, z = dataset.ImagePositionPatient
        dataset.ImagePositionPatient = [x, y, z + 5 * d]
        dataset.save_as(folder / f"{d}.dcm")
    return folder


def test_one_slice_in_fifteen_syntaxes(fixtures, tmp_path):
    """Lossless ones equal the uncompressed slice, lossy ones are near it and flagged, the rest is refused by name."""
    files = {
        str(pydicom.filereader.read_file_meta_info(file).TransferSyntaxUID): file
        for file in (fixtures / "ct_transfer_syntaxes" / "cornerstone_CTImage").glob("*.dcm")
    }
    reference = read_ct(series_of(files["1.2.840.10008.1.2.1"], tmp_path / "reference")).hu_DHW
    seen = set()
    for syntax, file in files.items():
        if syntax in REFUSED:
            shutil.copy(file, tmp_path / "one.dcm")
            assert reason_of(tmp_path / "one.dcm") == REFUSED[syntax], syntax
            continue
        image = read_ct(series_of(file, tmp_path / syntax))
        difference = np.abs(image.hu_DHW.astype(float) - reference).max()
        assert difference <= (5 if syntax in LOSSY else 0), syntax
        assert (Flag.LOSSY in image.flags) == (syntax in LOSSY), syntax
        seen.add(syntax)
    assert len(seen) >= 11
    assert "1.2.840.10008.1.2.1.99" in seen  # deflated
    # all of them as one series: named for what can be helped
    assert reason_of(fixtures / "ct_transfer_syntaxes" / "cornerstone_CTImage") == Reason.UNSUPPORTED_SYNTAX


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ("failing/sliceincrement/001", Reason.MISSING_SLICE),
        ("failing/notavolume/001", Reason.TOO_FEW_SLICES),
        ("failing/slicecount/001", Reason.NOT_CT),
        ("failing/sliceorientation/001", Reason.NOT_CT),
        ("failing/gantrytilting/001", Reason.NOT_HU),  # its pixels were blanked
        ("generic/compressed_rle/001", Reason.NOT_CT),
        ("generic/compressed_jpegls/001", Reason.NOT_CT),
    ],
)
def test_series_that_are_no_chest_ct_are_refused_with_their_reason(fixtures, folder, reason):
    assert reason_of(fixtures / "ct_dicom2nifti" / folder) == reason


@pytest.mark.parametrize("size", ["23x38x3", "24x38x3"])
def test_legacy_converted_multi_frame_equals_its_single_frames(fixtures, size):
    """Of masks, which are no HU: read below that gate, which then refuses them."""
    folder = fixtures / "ct_multiframe_dcmqi" / size
    single, many = read_dicom(folder / "image"), read_dicom(folder / "multiframe")
    np.testing.assert_array_equal(many.hu_DHW, single.hu_DHW)
    assert len(np.unique(many.hu_DHW)) > 1
    np.testing.assert_array_equal(many.affine, single.affine)
    assert (many.flags, many.acquisition) == (single.flags, single.acquisition)
    assert reason_of(folder / "multiframe") == Reason.NOT_HU


@pytest.mark.parametrize("codec", ["compressed_rle", "compressed_jpegls"])
def test_mr_series_lie_where_their_nifti_twins_say_below_the_gate_that_refuses_them(fixtures, codec):
    """Every voxel, in another axis order. MR has no rescale: stored values."""
    folder = fixtures / "ct_dicom2nifti" / "generic" / codec / "001"
    assert reason_of(folder) == Reason.NOT_CT
    reader = HeaderReader()
    headers = [reader.read(file) for file in folder.iterdir()]
    pictures = [Picture(h, 0, {"RescaleSlope": 1, "RescaleIntercept": 0} | h.values) for h in headers]
    stack = arrange([slice_header(p.header.file, 0, p.values) for p in pictures], max_gap_mm=10.0)
    stored_DHW, _ = read_stack(stack, pictures)
    for name in ("001_ground_truth.nii.gz", "001_ground_truth_reoriented.nii.gz"):
        truth = nibabel.load(folder.parent / name)
        index = np.argwhere(np.ones(stored_DHW.shape, bool))
        at = nibabel.affines.apply_affine(np.linalg.inv(truth.affine) @ stack.affine, index)
        assert np.abs(at - np.rint(at)).max() < 1e-3
        np.testing.assert_array_equal(np.asarray(truth.dataobj)[tuple(np.rint(at).astype(int).T)], stored_DHW.ravel())


def test_a_dicomdir_is_not_followed(fixtures, tmp_path):
    """B5: a directory's references, whatever they point at, are not read; it is only one more file."""
    shutil.copytree(fixtures / "ct_cip_lowres" / "ct-64Dicom", tmp_path / "scan")
    before = read_ct(tmp_path / "scan")
    directory, record = Dataset(), Dataset()
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID = generate_uid(), ExplicitVRLittleEndian
    with warnings.catch_warnings(action="ignore"):  # pydicom warns of the path it is told to write
        record.DirectoryRecordType, record.ReferencedFileID = "IMAGE", ["..", "..", "etc", "passwd"]
        directory.DirectoryRecordSequence = [record]
        file = FileDataset("", directory, file_meta=meta, preamble=b"\0" * 128)
        file.save_as(tmp_path / "scan" / "DICOMDIR", enforce_file_format=True)
    after = read_ct(tmp_path / "scan")
    np.testing.assert_array_equal(after.hu_DHW, before.hu_DHW)
    assert after.flags == before.flags
    assert reason_of(tmp_path / "scan" / "DICOMDIR") == Reason.NOT_IMAGE
