"""A series that covers its positions several times: separated by one tag, or refused."""

import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import generate_uid

from ttepretrain.errors import BadStudy
from ttepretrain.volume.checks import Flag
from ttepretrain.volume.dicom.choice import Reading
from ttepretrain.volume.dicom.frames import Picture
from ttepretrain.volume.dicom.headers import Header
from ttepretrain.volume.dicom.phases import one_phase
from ttepretrain.volume.dicom.reader import read_dicom

LATER_HU = 60  # what the second phase has more


@pytest.fixture
def two_phases(tmp_path, chest, write_series):
    """Write one series in two passes; `say(dataset, phase, d)` writes what distinguishes them. Gives both in HU."""
    hu_DHW, affine = chest

    def write(say):
        later_DHW = hu_DHW + np.int16(LATER_HU)
        for phase, values_DHW in enumerate((hu_DHW, later_DHW)):

            def edit(d, dataset, phase=phase):
                dataset.SOPInstanceUID = generate_uid(entropy_srcs=[str(phase), str(d)])
                say(dataset, phase, d)

            # the later one comes first by name
            write_series(tmp_path / "scan" / "ba"[phase], values_DHW, affine, edit=edit)
        return tmp_path / "scan", (hu_DHW, later_DHW)

    return write


def said(dataset, **values):
    for keyword, value in values.items():
        setattr(dataset, keyword, value)


TELLING = {
    "temporal position": lambda ds, phase, _: setattr(ds, "TemporalPositionIdentifier", phase + 1),
    "percentage of the heartbeat": lambda ds, phase, _: setattr(
        ds, "NominalPercentageOfCardiacPhase", (9.5, 70.0)[phase]
    ),
    "delay after the R wave": lambda ds, phase, _: setattr(ds, "NominalCardiacTriggerDelayTime", (90.0, 350.5)[phase]),
    "trigger time": lambda ds, phase, _: setattr(ds, "TriggerTime", ("90", "350.5")[phase]),
    "phase of breathing": lambda ds, phase, _: setattr(ds, "NominalPercentageOfRespiratoryPhase", (0.0, 50.0)[phase]),
    "offset in time": lambda ds, phase, _: setattr(ds, "TemporalPositionTimeOffset", (-1.5, 20.0)[phase]),
    "the heart comes before the number": lambda ds, phase, _: said(
        ds, TriggerTime=("90", "350.5")[phase], AcquisitionNumber=2 - phase
    ),
    "moment of acquisition": lambda ds, phase, _: setattr(
        ds, "AcquisitionDateTime", ("20191231235950", "20200101000020.5")[phase]
    ),
    "stack": lambda ds, phase, _: setattr(ds, "StackID", ("1", "B")[phase]),
    "number, not text": lambda ds, phase, _: setattr(ds, "AcquisitionNumber", (9, 10)[phase]),
    "acquisition time": lambda ds, phase, _: setattr(ds, "AcquisitionTime", ("093015.25", "101500")[phase]),
    "one of several": lambda ds, phase, d: (
        setattr(ds, "AcquisitionTime", f"1000{d:02}.{phase}"),
        setattr(ds, "ContentTime", ("1000", "1001")[phase]),
    ),
    "a number that is zero": lambda ds, phase, _: setattr(ds, "AcquisitionNumber", phase),
    "minutes, then seconds": lambda ds, phase, _: setattr(ds, "AcquisitionTime", ("0930", "093015")[phase]),
    "times with colons": lambda ds, phase, _: setattr(ds, "AcquisitionTime", ("10:15:00", "10:16:00")[phase]),
    "times without a leading zero": lambda ds, phase, _: setattr(ds, "AcquisitionTime", ("95950", "100010")[phase]),
    "times about midnight, with dates": lambda ds, phase, _: said(
        ds, AcquisitionTime=("235950", "000020")[phase], AcquisitionDate=("20191231", "20200101")[phase]
    ),
    "one time of two dates": lambda ds, phase, _: said(
        ds, ContentTime="100000", ContentDate=("20191231", "20200101")[phase]
    ),
    "another tag than a time about midnight": lambda ds, phase, _: said(
        ds, AcquisitionTime=("235950", "000020")[phase], ContentTime=("120000", "120001")[phase]
    ),
}


@pytest.mark.filterwarnings("ignore:.*Invalid value for VR TM:UserWarning")  # pydicom's, when it is written
@pytest.mark.parametrize("say", TELLING.values(), ids=TELLING)
@pytest.mark.parametrize(("which", "number"), [("first", 0), ("last", 1)])
def test_a_tag_that_tells_whole_phases_apart_chooses_one_and_is_flagged(two_phases, say, which, number):
    folder, phases = two_phases(say)
    image = read_dicom(folder, Reading(phase=which))
    np.testing.assert_array_equal(image.hu_DHW, phases[number])
    assert image.flags == (Flag.OTHER_PHASES,)


@pytest.mark.parametrize("which", ["first", "last"])
def test_a_file_stands_for_its_own_phase(two_phases, which):
    folder, phases = two_phases(TELLING["acquisition time"])
    files = [file.rename(folder / f"{file.parent.name}{file.name}") for file in sorted(folder.glob("?/*"))]
    for file in (files[3], files[-3]):
        image = read_dicom(file, Reading(phase=which))
        np.testing.assert_array_equal(image.hu_DHW, phases["ba".index(file.name[0])])
        assert image.flags == (Flag.OTHER_PHASES,)


def test_a_file_of_one_whole_phase_stands_for_it(tmp_path, chest, enhanced):
    hu_DHW, affine = chest
    for number, name in ((1, "one"), (2, "two")):

        def edit(dataset, number=number):
            dataset.SeriesInstanceUID = dataset.StudyInstanceUID = "1.2.3"
            dataset.AcquisitionNumber = number

        values_DHW = hu_DHW + np.int16(LATER_HU * (number - 1))
        enhanced(values_DHW, affine, range(12), edit).save_as(tmp_path / name, enforce_file_format=True)
    for which in ("first", "last"):
        np.testing.assert_array_equal(read_dicom(tmp_path / "one", Reading(phase=which)).hu_DHW, hu_DHW)
        np.testing.assert_array_equal(read_dicom(tmp_path / "two", Reading(phase=which)).hu_DHW, hu_DHW + LATER_HU)


@pytest.mark.parametrize("which", ["first", "last"])
def test_a_file_of_every_position_is_read_though_no_tag_tells_it_apart(tmp_path, chest, enhanced, which):
    hu_DHW, affine = chest
    for number, name in enumerate(("one", "two")):

        def edit(dataset, number=number):
            dataset.SeriesInstanceUID = dataset.StudyInstanceUID = "1.2.3"
            if number:  # reconstructed otherwise
                dataset.SharedFunctionalGroupsSequence[0].CTImageFrameTypeSequence[0].FrameType[2] = "REST"

        values_DHW = hu_DHW + np.int16(LATER_HU * number)
        enhanced(values_DHW, affine, range(12), edit).save_as(tmp_path / name, enforce_file_format=True)
    for number, name in enumerate(("one", "two")):
        image = read_dicom(tmp_path / name, Reading(phase=which))
        np.testing.assert_array_equal(image.hu_DHW, hu_DHW + LATER_HU * number)
        assert image.flags == (Flag.OTHER_PHASES,)
    with pytest.raises(BadStudy, match="DUPLICATE_SLICE"):
        read_dicom(tmp_path, Reading(phase=which))


def test_a_file_that_is_a_part_of_a_volume_is_not_read_by_itself(tmp_path, chest, enhanced):
    hu_DHW, affine = chest
    for number, frames in enumerate((range(6), range(6, 12))):
        edit = lambda ds: said(ds, SeriesInstanceUID="1.2.3", StudyInstanceUID="1.2.3")  # noqa: E731
        enhanced(hu_DHW, affine, frames, edit).save_as(tmp_path / f"{number}.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(read_dicom(tmp_path / "0.dcm").hu_DHW, hu_DHW)


GROUPS = {
    "TemporalPositionSequence": {"TemporalPositionTimeOffset": (0.0, 12.5)},
    "CardiacSynchronizationSequence": {"NominalPercentageOfCardiacPhase": (5.0, 75.0)},
    "RespiratorySynchronizationSequence": {"NominalPercentageOfRespiratoryPhase": (0.0, 50.0)},
    "FrameContentSequence": {"StackID": ("1", "2"), "FrameAcquisitionNumber": (1, 2)},
}


@pytest.mark.parametrize(("group", "keyword"), [(group, keyword) for group in GROUPS for keyword in GROUPS[group]])
def test_enhanced_frames_name_their_phase_in_any_group(tmp_path, chest, enhanced, group, keyword):
    hu_DHW, affine = chest
    both_DHW = np.concatenate([hu_DHW, hu_DHW + np.int16(LATER_HU)])

    def edit(dataset):
        frames = dataset.PerFrameFunctionalGroupsSequence
        for d, frame in enumerate(frames):
            content = Dataset()
            setattr(content, keyword, GROUPS[group][keyword][d // 12])
            setattr(frame, group, Sequence([content]))
            frame.PlanePositionSequence = frames[d % 12].PlanePositionSequence

    enhanced(both_DHW, affine, range(24), edit).save_as(tmp_path / "one.dcm", enforce_file_format=True)
    for which, phase in (("first", 0), ("last", 1)):
        image = read_dicom(tmp_path, Reading(phase=which))
        np.testing.assert_array_equal(image.hu_DHW, both_DHW[12 * phase : 12 * phase + 12])
        assert image.flags == (Flag.OTHER_PHASES,)


def test_a_bolus_tracker_of_many_pictures_is_judged_at_once():
    """20 000 pictures at one position, each its own phase: far below a second, where a set for each takes a minute."""
    header = Header(Path("a"), "", "", {}, 0, None, 0)
    values = [{"ImagePositionPatient": [0, 0, 0], "AcquisitionNumber": n} for n in range(20_000)]
    pictures = [Picture(header, 0, said) for said in values]
    start = time.process_time()
    chosen, flags = one_phase(pictures, "first", Path())
    assert time.process_time() - start < 5
    assert (chosen, flags) == (pictures[:1], (Flag.OTHER_PHASES,))


def test_the_rule_may_refuse_them(two_phases):
    folder, _ = two_phases(TELLING["temporal position"])
    with pytest.raises(BadStudy, match="DUPLICATE_SLICE"):
        read_dicom(folder, Reading(phase="refuse"))


UNCLEAR = {
    "nothing differs": lambda ds, *_: setattr(ds, "AcquisitionNumber", 1),
    "every slice has its own": lambda ds, phase, d: setattr(ds, "ContentTime", f"10{phase}{d % 6}{d:02}"),
    "one slice is in the other": lambda ds, phase, d: setattr(ds, "AcquisitionNumber", 1 if d == 3 else 1 + phase),
    "no time": lambda ds, phase, _: setattr(ds, "AcquisitionTime", ("10h15", "10h16")[phase]),
    "missing in one": lambda ds, phase, _: setattr(ds, "AcquisitionNumber", (None, 2)[phase]),
    "midnight, no date": lambda ds, phase, _: setattr(ds, "AcquisitionTime", ("235950", "000020")[phase]),
    "midnight in minutes": lambda ds, phase, _: setattr(ds, "ContentTime", ("2359", "0001")[phase]),
    "midnight, one of them has a date": lambda ds, phase, _: said(
        ds, AcquisitionTime=("235950", "000020")[phase], AcquisitionDate=("20191231", "")[phase]
    ),
    "midnight, the date of the study": lambda ds, phase, _: said(
        ds, AcquisitionTime=("235950", "000020")[phase], AcquisitionDate="20191231"
    ),
    "two kernels": lambda ds, phase, _: said(
        ds, ConvolutionKernel=("B30f", "B70f")[phase], ContentTime=("100000", "100009")[phase]
    ),
    "two image types": lambda ds, phase, _: said(
        ds, ImageType=["ORIGINAL", "PRIMARY", "AXIAL", "MT"[phase]], AcquisitionNumber=1 + phase
    ),
}


@pytest.mark.parametrize("say", UNCLEAR.values(), ids=UNCLEAR)
@pytest.mark.filterwarnings("ignore:.*Invalid value for VR TM:UserWarning")  # pydicom's, when it is written
def test_phases_that_no_tag_tells_apart_are_refused(two_phases, say):
    folder, _ = two_phases(say)
    with pytest.raises(BadStudy, match="DUPLICATE_SLICE"):
        read_dicom(folder)


def test_a_phase_with_a_missing_slice_is_refused(two_phases):
    folder, _ = two_phases(TELLING["temporal position"])
    next((folder / "a").glob("*_005.dcm")).unlink()
    with pytest.raises(BadStudy, match="DUPLICATE_SLICE"):
        read_dicom(folder)


def test_a_phase_with_a_slice_twice_is_refused(two_phases):
    folder, _ = two_phases(TELLING["temporal position"])
    shutil.copy(next((folder / "a").glob("*_005.dcm")), folder / "copy")
    with pytest.raises(BadStudy, match="DUPLICATE_SLICE"):
        read_dicom(folder)


def test_one_pass_in_two_acquisitions_is_one_phase(tmp_path, chest, write_series):
    write_series(tmp_path, *chest, edit=lambda d, ds: setattr(ds, "AcquisitionNumber", 1 + (d > 5)))
    image = read_dicom(tmp_path)
    np.testing.assert_array_equal(image.hu_DHW, chest[0])
    assert image.flags == ()


def test_enhanced_frames_name_their_phase(tmp_path, chest, enhanced):
    hu_DHW, affine = chest
    both_DHW = np.concatenate([hu_DHW, hu_DHW + np.int16(LATER_HU)])
    order = [d for pair in zip(range(12), range(12, 24)) for d in pair]

    def edit(dataset):
        for d, frame in zip(order, dataset.PerFrameFunctionalGroupsSequence):
            content = Dataset()
            content.TemporalPositionIndex = 1 + d // 12
            frame.FrameContentSequence = Sequence([content])
            position = dataset.PerFrameFunctionalGroupsSequence[2 * (d % 12)].PlanePositionSequence
            frame.PlanePositionSequence = position

    enhanced(both_DHW, affine, order, edit).save_as(tmp_path / "one.dcm", enforce_file_format=True)
    for which, phase, path in (("first", 0, "."), ("last", 1, "."), ("first", 0, "one.dcm"), ("last", 1, "one.dcm")):
        image = read_dicom(tmp_path / path, Reading(phase=which))
        np.testing.assert_array_equal(image.hu_DHW, both_DHW[12 * phase : 12 * phase + 12])
        assert image.flags == (Flag.OTHER_PHASES,)
