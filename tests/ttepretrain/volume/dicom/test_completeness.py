"""A series is read whole or not at all: no slice of it is left out as another picture or file, no row cut (B4, B16)."""

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGExtended12Bit,
    RLELossless,
)

from ttepretrain.errors import BadStudy
from ttepretrain.volume.checks import Flag, Reason
from ttepretrain.volume.dicom.choice import Wanted
from ttepretrain.volume.dicom.frames import SECONDARY_CAPTURE
from ttepretrain.volume.dicom.reader import read_dicom

NO_SLICES = {
    "inverted": (lambda ds: setattr(ds, "PhotometricInterpretation", "MONOCHROME1"), Reason.NOT_CT),
    "annotated": (lambda ds: setattr(ds, "BurnedInAnnotation", "YES"), Reason.BURNED_IN),
    "other": (lambda ds: setattr(ds, "Modality", "OT"), Reason.NOT_CT),
    "no modality": (lambda ds: delattr(ds, "Modality"), Reason.NOT_CT),
    "no position": (lambda ds: delattr(ds, "ImagePositionPatient"), Reason.BAD_AFFINE),
}


def reason_of(path, wanted=None) -> Reason:
    with pytest.raises(BadStudy) as refusal:
        read_dicom(path, wanted=wanted or Wanted())
    return refusal.value.code


@pytest.mark.parametrize(("spoil", "reason"), NO_SLICES.values(), ids=NO_SLICES)
@pytest.mark.parametrize("end", [0, 11])
def test_an_end_slice_that_is_no_slice_refuses_its_series(tmp_path, chest, write_series, spoil, reason, end):
    """Also where the table or a file names the series; without it the scan would only be shorter."""
    files = write_series(tmp_path, *chest, edit=lambda d, ds: d == end and spoil(ds))
    assert reason_of(tmp_path) == reason
    assert reason_of(tmp_path, Wanted(series_uid=pydicom.dcmread(files[5]).SeriesInstanceUID)) == reason
    assert reason_of(files[5]) == reason


@pytest.mark.parametrize("spoil", [spoil for spoil, _ in NO_SLICES.values()], ids=NO_SLICES)
def test_such_pictures_of_another_series_are_left_out_and_flagged(tmp_path, chest, write_series, spoil):
    write_series(tmp_path, *chest)
    write_series(tmp_path, *chest, series=2, edit=lambda _, ds: spoil(ds))
    image = read_dicom(tmp_path)
    np.testing.assert_array_equal(image.hu_DHW, chest[0])
    assert image.flags == (Flag.IMAGES_SKIPPED,)


def report(_, dataset, sop_class="1.2.840.10008.5.1.4.1.1.88.11", modality="SR"):
    dataset.SOPClassUID, dataset.Modality = sop_class, modality
    for keyword in ("Rows", "Columns", "PixelData"):
        delattr(dataset, keyword)


OBJECTS = {
    "report": (report, ()),
    "raw data": (lambda d, ds: report(d, ds, "1.2.840.10008.5.1.4.1.1.66", "CT"), ()),
    "screen": (lambda _, ds: setattr(ds, "SOPClassUID", SECONDARY_CAPTURE), (Flag.IMAGES_SKIPPED,)),
    "of another modality": (
        lambda _, ds: (setattr(ds, "SOPClassUID", "1.2.840.10008.5.1.4.1.1.4"), setattr(ds, "Modality", "MR")),
        (Flag.IMAGES_SKIPPED,),
    ),
}


@pytest.mark.parametrize(("edit", "flags"), OBJECTS.values(), ids=OBJECTS)
def test_other_objects_under_the_scans_own_uid_are_left_out_and_flagged(tmp_path, chest, write_series, edit, flags):
    """Dose reports, raw data and screens are often stored so; by their class they are no slices."""
    uid = pydicom.dcmread(write_series(tmp_path, *chest)[0]).SeriesInstanceUID

    def own(d, dataset):
        edit(d, dataset)
        dataset.SeriesInstanceUID = uid

    write_series(tmp_path, chest[0][:1], chest[1], series=2, edit=own)
    image = read_dicom(tmp_path)
    np.testing.assert_array_equal(image.hu_DHW, chest[0])
    assert image.flags == (Flag.OBJECTS_SKIPPED, *flags)


def test_slices_of_a_makers_own_class_are_slices(tmp_path, chest, write_series):
    """The class that the series' other slices have exempts no picture of it."""

    def private(d, dataset):
        dataset.SOPClassUID = "1.2.3.4"
        dataset.PhotometricInterpretation = "MONOCHROME1" if d == 11 else "MONOCHROME2"

    write_series(tmp_path, *chest, edit=private)
    assert reason_of(tmp_path) == Reason.NOT_CT


def test_where_series_have_no_uid_files_without_pictures_are_no_slices(tmp_path, chest, write_series):
    """A report in the folder is left out, a screen may be a slice of the nameless series."""

    def nameless(dataset):
        dataset.SeriesInstanceUID = ""

    write_series(tmp_path, *chest, edit=lambda _, ds: nameless(ds))
    write_series(tmp_path, chest[0][:1], chest[1], series=2, edit=lambda d, ds: (nameless(ds), report(d, ds)))
    (tmp_path / "notes.txt").write_text("nothing")
    np.testing.assert_array_equal(read_dicom(tmp_path).hu_DHW, chest[0])
    write_series(
        tmp_path, chest[0][:1], chest[1], series=3, edit=lambda _, ds: (nameless(ds), setattr(ds, "Modality", "OT"))
    )
    assert reason_of(tmp_path) == Reason.NOT_CT


@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless]
)
@pytest.mark.parametrize(("rows", "reason"), [(-1, Reason.UNREADABLE), (1, Reason.TRUNCATED)])
def test_a_row_more_or_less_than_stated_is_refused(tmp_path, chest, write_series, syntax, rows, reason):
    """The last row of every slice would be cut off: PS3.5 8 leaves no room for other pixels than those stated."""
    native = ExplicitVRLittleEndian if syntax == RLELossless else syntax
    for file in write_series(tmp_path, *chest, syntax=native):
        dataset = pydicom.dcmread(file)
        if syntax == RLELossless:
            dataset.compress(RLELossless, generate_instance_uid=False)
        dataset.Rows += rows
        dataset.save_as(file)
    assert reason_of(tmp_path) == (Reason.UNREADABLE if syntax == RLELossless else reason)


SYNTAX = b"1.2.840.10008.1.2.1\0"  # as written
DAMAGE = {
    "empty": lambda _: b"",
    "zeros": lambda whole: bytes(len(whole)),
    "first block": lambda whole: bytes(512) + whole[512:],
    "cut": lambda whole: whole[:100],
}


def rename(files, pattern):
    """The same files under other names, in order."""
    return [file.rename(file.with_name(pattern.format(number))) for number, file in enumerate(files)]


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("pattern", ["{}.dcm", "IM{:04}", "1.2.840.{}", "-{}.IMA"])
@pytest.mark.parametrize("end", [0, 11])
def test_an_end_slice_without_content_refuses_its_series(tmp_path, chest, write_series, damage, pattern, end):
    """B4: as one in the middle does, which leaves a hole."""
    files = rename(write_series(tmp_path, *chest), pattern)
    files[end].write_bytes(damage(files[end].read_bytes()))
    assert reason_of(tmp_path) == Reason.TRUNCATED
    assert reason_of(files[5]) == Reason.TRUNCATED


def test_a_page_in_the_place_of_a_slice_refuses_its_series(tmp_path, chest, write_series):
    """What a web server says when a download fails, under the slice's name."""
    write_series(tmp_path, *chest)[-1].write_text("<html>502 Bad Gateway</html>" * 20)
    assert reason_of(tmp_path) == Reason.UNREADABLE


@pytest.mark.parametrize("pattern", ["{}.dcm", "IM{:04}"])
def test_what_lies_beside_slices_does_not_matter(tmp_path, chest, write_series, pattern):
    rename(write_series(tmp_path / "scan", *chest), pattern)
    beside = {
        **dict.fromkeys(("_SUCCESS", "DICOMDIR", ".gitkeep", "__init__.py", "0001.json", "3.xml"), b""),
        "readme.txt": b"nothing",
        "README": b"chest 7",
        "Thumbs.db": b"\xd0\xcf\x11\xe0" + bytes(600),
        ".DS_Store": b"\0\0\0\1Bud1" + bytes(600),
        "._7.dcm": b"\0\5\x16\7" + bytes(600),
        "._IM0007": b"\0\5\x16\7" + bytes(600),
        "2.nii.gz": b"\x1f\x8b" + bytes(600),
        "disc.iso": bytes(33_000),
        "4.img": bytes(600),
    }
    for name, content in beside.items():
        (tmp_path / "scan" / name).write_bytes(content)
    image = read_dicom(tmp_path / "scan")
    np.testing.assert_array_equal(image.hu_DHW, chest[0])
    assert image.flags == ()


def test_a_file_of_one_of_many_series_is_read_though_another_file_is_damaged(tmp_path, chest, write_series):
    """It may be of any of them: flagged. A folder of them is refused."""
    files = write_series(tmp_path, *chest)
    other = write_series(tmp_path, chest[0][:5], chest[1], series=2)
    other[2].write_bytes(b"")
    image = read_dicom(files[3])
    np.testing.assert_array_equal(image.hu_DHW, chest[0])
    assert image.flags == (Flag.DAMAGED_BESIDE,)
    assert reason_of(tmp_path) == Reason.TRUNCATED


def resyntax(file, syntax):
    """Another transfer syntax in the meta information, all else untouched."""
    file.write_bytes(file.read_bytes().replace(SYNTAX, syntax.encode().ljust(len(SYNTAX), b"\0"), 1))


@pytest.mark.parametrize("syntax", ["1.2.840.113619.5.2", "1.2.3"])
@pytest.mark.parametrize("end", [0, 11])
def test_an_end_slice_in_an_unknown_syntax_refuses_its_series(tmp_path, chest, write_series, syntax, end):
    """B17: neither its series nor anything else of it can be read."""
    files = write_series(tmp_path, *chest)
    resyntax(files[end], syntax)
    assert reason_of(tmp_path) == Reason.UNSUPPORTED_SYNTAX
    assert reason_of(files[5]) == Reason.UNSUPPORTED_SYNTAX


def test_a_report_in_an_unknown_syntax_does_not_matter(tmp_path, chest, write_series):
    write_series(tmp_path, *chest)
    resyntax(*write_series(tmp_path, chest[0][:1], chest[1], series=2, edit=report), "1.2.3")
    np.testing.assert_array_equal(read_dicom(tmp_path).hu_DHW, chest[0])


def test_a_syntax_that_is_not_read_is_named_before_a_picture_that_is_no_ct(tmp_path, chest, write_series):
    """Of several reasons the one that names a remedy."""
    files = write_series(tmp_path, *chest)
    for d, file in enumerate(files):
        dataset = pydicom.dcmread(file)
        if d == 2:
            dataset.PhotometricInterpretation = "MONOCHROME1"
        else:
            dataset.file_meta.TransferSyntaxUID = JPEGExtended12Bit
            dataset.PixelData = encapsulate([b"none"])
            dataset["PixelData"].is_undefined_length = True
        dataset.save_as(file)
    assert reason_of(tmp_path) == Reason.UNSUPPORTED_SYNTAX
