"""A series is read whole or not at all: no slice of it is left out as another picture, no row cut (B16)."""

import numpy as np
import pydicom
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from ttepretrain.errors import BadStudy
from ttepretrain.volume.checks import Flag, Reason
from ttepretrain.volume.choice import Wanted
from ttepretrain.volume.dicom import read_dicom

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


def test_where_series_have_no_uid_files_without_pictures_are_no_slices(tmp_path, chest, write_series):
    """A report in the folder is left out, a screen may be a slice of the nameless series."""

    def report(_, dataset):
        dataset.SOPClassUID, dataset.Modality = "1.2.840.10008.5.1.4.1.1.88.11", "SR"
        for keyword in ("Rows", "Columns", "PixelData"):
            delattr(dataset, keyword)

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
