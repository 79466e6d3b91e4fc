"""Slices of two scans under one series UID are refused; regions of a protocol are not (fault B12)."""

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.sequence import Sequence

from ttepretrain.errors import BadStudy
from ttepretrain.volume.dicom import read_dicom

SCANS = {
    "Manufacturer": ("SIEMENS", "GE MEDICAL SYSTEMS"),
    "ConvolutionKernel": ("B30f", "B70f"),
    "KVP": (120, 80),
    "SliceThickness": (5.0, 3.0),
    "AcquisitionDate": ("20200101", "20200102"),
}


def write(folder, chest, write_series, values, keyword):
    """Slice d says values[d]; None: it does not say."""

    def edit(d, dataset):
        setattr(dataset, keyword, values[d])
        if values[d] is None:
            delattr(dataset, keyword)

    write_series(folder, *chest, edit=edit)


def read_or_reason(folder):
    try:
        return read_dicom(folder).hu_DHW
    except BadStudy as refusal:
        return refusal.code


@pytest.mark.parametrize("keyword", sorted(SCANS.keys() - {"AcquisitionDate"}))  # midnight may come in between
@pytest.mark.parametrize("pattern", ["ABABABABABAB", "AAAAAABAAAAA", "AAABBBAAABBB"])
def test_slices_of_two_scans_between_each_other_are_refused(tmp_path, chest, write_series, keyword, pattern):
    pair = SCANS[keyword]
    write(tmp_path, chest, write_series, [pair["AB".index(letter)] for letter in pattern], keyword)
    assert read_or_reason(tmp_path) == "MIXED_GEOMETRY"


@pytest.mark.parametrize("keyword", sorted(SCANS.keys() - {"Manufacturer"}))
def test_regions_of_a_protocol_and_midnight_are_read(tmp_path, chest, write_series, keyword):
    """Each value along one stretch of the stack: a real head scan changes its thickness so."""
    write(tmp_path, chest, write_series, [SCANS[keyword][d >= 7] for d in range(12)], keyword)
    np.testing.assert_array_equal(read_or_reason(tmp_path), chest[0])


@pytest.mark.parametrize(
    ("keyword", "pair"), [("Manufacturer", SCANS["Manufacturer"]), ("AcquisitionDate", ("20200101", "20200301"))]
)
def test_two_machines_or_days_are_refused_wherever_they_meet(tmp_path, chest, write_series, keyword, pair):
    write(tmp_path, chest, write_series, [pair[d >= 7] for d in range(12)], keyword)
    assert read_or_reason(tmp_path) == "MIXED_GEOMETRY"


@pytest.mark.parametrize(
    ("keyword", "values"),
    [
        ("SliceThickness", [0.6, 0.65, 0.6] * 4),  # rounded
        ("SliceThickness", [None] * 12),
        ("SliceThickness", [5.0, 4.8, 5.0] * 4),
        ("SliceThickness", [5.0] * 4 + [3.0] * 4 + [5.0] * 4),  # a region between two
        ("ConvolutionKernel", ["B30f", None, "B30f"] * 4),  # partly anonymised
        ("KVP", ["120", "120.0", None] * 4),
        ("Manufacturer", ["SIEMENS", "Siemens Healthineers"] * 6),
        ("AcquisitionDate", ["20200101", "20200102", ""] * 4),
        ("ConvolutionKernel", [None] * 12),
        ("Manufacturer", ["SIEMENS", None, "Siemens"] * 4),
        ("AcquisitionDate", [""] * 12),
        ("Exposure", [250, 251, 249] * 4),  # tube current modulation
    ],
)
def test_what_differs_in_writing_alone_is_read(tmp_path, chest, write_series, keyword, values):
    write(tmp_path, chest, write_series, values, keyword)
    np.testing.assert_array_equal(read_or_reason(tmp_path), chest[0])


def test_frames_of_two_kernels_between_each_other_are_refused(tmp_path, chest, enhanced):
    def edit(dataset):
        for d, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence):
            reconstruction = Dataset()
            reconstruction.ConvolutionKernel = ("B30f", "B70f")[d % 2]
            frame.CTReconstructionSequence = Sequence([reconstruction])

    enhanced(*chest, range(12), edit).save_as(tmp_path / "one.dcm", enforce_file_format=True)
    assert read_or_reason(tmp_path) == "MIXED_GEOMETRY"
