"""Slices of two scans under one series UID are refused; regions of a protocol are not."""

import time

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.sequence import Sequence

from ttepretrain.errors import BadStudy
from ttepretrain.volume.checks import Flag
from ttepretrain.volume.dicom.mixed_scans import check_alike
from ttepretrain.volume.dicom.reader import read_dicom

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
def test_interleaved_scans_are_refused(tmp_path, chest, write_series, keyword, pattern):
    pair = SCANS[keyword]
    write(tmp_path, chest, write_series, [pair["AB".index(letter)] for letter in pattern], keyword)
    assert read_or_reason(tmp_path) == "MIXED_GEOMETRY"


@pytest.mark.parametrize("keyword", sorted(SCANS.keys() - {"Manufacturer"}))
def test_regions_of_a_protocol_and_midnight_are_read(tmp_path, chest, write_series, keyword):
    """Each value along one stretch of the stack: a real head scan changes its thickness so."""
    write(tmp_path, chest, write_series, [SCANS[keyword][d >= 7] for d in range(12)], keyword)
    np.testing.assert_array_equal(read_or_reason(tmp_path), chest[0])


@pytest.mark.parametrize(
    ("keyword", "pair"),
    [
        ("Manufacturer", SCANS["Manufacturer"]),
        ("AcquisitionDate", ("20200101", "20200301")),
        ("AcquisitionDateTime", ("20200101103000", "20200110103000")),
    ],
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
        ("Manufacturer", ["SIEMENS", "ANONYMIZED", "Anonymous", "NONE", "Unknown", "SIEMENS"] * 2),
        ("Manufacturer", ["TOSHIBA_MEC", "TOSHIBA"] * 6),
        ("Manufacturer", ["CANON_MEC", "Canon Medical Systems"] * 6),
        ("KVP", [120, 0, 120] * 4),
        ("SliceThickness", [5.0, 0, 5.0] * 4),
        ("AcquisitionDate", ["20200101", "20200102", ""] * 4),
        ("ConvolutionKernel", [None] * 12),
        ("Manufacturer", ["SIEMENS", None, "Siemens"] * 4),
        ("AcquisitionDate", [""] * 12),
        ("Exposure", [250, 251, 249] * 4),  # tube current modulation
        ("ImageType", [["ORIGINAL", "PRIMARY"], ["ORIGINAL", "PRIMARY", "AXIAL"], ["original", ""]] * 4),
        ("ImageType", [["ORIGINAL", "PRIMARY", "AXIAL", "ADD"], ["ORIGINAL", "PRIMARY", "AXIAL"]] * 6),  # a real head
        ("ImageType", [None] * 12),
        ("ContrastBolusAgent", ["NONE", "", None] * 4),
        ("ContrastBolusAgent", ["Omnipaque", "OMNIPAQUE 350", "IODINE"] * 4),
        ("AcquisitionNumber", range(12)),  # one for each turn of the tube
        ("AcquisitionNumber", [d // 3 for d in range(12)]),
        ("AcquisitionNumber", [*range(6), *range(6)]),  # counted anew in the second region
        ("AcquisitionNumber", [1] * 6 + [2] * 6),
        ("AcquisitionNumber", [1] * 4 + [2, 1] + [2] * 6),  # two that overlap by a slice
        ("AcquisitionNumber", [3, None, 3] * 4),
        ("AcquisitionTime", [f"{100000 + 7 * (d % 3)}" for d in range(12)]),  # slices of one turn of the tube
        ("AcquisitionTime", [f"{9 + 2 * d % 24:02}0000" for d in range(7)] + ["233000"] * 5),
        ("AcquisitionTime", ["120000", None, "1200"] * 4),
        ("AcquisitionTime", [("235959.5", "000001", "00:00:02")[d // 4] for d in range(12)]),
    ],
)
@pytest.mark.filterwarnings("ignore:.*Invalid value for VR:UserWarning")  # pydicom's, when it is written
def test_what_differs_in_writing_alone_is_read(tmp_path, chest, write_series, keyword, values):
    write(tmp_path, chest, write_series, values, keyword)
    np.testing.assert_array_equal(read_or_reason(tmp_path), chest[0])


def test_thousands_of_slices_of_their_own_slopes_are_compared_at_once():
    """A file has up to 20,000 frames, each with what it likes."""
    places = [[{"RescaleSlope": 1 + d / 1000, "RescaleIntercept": d, "AcquisitionNumber": d}] for d in range(20_000)]
    start = time.process_time()
    assert check_alike(places) == (Flag.RESCALE_VARIES,)
    assert time.process_time() - start < 10


def test_frames_of_two_kernels_between_each_other_are_refused(tmp_path, chest, enhanced):
    def edit(dataset):
        for d, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence):
            reconstruction = Dataset()
            reconstruction.ConvolutionKernel = ("B30f", "B70f")[d % 2]
            frame.CTReconstructionSequence = Sequence([reconstruction])

    enhanced(*chest, range(12), edit).save_as(tmp_path / "one.dcm", enforce_file_format=True)
    assert read_or_reason(tmp_path) == "MIXED_GEOMETRY"


OTHERS = {  # what two scans of one machine, kernel, kV and thickness differ in
    "ImageType": (["ORIGINAL", "PRIMARY", "AXIAL"], ["DERIVED", "SECONDARY", "AXIAL"]),
    "ContrastBolusAgent": (None, "Omnipaque 350"),
    "AcquisitionNumber": (2, 5),
    "AcquisitionTime": ("091500", "143000"),
    "RescaleIntercept": (-1024, 0),
}


@pytest.mark.parametrize("keyword", OTHERS)
@pytest.mark.parametrize("pattern", ["ABABABABABAB", "AABAABAABAAB", "ABBBABBBABBB"])
def test_slices_of_two_scans_that_differ_in_little_are_refused(tmp_path, chest, write_series, keyword, pattern):
    pair = OTHERS[keyword]
    write(tmp_path, chest, write_series, [pair["AB".index(letter)] for letter in pattern], keyword)
    assert read_or_reason(tmp_path) == "MIXED_GEOMETRY"


def test_slices_of_three_scans_are_refused(tmp_path, chest, write_series):
    write(tmp_path, chest, write_series, [1, 2, 3] * 4, "AcquisitionNumber")
    assert read_or_reason(tmp_path) == "MIXED_GEOMETRY"


@pytest.mark.parametrize("keyword", sorted(OTHERS.keys() - {"RescaleIntercept"}))  # its HU would be others
@pytest.mark.parametrize("pattern", ["AAAAAABAAAAA", "AABAAAAABAAA", "AAAAAABBBBBB", "AAAABBBBAAAA"])
def test_a_value_lost_or_odd_in_a_slice_or_two_is_read(tmp_path, chest, write_series, keyword, pattern):
    pair = OTHERS[keyword]
    write(tmp_path, chest, write_series, [pair["AB".index(letter)] for letter in pattern], keyword)
    np.testing.assert_array_equal(read_or_reason(tmp_path), chest[0])


PROTOCOL = {keyword: SCANS[keyword] for keyword in ("ConvolutionKernel", "KVP")} | {
    keyword: OTHERS[keyword] for keyword in ("ImageType", "ContrastBolusAgent", "AcquisitionTime")
}


@pytest.mark.parametrize("keyword", PROTOCOL)
def test_a_protocol_that_changes_along_the_stack_is_flagged(tmp_path, chest, write_series, keyword):
    """Regions of one scan, or two scans end to end: they cannot be distinguished."""
    write(tmp_path, chest, write_series, [PROTOCOL[keyword][d >= 7] for d in range(12)], keyword)
    assert set(read_dicom(tmp_path).flags) - {Flag.DERIVED} == {Flag.MIXED_PROTOCOL}


@pytest.mark.parametrize(
    ("dates", "flags"),
    [
        (("20200101", "20200102"), (Flag.MIXED_PROTOCOL,)),
        (("20200101", "20200101"), ()),
        (("20200101", ""), ()),
        (("", ""), ()),
    ],
)
def test_scans_of_one_hour_on_two_days_are_flagged(tmp_path, chest, write_series, dates, flags):
    def edit(d, dataset):
        dataset.AcquisitionDate, dataset.AcquisitionTime = dates[d >= 7], "110000"

    write_series(tmp_path, *chest, edit=edit)
    assert read_dicom(tmp_path).flags == flags


@pytest.mark.parametrize(
    ("keyword", "values"),
    [
        ("KVP", [120, "120.0", None] * 4),
        ("AcquisitionNumber", [1] * 6 + [2] * 6),
        ("AcquisitionTime", ["235959"] * 5 + ["000010"] * 7),
        ("AcquisitionTime", [f"{10 + d * 20 // 60}{d * 20 % 60:02}00" for d in range(12)]),  # never an hour apart
        ("ImageType", [["ORIGINAL", "PRIMARY", "AXIAL", "ADD"]] * 6 + [["ORIGINAL", "PRIMARY", "AXIAL"]] * 6),
    ],
)
def test_one_protocol_is_not_flagged(tmp_path, chest, write_series, keyword, values):
    write(tmp_path, chest, write_series, values, keyword)
    assert read_dicom(tmp_path).flags == ()


A_OR_B = {
    "third": ("ImageType", (["ORIGINAL", "PRIMARY", "AXIAL"], ["ORIGINAL", "PRIMARY", "HELICAL"])),
    "fourth": ("ImageType", (["ORIGINAL", "PRIMARY", "AXIAL", "A"], ["ORIGINAL", "PRIMARY", "AXIAL", "B"])),
    "hour": ("AcquisitionTime", ("100000", "110000")),
    "more": ("AcquisitionTime", ("100000", "110100")),
    "number": ("AcquisitionNumber", (1, 2)),
}


@pytest.mark.parametrize(
    ("which", "pattern", "refused"),
    [
        ("third", "ABABABABAB", True),
        ("fourth", "ABABABABAB", False),
        ("hour", "ABABABABAB", False),
        ("more", "ABABABABAB", True),
        ("number", "AAAABAAAABAAAA", False),  # two returns
        ("number", "AAAABAAAABAAAABAAAA", True),
        ("number", "AAAABBBBAAAABBBBAAAA", False),  # regions
    ],
)
def test_where_two_scans_begin(which, pattern, refused):
    keyword, pair = A_OR_B[which]
    places = [[{keyword: pair["AB".index(letter)]}] for letter in pattern]
    if refused:
        with pytest.raises(BadStudy, match="MIXED_GEOMETRY"):
            check_alike(places)
    else:
        assert check_alike(places) == ()
