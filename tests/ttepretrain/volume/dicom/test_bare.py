"""Files that other readers take and that lack something: the marker, the syntax, pixels in their place."""

import os
import socket

import gdcm
import numpy as np
import pydicom
import pytest
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from ttepretrain.errors import BadStudy
from ttepretrain.volume.checks import Flag, Reason
from ttepretrain.volume.dicom import headers
from ttepretrain.volume.dicom.coding.syntaxes import bare_syntax
from ttepretrain.volume.dicom.reader import read_dicom


def reason_of(path) -> Reason:
    with pytest.raises(BadStudy) as refusal:
        read_dicom(path)
    return refusal.value.code


def body_of(whole: bytes) -> bytes:
    return whole[144 + int.from_bytes(whole[140:144], "little") :]


STRIPPED = {
    "the data set alone": body_of,
    "without preamble and marker": lambda whole: whole[132:],
    "without preamble": lambda whole: whole[128:],
}


@pytest.mark.parametrize("strip", STRIPPED.values(), ids=STRIPPED)
@pytest.mark.parametrize("syntax", ["implicit", "explicit", "big"])
def test_files_without_a_marker_are_read(tmp_path, chest, write_series, recode, strip, syntax):
    written = ImplicitVRLittleEndian if syntax == "implicit" else ExplicitVRLittleEndian
    for file in write_series(tmp_path, *chest, syntax=written):
        if syntax == "big":
            recode(file, gdcm.TransferSyntax.ExplicitVRBigEndian)
        file.write_bytes(strip(file.read_bytes()))
    image = read_dicom(tmp_path)
    np.testing.assert_array_equal(image.hu_DHW, chest[0])
    assert image.flags == ()


def test_some_slices_without_a_marker_belong_to_the_others(tmp_path, chest, write_series):
    for file in write_series(tmp_path, *chest)[::3]:
        file.write_bytes(body_of(file.read_bytes()))
    np.testing.assert_array_equal(read_dicom(tmp_path).hu_DHW, chest[0])


def test_a_bare_slice_that_is_cut_refuses_the_series(tmp_path, chest, write_series):
    file = write_series(tmp_path, *chest)[11]
    body = body_of(file.read_bytes())
    for length in (len(body) - 500, 300):
        file.write_bytes(body[:length])
        assert reason_of(tmp_path) in (Reason.TRUNCATED, Reason.UNREADABLE)


def test_meta_information_without_a_syntax(tmp_path, chest, write_series):
    for file in write_series(tmp_path, *chest):
        whole = file.read_bytes()
        at = whole.index(b"\2\0\x10\0UI")
        length = int.from_bytes(whole[at + 6 : at + 8], "little")
        group = int.from_bytes(whole[140:144], "little") - 8 - length
        file.write_bytes(whole[:140] + group.to_bytes(4, "little") + whole[144:at] + whole[at + 8 + length :])
    np.testing.assert_array_equal(read_dicom(tmp_path).hu_DHW, chest[0])


def test_compressed_pixels_without_a_syntax_are_not_guessed(tmp_path, chest, write_series, recode):
    for file in write_series(tmp_path, *chest):
        recode(file, gdcm.TransferSyntax.JPEGLSLossless)
        file.write_bytes(body_of(file.read_bytes()))
    assert reason_of(tmp_path) == Reason.UNSUPPORTED_SYNTAX


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\x08\0\x05\0",
        bytes(1024),
        b"\x08\0\x05\0CS\x0a\0ISO_IR 100",  # one element and the end
        b"\x08\0\x05\0CS\x0a\0ISO_IR 100\x08\0\x05\0CS\x0a\0ISO_IR 100" * 3,  # not in order
        b"\x08\0\x05\0CS\x0b\0ISO_IR 1001" * 3,
        b"\x08\0\x05\0\xff\xff\xff\x7f" * 30,
        b" \x08\0\x05\0CS\x0a\0ISO_IR 100\x08\0\x08\0CS\2\0AB\x08\0\x16\0UI\2\0001.",  # a byte too many
        b"plain text, of no meaning" * 30,
    ],
)
def test_what_may_be_anything_is_no_data_set(head):
    assert bare_syntax(head) == ""


def test_other_files_beside_slices_are_left_alone(tmp_path, chest, write_series):
    """Ten thousand random beginnings in one file each would take long: these are the usual ones."""
    write_series(tmp_path, *chest)
    (tmp_path / "notes").write_bytes(b"\x08\0\x05\0CS\x0a\0ISO_IR 100 and so on" * 9)
    report = pydicom.Dataset()
    report.StudyDate, report.StudyTime, report.AccessionNumber = "20200101", "100000", "1"
    pydicom.filewriter.dcmwrite(tmp_path / "report", report, implicit_vr=True, little_endian=True)
    image = read_dicom(tmp_path)
    np.testing.assert_array_equal(image.hu_DHW, chest[0])
    assert image.flags == ()


# -- what stands before the pixels, or instead of them ----------------------------------------------------------------


@pytest.mark.parametrize("megabytes", [[20], [9, 9], [3, 30, 1]])
def test_long_private_elements_before_the_pixels_are_passed_over(tmp_path, chest, write_series, megabytes):
    def edit(d, dataset):
        block = dataset.private_block(0x0051, "VENDOR", create=True)
        for n, size in enumerate(megabytes if d == 4 else []):
            block.add_new(n, "OB", bytes(size << 20))

    write_series(tmp_path, *chest, edit=edit)
    np.testing.assert_array_equal(read_dicom(tmp_path).hu_DHW, chest[0])


@pytest.mark.parametrize(("runs", "reached"), [(1, True), (2, False)])
def test_what_is_passed_over_buys_no_further_header(tmp_path, chest, write_series, monkeypatch, runs, reached):
    """Runs of 40 kB with a long element after each: two are more than a header of 64 kB has."""
    monkeypatch.setattr(headers, "MAX_HEADER_BYTES", 2**16)
    monkeypatch.setattr(headers, "MAX_ITEMS", 2**10)

    def edit(_, dataset):
        for run in range(runs):
            block = dataset.private_block(0x0051 + 2 * run, "VENDOR", create=True)
            for number in range(200):
                block.add_new(number, "OB", bytes(192))
            block.add_new(0xFF, "OB", bytes(2**16))

    file = write_series(tmp_path, *chest, edit=edit)[0]
    assert (headers.HeaderReader().read(file).pixels_at is not None) == reached


def test_pixels_in_a_private_element_only_are_named(tmp_path, chest, write_series):
    def edit(_, dataset):
        dataset.private_block(0x07A1, "VENDOR", create=True).add_new(0x0A, "OW", dataset.PixelData)
        del dataset.PixelData

    write_series(tmp_path, *chest, edit=edit)
    assert reason_of(tmp_path) == Reason.UNSUPPORTED_SYNTAX


@pytest.mark.parametrize(("keyword", "kind"), [("FloatPixelData", np.float32), ("DoubleFloatPixelData", np.float64)])
def test_floating_point_pixels_are_named(tmp_path, chest, write_series, keyword, kind):
    def edit(d, dataset):
        setattr(dataset, keyword, chest[0][d].astype(kind).tobytes())
        del dataset.PixelData

    write_series(tmp_path, *chest, edit=edit)
    assert reason_of(tmp_path) == Reason.UNSUPPORTED_SYNTAX


def test_no_pixels_at_all_are_truncated(tmp_path, chest, write_series):
    write_series(tmp_path, *chest, edit=lambda d, ds: d == 3 and delattr(ds, "PixelData"))
    assert reason_of(tmp_path) == Reason.TRUNCATED


# -- numbers in another form ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vr", ["LO", "LT", "UT", "UN", "SH", "FD"])
def test_pixel_spacing_of_another_type(tmp_path, chest, write_series, vr):
    def edit(_, dataset):
        text = np.array([5.5, 5.0]).tobytes() if vr == "FD" else b"5.5\\5.0 "
        tag = Tag("PixelSpacing")
        dataset._dict[tag] = RawDataElement(tag, vr, len(text), text, 0, False, True, True)

    write_series(tmp_path, *chest, edit=edit)
    image = read_dicom(tmp_path)
    np.testing.assert_array_equal(image.hu_DHW, chest[0])
    assert image.spacing_mm[1:] == (5.5, 5.0)


@pytest.mark.parametrize("keyword", ["ImagerPixelSpacing", "NominalScannedPixelSpacing"])
def test_the_spacing_of_a_detector_is_not_that_of_a_ct(tmp_path, chest, write_series, keyword):
    def edit(_, dataset):
        setattr(dataset, keyword, dataset.PixelSpacing)
        del dataset.PixelSpacing

    write_series(tmp_path, *chest, edit=edit)
    assert reason_of(tmp_path) == Reason.BAD_SPACING


@pytest.mark.parametrize("length", [0.996, 1.004, 0.99])
def test_directions_of_another_length_are_normalised(tmp_path, chest, write_series, length):
    """Spacing is that of PixelSpacing, and slices lie as far apart as they do."""
    edit = lambda _, ds: setattr(ds, "ImageOrientationPatient", [length, 0, 0, 0, length, 0])  # noqa: E731
    write_series(tmp_path, *chest, edit=edit)
    np.testing.assert_allclose(read_dicom(tmp_path).spacing_mm, (8.0, 5.5, 5.0), rtol=1e-9)


def test_directions_far_from_unit_length_are_refused(tmp_path, chest, write_series):
    write_series(tmp_path, *chest, edit=lambda _, ds: setattr(ds, "ImageOrientationPatient", [0.9, 0, 0, 0, 0.9, 0]))
    assert reason_of(tmp_path) == Reason.BAD_AFFINE


# -- what is no file --------------------------------------------------------------------------------------------------


@pytest.mark.timeout(30)
def test_pipes_sockets_and_devices_in_a_folder_are_not_opened(tmp_path, chest, write_series, monkeypatch):
    write_series(tmp_path / "scan", *chest)
    monkeypatch.chdir(tmp_path / "scan")  # a socket's name is short
    os.mkfifo("pipe.dcm")
    (tmp_path / "scan" / "link.dcm").symlink_to("pipe.dcm")
    (tmp_path / "scan" / "zeros.dcm").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.dcm")
        image = read_dicom(tmp_path / "scan")
    np.testing.assert_array_equal(image.hu_DHW, chest[0])
    assert Flag.DAMAGED_BESIDE not in image.flags
    assert reason_of(tmp_path / "scan" / "pipe.dcm") == Reason.UNREADABLE
