"""Every odd file of the fixtures by itself: read with the values another reader finds, or refused with this reason."""

import shutil

import nibabel
import numpy as np
import pytest
import SimpleITK

from ttepretrain.errors import BadStudy
from ttepretrain.volume.checks import Flag
from ttepretrain.volume.nifti import read_nifti
from ttepretrain.volume.preprocess import read_ct

NO_IMAGES = {"SOURCE.txt", "LICENSE", "README.md"}

# Sound NIfTI of what is no CT: read, with nibabel's values, up to the gate that refuses them (NOT_HU).
NIFTI_NO_CT = (
    "CT_pitch.nii.gz",  # a CT in 8 bits, as on a screen
    "nifti-rs/f32.nii.gz",
    *(f"nifti-rs/27/{kind}{bits}.nii" for kind in ("int", "uint") for bits in (8, 16, 32, 64)),
    *(f"nifti-rs/27/float{bits}.nii" for bits in (32, 64)),
)
NIFTI_REFUSED = {
    "example4d.nii.gz": "BAD_SHAPE",  # two volumes
    "example_nifti2.nii.gz": "BAD_SHAPE",
    "row_major.dconn.nii": "BAD_SHAPE",  # CIFTI: a matrix in the seventh dimension
    "nifti1.hdr": "NOT_DICOM",  # half of a pair; only .nii and .nii.gz are taken as NIfTI
    "nifti2.hdr": "NOT_DICOM",
    "nifti-rs/avg152T1_LR_nifti.hdr.gz": "NOT_DICOM",
    "nifti-rs/minimal.hdr": "NOT_DICOM",
    "nifti-rs/minimal.hdr.gz": "NOT_DICOM",
    "nifti-rs/minimal.img": "NOT_DICOM",
    "nifti-rs/minimal.img.gz": "NOT_DICOM",
    "nifti-rs/minimal2.hdr": "NOT_DICOM",
    "nifti-rs/minimal2.img.gz": "NOT_DICOM",
    "nifti-rs/minimal.nii": "BAD_AFFINE",  # neither sform nor qform; its slope of 0 means unscaled
    "nifti-rs/minimal.nii.gz": "BAD_AFFINE",
    "nifti-rs/zstat1.nii.gz": "NOT_HU",  # unscaled by a slope of 0
    "nifti-rs/minimal_extended_hdr.nii": "BAD_SHAPE",  # 2-D
    "nifti-rs/complex/complex32.nii": "BAD_SHAPE",  # 2-D, before its type is looked at
    "nifti-rs/complex/complex64.nii": "BAD_SHAPE",
    "nifti-rs/rgb/3D.nii": "UNSUPPORTED_DTYPE",
    "nifti-rs/rgb/4D.nii": "BAD_SHAPE",
    "nifti-rs/rgba/4D.nii": "BAD_SHAPE",
    "nifti-rs/fuzz_artifacts/crash-1.nii": "BAD_SHAPE",
    "nifti-rs/fuzz_artifacts/crash-ed7d46344d7efb3b9f0c374d66d2e02f66cc447d.nii": "NOT_NIFTI",
    "nifti-rs/fuzz_artifacts/crash-08123ef33416bd6f0c5fa63d44b681b8581d62a0": "NOT_DICOM",
    "nifti-rs/fuzz_artifacts/crash-98aa054390f8d3f932f190dc22ef62c6ff2d6619": "NOT_DICOM",
    "nifti-rs/fuzz_artifacts/crash-d03c6346fe83a026738f6b8cd2a9335a3f8cb158": "NOT_DICOM",
}

DICOM_REFUSED = {
    "CT_small.dcm": "TOO_FEW_SLICES",  # one slice
    "J2K_pixelrep_mismatch.dcm": "TOO_FEW_SLICES",
    "bad_sequence.dcm": "TOO_FEW_SLICES",
    "eCT_Supplemental.dcm": "NOT_HU",  # two perfusion maps
    "ExplVR_BigEndNoMeta.dcm": "NOT_IMAGE",  # a plan for treatment, without a marker
    "ExplVR_LitEndNoMeta.dcm": "NOT_IMAGE",
    "no_meta.dcm": "NOT_DICOM",  # no marker, and all a byte too late
    "JPEG2000-embedded-sequence-delimiter.dcm": "NOT_CT",  # NM
    "JPGExtended.dcm": "NOT_CT",
    "JPGLosslessP14SV1_1s_1f_8b.dcm": "NOT_CT",  # US
    "MR_small_RLE.dcm": "NOT_CT",
    "MR_small_bigendian.dcm": "NOT_CT",
    "MR_small_padded.dcm": "NOT_CT",
    "MR_truncated.dcm": "NOT_CT",
    "emri_small.dcm": "NOT_CT",
    "emri_small_big_endian.dcm": "NOT_CT",
    "emri_small_jpeg_2k_lossless_too_short.dcm": "NOT_CT",
    "badVR.dcm": "NOT_CT",  # RTDOSE
    "image_dfl.dcm": "NOT_CT",  # secondary capture
    "rtplan_truncated.dcm": "NOT_IMAGE",
    "empty_charset_LEI.dcm": "TRUNCATED",  # two elements and the end
    "nested_priv_SQ.dcm": "TRUNCATED",  # one private sequence
    "meta_missing_tsyntax.dcm": "UNREADABLE",
    "dicomdir_98892001/CT2N/6293": "LOCALIZER",
    "dicomdir_98892001/CT2N/6924": "LOCALIZER",
    **{f"dicomdir_98892001/CT5N/{n}": "TOO_FEW_SLICES" for n in (2062, 2392, 2693, 3023, 3353)},  # each by itself
}


def reason_of(path) -> str:
    with pytest.raises(BadStudy) as refusal:
        read_ct(path)
    return str(refusal.value.code)


def files_in(folder) -> set[str]:
    return {f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file() and f.name not in NO_IMAGES}


def test_no_file_of_the_folders_is_forgotten(fixtures):
    assert files_in(fixtures / "nifti_edge") == {*NIFTI_NO_CT, *NIFTI_REFUSED}
    assert files_in(fixtures / "dicom_pydicom_odd") == set(DICOM_REFUSED)


@pytest.mark.parametrize("name", NIFTI_NO_CT)
def test_a_sound_nifti_of_another_kind_has_nibabels_values_and_is_no_ct(fixtures, name):
    path = fixtures / "nifti_edge" / name
    ours, theirs = read_nifti(path), nibabel.load(path)
    np.testing.assert_array_equal(ours.hu_DHW, np.asarray(theirs.dataobj).transpose(2, 1, 0))
    np.testing.assert_allclose(ours.affine, theirs.affine[:, [2, 1, 0, 3]], atol=1e-6)
    assert reason_of(path) == "NOT_HU"


@pytest.mark.parametrize(
    ("folder", "table"), [("nifti_edge", NIFTI_REFUSED), ("dicom_pydicom_odd", DICOM_REFUSED)], ids=["nifti", "dicom"]
)
def test_an_odd_file_is_refused_for_what_is_wrong_with_it(fixtures, tmp_path, folder, table):
    """Each alone in a folder: a DICOM file is read together with its neighbours."""
    found = {}
    for number, name in enumerate(table):
        path = tmp_path / str(number) / name.rpartition("/")[2]
        path.parent.mkdir()
        shutil.copy(fixtures / folder / name, path)
        found[name] = reason_of(path)
    assert found == table


def test_the_one_series_among_them_equals_simpleitk_with_and_without_its_scouts(fixtures):
    folder = fixtures / "dicom_pydicom_odd" / "dicomdir_98892001"
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder / "CT5N")))
    theirs = reader.Execute()
    alone, beside = read_ct(folder / "CT5N"), read_ct(folder)
    stored = SimpleITK.GetArrayFromImage(theirs)
    for ours in (alone, beside, read_ct(folder / "CT5N" / "2693")):
        np.testing.assert_array_equal(ours.hu_DHW, stored)
        np.testing.assert_allclose(ours.spacing_mm, theirs.GetSpacing()[::-1], atol=1e-4)
    assert (alone.flags, beside.flags) == ((), (Flag.IMAGES_SKIPPED,))
    assert reason_of(folder / "CT2N") == "LOCALIZER"
