"""When a scan was acquired, as its headers say it."""

from datetime import datetime

import pytest

from ttepretrain.volume.dicom.tags import acquired
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
        ({"StudyDate": "Canary^Name"}, None),
        ({"StudyTime": "20200301"}, None),
        ({}, None),
    ],
)
def test_the_first_that_is_there_and_makes_sense_counts(values, expected):
    assert acquired(values) == expected


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
