"""Pixels that decode although they were lost, or whose scaling was, are refused or flagged."""

import gdcm
import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate, generate_frames

from ttepretrain.errors import BadStudy
from ttepretrain.volume.checks import Flag, Reason
from ttepretrain.volume.dicom.reader import read_dicom

SYNTAXES = [
    gdcm.TransferSyntax.JPEGLosslessProcess14,
    gdcm.TransferSyntax.JPEGLosslessProcess14_1,
    gdcm.TransferSyntax.JPEGLSLossless,
    gdcm.TransferSyntax.JPEG2000Lossless,
]


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("kept", [0.5, 0.9])
def test_a_codestream_that_goes_over_into_zeros_is_refused(tmp_path, chest, write_series, recode, syntax, kept):
    """What a download leaves that was given its room before. Zeros behind a whole one are padding."""
    files = write_series(tmp_path, *chest)
    for file in files:
        recode(file, syntax)
    dataset = pydicom.dcmread(files[4])
    (frame,) = generate_frames(dataset.PixelData, number_of_frames=1)

    def write(codestream):
        dataset.PixelData = encapsulate([codestream])
        dataset.save_as(files[4])

    write(frame + bytes(6))
    np.testing.assert_array_equal(read_dicom(tmp_path).hu_DHW, chest[0])
    whole = int(kept * len(frame))
    write(frame[:whole] + bytes(len(frame) - whole))
    with pytest.raises(BadStudy) as refusal:
        read_dicom(tmp_path)
    assert refusal.value.code == Reason.UNREADABLE


@pytest.mark.parametrize("value", [0, 1024, 65535])
@pytest.mark.parametrize("at", [0, 5])
def test_a_slice_of_one_value_is_flagged(tmp_path, chest, write_series, value, at):
    pixels = np.full(chest[0].shape[1:], value, np.uint16).tobytes()
    write_series(tmp_path, *chest, edit=lambda d, ds: d == at and setattr(ds, "PixelData", pixels))
    assert read_dicom(tmp_path).flags == (Flag.CONSTANT_SLICE,)


@pytest.mark.parametrize("copies", [(3, 4), (0, 11)])
def test_one_picture_at_two_positions_is_flagged(tmp_path, chest, write_series, copies):
    hu_DHW = chest[0].copy()
    hu_DHW[copies[1]] = hu_DHW[copies[0]]
    write_series(tmp_path, hu_DHW, chest[1])
    assert read_dicom(tmp_path).flags == (Flag.REPEATED_SLICE,)


@pytest.mark.parametrize(
    ("keyword", "values", "flags"),
    [
        ("RescaleIntercept", [-1024] * 7 + [0] * 5, (Flag.RESCALE_VARIES,)),
        ("RescaleIntercept", [-1024] * 11 + [0], (Flag.RESCALE_VARIES,)),
        ("RescaleSlope", [1] * 11 + [2], (Flag.RESCALE_VARIES,)),
        ("RescaleSlope", ["1", "1.0"] * 6, ()),
    ],
)
def test_scaling_that_changes_along_the_stack_is_flagged(tmp_path, chest, write_series, keyword, values, flags):
    """A scan stored in two ways looks like one of which a part lost its scaling."""
    write_series(tmp_path, *chest, edit=lambda d, ds: setattr(ds, keyword, values[d]))
    assert read_dicom(tmp_path).flags == flags


def test_scaling_that_changes_with_the_sign_is_not_flagged(tmp_path, chest, write_series):
    def edit(d, dataset):
        if d % 2:
            dataset.PixelRepresentation, dataset.RescaleIntercept = 1, 0
            dataset.PixelData = chest[0][d].tobytes()

    write_series(tmp_path, *chest, edit=edit)
    image = read_dicom(tmp_path)
    np.testing.assert_array_equal(image.hu_DHW, chest[0])
    assert image.flags == ()
