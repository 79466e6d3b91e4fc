"""Many frames in one file: Enhanced CT written by hand, Legacy Converted Enhanced CT by highdicom."""

import math
import time
import warnings
import zlib
from copy import deepcopy
from functools import partial

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, RLELossless, generate_uid

from ttepretrain.errors import BadStudy
from ttepretrain.volume.checks import Flag, Reason
from ttepretrain.volume.dicom.reader import read_dicom


def reason_of(path) -> Reason:
    with pytest.raises(BadStudy) as refusal:
        read_dicom(path)
    return refusal.value.code


@pytest.fixture
def oblique(geometry):
    """(even hu_DHW, oblique affine with three spacings): 9 slices of 12 x 17."""
    shape = (9, 12, 17)
    affine = geometry.dicom_affine(shape, (3.0, 2.0, 1.4))
    affine[:3] = geometry.rotation(14, -9, 6) @ affine[:3]
    index = np.arange(np.prod(shape)).reshape(shape)
    return (index % 1900 - 1000).astype(np.int16) // 2 * 2, affine


@pytest.fixture
def shuffled():
    return np.random.default_rng(4).permutation(9).tolist()


@pytest.mark.parametrize("per_frame", [(), ("PlaneOrientationSequence", "PixelMeasuresSequence"),
                                       ("PixelValueTransformationSequence", "CTImageFrameTypeSequence")])  # fmt: skip
def test_frames_lie_where_their_groups_say_whatever_their_order(
    tmp_path, oblique, shuffled, write_series, per_frame, enhanced
):
    """Equal to the same slices as single files: values, affine, and flags but that of slopes that differ."""
    file = tmp_path / "many" / "scan.dcm"
    file.parent.mkdir()
    enhanced(*oblique, shuffled, per_frame=per_frame).save_as(file)
    write_series(tmp_path / "single", *oblique)
    many, single = read_dicom(file), read_dicom(tmp_path / "single")
    np.testing.assert_array_equal(many.hu_DHW, single.hu_DHW)
    np.testing.assert_array_equal(many.hu_DHW, oblique[0])
    np.testing.assert_allclose(many.affine, oblique[1], atol=1e-6)
    assert many.flags == ((Flag.RESCALE_VARIES,) if "PixelValueTransformationSequence" in per_frame else ())
    assert single.flags == ()
    assert many.acquisition["slice_thickness_mm"] == 2.0


def test_highdicom_lays_an_enhanced_scan_in_space_as_we_do(tmp_path, oblique, shuffled, enhanced):
    file = tmp_path / "scan.dcm"

    def complete(dataset):  # what highdicom insists on, and we do not
        dataset.FrameOfReferenceUID = generate_uid()
        organization = Dataset()
        organization.DimensionOrganizationUID = generate_uid()
        dataset.DimensionOrganizationSequence = Sequence([organization])
        dataset.DimensionIndexSequence = Sequence([])

    enhanced(*oblique, shuffled, edit=complete).save_as(file)
    theirs, ours = highdicom.imread(file).get_volume(), read_dicom(file)
    # their slices run the other way along the normal where the handedness differs
    for index in ((0, 0, 0), (8, 0, 0), (3, 7, 11), (5, 11, 16)):
        lps_mm = np.diag([-1.0, -1.0, 1.0, 1.0]) @ ours.affine @ [*index, 1.0]
        at = np.linalg.inv(theirs.affine) @ lps_mm
        np.testing.assert_allclose(at[:3], np.rint(at[:3]), atol=1e-4)
        assert theirs.array[tuple(np.rint(at[:3]).astype(int))] == ours.hu_DHW[index]


def test_legacy_converted_by_highdicom_equals_its_single_frames(tmp_path, chest, write_series):
    files = write_series(tmp_path / "single", *chest, edit=complete_for_conversion)
    sources = [pydicom.dcmread(file) for file in reversed(files)]
    with warnings.catch_warnings(action="ignore"):
        converted = highdicom.legacy.LegacyConvertedEnhancedCTImage(
            sources, generate_uid(), 7, generate_uid(), 1, transfer_syntax_uid=ExplicitVRLittleEndian
        )
    (tmp_path / "many").mkdir()
    converted.save_as(tmp_path / "many" / "converted")
    single, many = read_dicom(tmp_path / "single"), read_dicom(tmp_path / "many")
    np.testing.assert_array_equal(many.hu_DHW, single.hu_DHW)
    np.testing.assert_allclose(many.affine, single.affine, atol=1e-6)
    assert many.flags == ()
    assert many.acquisition == single.acquisition


def complete_for_conversion(_, dataset):
    dataset.FrameOfReferenceUID = generate_uid(entropy_srcs=["frame of reference"])
    dataset.StudyDate = dataset.ContentDate = dataset.AcquisitionDate = dataset.SeriesDate = "20200101"
    dataset.StudyTime = dataset.ContentTime = dataset.AcquisitionTime = dataset.SeriesTime = "101010"
    dataset.AccessionNumber = dataset.StudyID = dataset.ReferringPhysicianName = ""
    dataset.PatientSex = dataset.PatientBirthDate = dataset.PositionReferenceIndicator = dataset.Laterality = ""
    dataset.SeriesNumber, dataset.AcquisitionNumber = 3, 1
    dataset.PatientPosition = "HFS"


def test_compressed_frames_are_read_too(tmp_path, oblique, shuffled, enhanced):
    dataset = enhanced(*oblique, shuffled)
    dataset.compress(RLELossless, generate_instance_uid=False)
    dataset.save_as(tmp_path / "scan.dcm")
    np.testing.assert_array_equal(read_dicom(tmp_path / "scan.dcm").hu_DHW, oblique[0])


def test_a_tilted_enhanced_scan_is_flagged_and_its_affine_leans(tmp_path, geometry, enhanced):
    lean = math.tan(math.radians(12))
    affine = geometry.dicom_affine((5, 9, 11), (3.0, 2.0, 1.4), lean)
    hu_DHW = np.arange(5 * 9 * 11).reshape(5, 9, 11).astype(np.int16) - 400
    enhanced(hu_DHW, affine, [2, 0, 4, 1, 3]).save_as(tmp_path / "scan.dcm")
    image = read_dicom(tmp_path / "scan.dcm")
    assert image.flags == (Flag.GANTRY_TILT,)
    np.testing.assert_allclose(image.affine, affine, atol=1e-6)


def test_a_series_spread_over_two_multi_frame_files_is_one_stack(tmp_path, oblique, enhanced):
    hu_DHW, affine = oblique
    for name, order in (("a", [8, 0, 5, 2]), ("b", [3, 1, 4, 7, 6])):
        same = partial(setattr_all, SeriesInstanceUID="1.2.3", StudyInstanceUID="1.2")
        enhanced(hu_DHW, affine, order, edit=same).save_as(tmp_path / name)
    np.testing.assert_array_equal(read_dicom(tmp_path).hu_DHW, hu_DHW)


def setattr_all(dataset, **values):
    for keyword, value in values.items():
        setattr(dataset, keyword, value)


PARTS = ([2, 0, 3, 1], [5, 4], [8, 6, 7])


def write_concatenation(folder, oblique, enhanced, kept=(1, 2, 3), offset=0, total=3):
    """The scan in three files, of which `kept` are there; the last one's first frame is off by `offset`."""
    for number, order in enumerate(PARTS, start=1):
        said = {"SeriesInstanceUID": "1.2.3", "StudyInstanceUID": "1.2", "ConcatenationUID": "1.2.4"}
        said |= {"InConcatenationNumber": number, "InConcatenationTotalNumber": total}
        said["ConcatenationFrameOffsetNumber"] = sum(map(len, PARTS[: number - 1])) + offset * (number == 3)
        if total is None:
            del said["InConcatenationTotalNumber"]
        if number in kept:
            enhanced(*oblique, order, edit=partial(setattr_all, **said)).save_as(folder / f"{number}")


@pytest.mark.parametrize("total", [3, None])
def test_a_whole_concatenation_is_one_stack(tmp_path, oblique, enhanced, total):
    write_concatenation(tmp_path, oblique, enhanced, total=total)
    for path in (tmp_path, tmp_path / "2"):
        image = read_dicom(path)
        np.testing.assert_array_equal(image.hu_DHW, oblique[0])
        assert image.flags == ()


@pytest.mark.parametrize(
    "said",
    [{"kept": (2, 3)}, {"kept": (1, 3)}, {"kept": (1, 2)}, {"kept": (1,)}, {"offset": 1}, {"total": 4}, {"total": 2},
     {"kept": (2, 3), "total": None}, {"kept": (1, 3), "total": None}],
)  # fmt: skip
def test_a_concatenation_with_a_missing_file_is_refused(tmp_path, oblique, enhanced, said):
    """B15, also where the frames that are left lie evenly; a last file is missed where the others say how many."""
    write_concatenation(tmp_path, oblique, enhanced, **said)
    assert reason_of(tmp_path) == Reason.MISSING_SLICE


def drop_position(dataset):
    del dataset.PerFrameFunctionalGroupsSequence[4].PlanePositionSequence


def localizer(dataset):
    kind = deepcopy(dataset.SharedFunctionalGroupsSequence[0].CTImageFrameTypeSequence)
    kind[0].FrameType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    dataset.PerFrameFunctionalGroupsSequence[4].CTImageFrameTypeSequence = kind


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda ds: delattr(ds, "PerFrameFunctionalGroupsSequence"), Reason.UNSUPPORTED_MULTIFRAME),
        (lambda ds: setattr(ds, "NumberOfFrames", 2**31 - 1), Reason.BAD_SHAPE),  # a bomb, B1
        (lambda ds: setattr(ds, "NumberOfFrames", 8), Reason.BAD_SHAPE),
        (lambda ds: setattr(ds, "PixelData", ds.PixelData[:-2]), Reason.TRUNCATED),
        (lambda ds: delattr(ds.SharedFunctionalGroupsSequence[0], "PixelMeasuresSequence"), Reason.BAD_SPACING),
        (lambda ds: delattr(ds.SharedFunctionalGroupsSequence[0], "PlaneOrientationSequence"), Reason.BAD_AFFINE),
        (
            lambda ds: delattr(ds.SharedFunctionalGroupsSequence[0], "PixelValueTransformationSequence"),
            Reason.BAD_SCALING,
        ),
        (drop_position, Reason.BAD_AFFINE),
        (lambda ds: setattr(ds, "PerFrameFunctionalGroupsSequence", [Dataset()] * 20_001), Reason.TOO_LARGE),
    ],
)
def test_a_multi_frame_file_that_does_not_say_everything_is_refused(tmp_path, oblique, edit, reason, enhanced):
    enhanced(*oblique, list(range(9)), edit=edit).save_as(tmp_path / "scan.dcm")
    assert reason_of(tmp_path / "scan.dcm") == reason


@pytest.mark.parametrize("deflated", [False, True])
def test_a_header_of_a_million_items_is_refused_before_it_is_parsed(tmp_path, oblique, enhanced, deflated):
    """8 MB in the file, a gigabyte as objects, as frames or in a sequence that nobody asks for: B1, B2."""
    enhanced(*oblique, list(range(9))).save_as(tmp_path / "scan.dcm", enforce_file_format=True)
    data = (tmp_path / "scan.dcm").read_bytes()
    items = b"\xfe\xff\x00\xe0" + bytes(4)
    sequence = b"\x09\x00\x01\x10SQ\0\0\xff\xff\xff\xff" + items * 2**20 + b"\xfe\xff\xdd\xe0" + bytes(4)
    body = 144 + int.from_bytes(data[140:144], "little")
    at = data.index(b"\x10\x00\x20\x00", body)  # the PatientID; elements ascend
    if deflated:
        stream = zlib.compressobj(wbits=-15)
        packed = stream.compress(data[body:at] + sequence + data[at:]) + stream.flush()
        uid = b"UI\x16\x001.2.840.10008.1.2.1.99"
        meta = data[:body].replace(b"UI\x14\x001.2.840.10008.1.2.1\0", uid)
        meta = meta[:140] + (len(meta) - 144).to_bytes(4, "little") + meta[144:]
        (tmp_path / "scan.dcm").write_bytes(meta + packed)
    else:
        (tmp_path / "scan.dcm").write_bytes(data[:at] + sequence + data[at:])
    start = time.process_time()
    for path in (tmp_path, tmp_path / "scan.dcm"):
        assert reason_of(path) == Reason.TOO_LARGE
    assert time.process_time() - start < 5


def test_a_localizer_frame_is_dropped_and_flagged(tmp_path, oblique, enhanced):
    hu_DHW, affine = oblique
    enhanced(hu_DHW, affine, [0, 1, 2, 3, 8, 4, 5, 6, 7], edit=localizer).save_as(tmp_path / "scan.dcm")
    image = read_dicom(tmp_path / "scan.dcm")
    np.testing.assert_array_equal(image.hu_DHW, hu_DHW[:8])
    assert image.flags == (Flag.IMAGES_SKIPPED,)
