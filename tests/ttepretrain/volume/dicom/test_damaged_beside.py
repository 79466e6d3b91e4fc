"""Damaged files that are no slices of the series do not refuse it; those that may be do."""

import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian

from ttepretrain.errors import BadStudy
from ttepretrain.volume.checks import Flag, Reason
from ttepretrain.volume.dicom.choice import Wanted
from ttepretrain.volume.dicom.frames import CT_CLASS
from ttepretrain.volume.dicom.headers import MAX_ITEMS
from ttepretrain.volume.dicom.reader import read_dicom

STRUCTURES = "1.2.840.10008.5.1.4.1.1.481.3"
BODIES = {  # behind the meta information
    "malformed": (b"\x28\x00\x10\x00ZZ\x04\x00x.x.", Reason.UNREADABLE),
    "items": (b"\xfe\xff\x00\xe0\0\0\0\0" * (MAX_ITEMS + 1), Reason.TOO_LARGE),
}


def reason_of(path, wanted=None) -> Reason:
    with pytest.raises(BadStudy) as refusal:
        read_dicom(path, wanted=wanted or Wanted())
    return refusal.value.code


def spoilt(file, body):
    """The file's meta information before that body."""
    whole = file.read_bytes()
    file.write_bytes(whole[: 144 + int.from_bytes(whole[140:144], "little")] + body)


@pytest.mark.parametrize(("body", "reason"), BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("sop_class", [STRUCTURES, CT_CLASS])
def test_an_object_of_another_class_is_no_lost_slice(tmp_path, chest, write_series, body, reason, sop_class):
    """Its meta information states the class; all behind it cannot be read."""
    write_series(tmp_path, *chest)
    (other,) = write_series(
        tmp_path, chest[0][:1], chest[1], series=2, edit=lambda _, ds: setattr(ds, "SOPClassUID", sop_class)
    )
    spoilt(other, body)
    if sop_class == CT_CLASS:
        assert reason_of(tmp_path) == reason
    else:
        np.testing.assert_array_equal(read_dicom(tmp_path).hu_DHW, chest[0])


def no_rows(file):
    dataset = pydicom.dcmread(file)
    del dataset.Rows, dataset.PixelData
    dataset.save_as(file)


def cut_behind_its_uid(file):
    whole = file.read_bytes()
    file.write_bytes(whole[: whole.index(b"\x20\x00\x0e\x00UI") + 80])


@pytest.mark.parametrize("damage", [no_rows, cut_behind_its_uid])
@pytest.mark.parametrize("named", [True, False])
def test_a_damaged_slice_of_another_series_does_not_matter(tmp_path, chest, write_series, damage, named):
    """It says whose it is. The same damage in the series itself refuses it."""
    files = write_series(tmp_path, *chest)
    other = write_series(tmp_path, chest[0][:5], chest[1], series=2)
    wanted = Wanted(series_uid=pydicom.dcmread(files[0]).SeriesInstanceUID) if named else Wanted()
    damage(other[-1])
    np.testing.assert_array_equal(read_dicom(tmp_path, wanted=wanted).hu_DHW, chest[0])
    damage(files[-1])
    assert reason_of(tmp_path, wanted) == Reason.TRUNCATED
    assert reason_of(files[3]) == Reason.TRUNCATED


def test_a_slice_that_was_cut_within_its_series_uid_may_be_of_the_series(tmp_path, chest, write_series):
    files = write_series(tmp_path, *chest)
    write_series(tmp_path, chest[0][:5], chest[1], series=2)
    whole = files[-1].read_bytes()
    files[-1].write_bytes(whole[: whole.index(b"\x20\x00\x0e\x00UI") + 20])
    assert reason_of(tmp_path) == Reason.TRUNCATED


def test_an_empty_file_in_the_folder_of_another_series_is_flagged(tmp_path, chest, write_series):
    write_series(tmp_path / "s1", *chest)
    other = write_series(tmp_path / "s2", chest[0][:5], chest[1], series=2)
    other[2].write_bytes(b"")
    image = read_dicom(tmp_path)
    np.testing.assert_array_equal(image.hu_DHW, chest[0])
    assert Flag.DAMAGED_BESIDE in image.flags


@pytest.mark.parametrize("name", ["s1/x.dcm", "s1/X.DCM", "s3/x.dcm"])
def test_an_empty_file_beside_the_slices_or_beside_none_refuses(tmp_path, chest, write_series, name):
    write_series(tmp_path / "s1", *chest)
    write_series(tmp_path / "s2", chest[0][:5], chest[1], series=2)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"")
    assert reason_of(tmp_path) == Reason.TRUNCATED


def test_a_series_of_which_nothing_can_be_read_is_refused_by_its_damage(tmp_path, chest, write_series):
    """The table asks for it: that it is not there would be half the truth."""
    write_series(tmp_path, *chest)
    lost = write_series(tmp_path, chest[0][:5], chest[1], series=2, syntax=ExplicitVRLittleEndian)
    uid = pydicom.dcmread(lost[0]).SeriesInstanceUID
    for file in lost:
        no_rows(file)
    assert reason_of(tmp_path, Wanted(series_uid=uid)) == Reason.TRUNCATED
