"""Padding values: air where they lie below tissue, and no holes in the body where they do not."""

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from ttepretrain.volume.checks import Flag
from ttepretrain.volume.dicom.reader import read_dicom

MUSCLE_HU = 40  # what most of the chest consists of


def padded(stored_DHW, value, limit=None, *, intercept=-1024, signed=0, vr="US"):
    def edit(d, dataset):
        dataset.PixelRepresentation, dataset.RescaleIntercept = signed, intercept
        dataset.PixelData = stored_DHW[d].astype(np.int16 if signed else np.uint16).tobytes()
        dataset.add_new("PixelPaddingValue", vr, value)
        if limit is not None:
            dataset.add_new("PixelPaddingRangeLimit", vr, limit)

    return edit


@pytest.mark.parametrize(
    ("intercept", "signed", "value", "limit"),
    [
        (-1024, 0, 1024 + MUSCLE_HU, None),  # muscle itself
        (-1024, 0, 1024 + MUSCLE_HU, 1025 + MUSCLE_HU),
        (0, 1, MUSCLE_HU, None),
        (0, 1, -200, 200),  # a range of soft tissue
        (0, 1, 200, -200),  # reversed
        (-1024, 0, 65535, 600),  # down from white, into the lungs
        (-1024, 0, 4095, 1000),
    ],
)
def test_padding_among_tissue_is_ignored_and_flagged(tmp_path, chest, write_series, intercept, signed, value, limit):
    """Nothing of the chest becomes air."""
    stored_DHW = chest[0].astype(int) - intercept
    edit = padded(stored_DHW, value, limit, intercept=intercept, signed=signed, vr="SS" if signed else "US")
    write_series(tmp_path, *chest, edit=edit)
    image = read_dicom(tmp_path)
    np.testing.assert_array_equal(image.hu_DHW, chest[0])
    assert image.flags == (Flag.PADDING_DOUBTFUL,)


@pytest.mark.parametrize(
    ("intercept", "signed", "value", "limit", "vr"),
    [
        (-1024, 0, 0, None, "US"),
        (-1024, 0, 0, 20, "US"),
        (-1024, 0, 20, 0, "US"),  # reversed
        (0, 1, -2000, None, "SS"),
        (0, 1, 63536, None, "US"),  # of another sign than the pixels
        (0, 1, 63536, 64000, "US"),
        (0, 1, -2000, 1200, "SS"),  # a range that reaches into tissue leaves its first value
        (-1024, 0, 0, 1100, "US"),
        (-1024, 0, 65535, None, "US"),  # beyond any measurement
        (-1024, 0, -1, None, "SS"),
        (-1024, 1, 32767, None, "SS"),
        (0, 1, -2000, None, "SL"),  # in four bytes
        (0, 1, "-2000", None, "IS"),
    ],
)
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_padding_beyond_tissue_is_air(tmp_path, chest, write_series, intercept, signed, value, limit, vr, syntax):
    stored_DHW = chest[0].astype(int) - intercept
    stored_DHW[:, 0:3, 5:9] = int(value) - 65536 * (signed and int(value) > 32767)
    if syntax == ImplicitVRLittleEndian and vr in ("SL", "IS"):
        pytest.skip("without its type, such a value cannot be told")
    write_series(tmp_path, *chest, edit=padded(stored_DHW, value, limit, intercept=intercept, signed=signed, vr=vr))
    image = read_dicom(tmp_path)
    assert (image.hu_DHW[:, 0:3, 5:9] == -1024).all()
    image.hu_DHW[:, 0:3, 5:9] = chest[0][:, 0:3, 5:9]
    np.testing.assert_array_equal(image.hu_DHW, chest[0])
    into_tissue = (value, limit) in ((-2000, 1200), (0, 1100))
    assert image.flags == ((Flag.PADDING_DOUBTFUL,) if into_tissue else ())


@pytest.mark.parametrize("value", [0, 3000])
def test_a_ring_of_a_tissue_value_becomes_air_outside_the_field_of_view_alone(tmp_path, chest, write_series, value):
    """0 HU in the corners, as in some of the body."""
    rows, columns = np.mgrid[:30, :40]
    outside_HW = (rows - 14.5) ** 2 / 15**2 + (columns - 19.5) ** 2 / 20**2 > 1
    hu_DHW = chest[0].copy()
    hu_DHW[:, 14:17, 19:22] = value
    stored_DHW = np.where(outside_HW, value, hu_DHW)
    write_series(tmp_path, *chest, edit=padded(stored_DHW, value, intercept=0, signed=1, vr="SS"))
    image = read_dicom(tmp_path)
    np.testing.assert_array_equal(image.hu_DHW, np.where(outside_HW, -1024, hu_DHW))
    assert image.flags == (Flag.PADDING_DOUBTFUL,)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_padding_of_each_frame(tmp_path, chest, enhanced, syntax):
    """In an enhanced object, where a conversion found no other place for it."""
    hu_DHW, affine = chest
    stored_DHW = hu_DHW.astype(np.uint16) + np.uint16(1024)
    stored_DHW[::2, :4], stored_DHW[1::2, :4] = 3, 1024 + MUSCLE_HU

    def edit(dataset):
        for d, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence):
            group = Dataset()
            group.add_new("PixelPaddingValue", "US", 1024 + MUSCLE_HU if d % 2 else 3)
            frame.UnassignedPerFrameConvertedAttributesSequence = Sequence([group])
        dataset.PixelData = stored_DHW.tobytes()

    written = enhanced(hu_DHW, affine, range(12), edit)
    written.file_meta.TransferSyntaxUID = syntax
    written.save_as(tmp_path / "one.dcm", enforce_file_format=True)
    image = read_dicom(tmp_path)
    assert (image.hu_DHW[:, :4] == -1024).all()  # in odd frames, as the corners show
    np.testing.assert_array_equal(image.hu_DHW[:, 4:], hu_DHW[:, 4:])
    assert image.flags == (Flag.PADDING_DOUBTFUL,)
