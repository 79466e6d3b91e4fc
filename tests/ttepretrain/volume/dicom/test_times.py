"""Dates and times of DICOM headers, and when a scan was acquired."""

from datetime import date, datetime

import pytest

from ttepretrain.volume.dicom.times import acquired, acquisition_time, day_of, seconds_of
from ttepretrain.volume.preprocess import read_ct


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"AcquisitionDateTime": "20200301103000.250000+0100"}, datetime(2020, 3, 1, 10, 30, 0, 250_000)),
        ({"AcquisitionDate": "20200301", "AcquisitionTime": "103000.5"}, datetime(2020, 3, 1, 10, 30, 0, 500_000)),
        ({"AcquisitionDate": "2020.03.01", "AcquisitionTime": "10:30"}, datetime(2020, 3, 1, 10, 30)),  # ACR-NEMA
        ({"AcquisitionDate": "20200301"}, datetime(2020, 3, 1)),
        ({"AcquisitionTime": "103000", "SeriesDate": "20200302", "SeriesTime": "1031"}, datetime(2020, 3, 2, 10, 31)),
        ({"AcquisitionDate": "20201399", "StudyDate": "20200303", "StudyTime": "09"}, datetime(2020, 3, 3, 9)),
        ({"AcquisitionDate": "20200301", "StudyDate": "20200228", "StudyTime": "08"}, datetime(2020, 3, 1)),
        ({"FrameAcquisitionDateTime": "20200305", "AcquisitionDateTime": "20200301"}, datetime(2020, 3, 5)),
        ({"AcquisitionDateTime": "20200301235960"}, datetime(2020, 3, 2)),  # a leap second
        ({"AcquisitionDateTime": "20200301-0500"}, datetime(2020, 3, 1)),
        ({"AcquisitionDateTime": "2020", "SeriesDate": "20200304"}, datetime(2020, 3, 4)),
        ({"AcquisitionDate": "20200301", "AcquisitionTime": "noon", "SeriesDate": "20200302"}, datetime(2020, 3, 2)),
        (
            {"AcquisitionDate": "20200301", "AcquisitionTime": "101112.1234567"},
            datetime(2020, 3, 1, 10, 11, 12, 123457),
        ),
        ({"StudyDate": "Canary^Name"}, None),
        ({"StudyTime": "20200301"}, None),
        ({}, None),
    ],
)
def test_the_first_that_is_there_and_makes_sense_counts(values, expected):
    assert acquired(values) == expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("20200229", date(2020, 2, 29)), ("2020.02.29", date(2020, 2, 29)), ("2020-02-29", date(2020, 2, 29)),
        ("20210229", None), ("00000000", None), ("2020.0229", None), ("202002", None), ("20200229 ", None), ("", None),
    ],
)  # fmt: skip
def test_dates(said, expected):
    assert day_of(said) == expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("10", 36000), ("1030", 37800), ("103005", 37805), ("103005.5", 37805.5), ("103005.", 37805), ("000000", 0),
        ("10:30:05", 37805), ("10:30", 37800), ("103005+0100", 37805), ("235960", 86400),
        ("9", 32400), ("930", 34200), ("93005", 34205), ("93005.25", 34205.25),  # the leading zero is lost
        ("240000", None), ("106000", None), ("103061", None), ("noon", None), ("103005 UTC", None), ("", None),
    ],
)  # fmt: skip
def test_times_of_day(said, expected):
    assert seconds_of(said) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"FrameAcquisitionDateTime": "20200301", "AcquisitionTime": "1030"}, (None, 37800)),  # the first has no time
        ({"AcquisitionDateTime": "20200301noon", "AcquisitionTime": "1030"}, (None, 37800)),
        ({"AcquisitionDateTime": "2020.03.01 1030", "AcquisitionDate": "2020.03.01", "AcquisitionTime": "1031"},
         (date(2020, 3, 1), 37860)),
        ({"AcquisitionDateTime": "2020.03.011030"}, (date(2020, 3, 1), 37800)),
        ({"AcquisitionDate": "00000000", "AcquisitionTime": "1030"}, (None, 37800)),
        ({"SeriesDate": "20200301", "SeriesTime": "1030"}, None),
    ],
)  # fmt: skip
def test_the_first_time_of_day_of_the_acquisition_counts(values, expected):
    assert acquisition_time(values) == expected


def test_a_series_was_acquired_when_its_first_picture_was(tmp_path, chest, write_series):
    def edit(d, dataset):
        dataset.AcquisitionDate, dataset.AcquisitionTime = "20200301", f"1030{(d + 5) % 12:02d}"

    write_series(tmp_path / "series", *chest, edit)
    image = read_ct(tmp_path / "series")
    assert image.acquired == datetime(2020, 3, 1, 10, 30, 0)
    assert "2020" not in repr(image.acquisition)  # goes into doctor's JSON


def test_frames_say_it_for_themselves(tmp_path, chest, enhanced):
    def edit(dataset):
        for n, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence):
            frame.FrameContentSequence = [type(frame)()]
            frame.FrameContentSequence[0].FrameAcquisitionDateTime = f"202003011030{n + 7:02d}"

    file = tmp_path / "enhanced.dcm"
    enhanced(*chest, range(12), edit).save_as(file, enforce_file_format=True)
    assert read_ct(file).acquired == datetime(2020, 3, 1, 10, 30, 7)


def test_a_nifti_file_does_not_say_it(tmp_path, chest, write_nifti):
    assert read_ct(write_nifti(tmp_path / "a.nii.gz", *chest)).acquired is None
