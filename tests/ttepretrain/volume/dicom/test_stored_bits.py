"""BitsStored against the values themselves: signs, marks in unused bits, values that need more."""

import _CharLS
import gdcm
import numpy as np
import pydicom
import pytest
from openjpeg.utils import encode_array
from pydicom.encaps import encapsulate
from pydicom.uid import (
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from ttepretrain.volume.checks import Flag
from ttepretrain.volume.dicom.reader import read_dicom

RING = -2000  # stored outside the field of view by one vendor, in 13 signed bits with an intercept of -1024


@pytest.fixture(scope="module")
def chest(chest):
    """Padded to 36 rows: the encoder of JPEG 2000 takes no fewer than 32."""
    return np.pad(chest[0], ((0, 0), (0, 6), (0, 0)), constant_values=-1000), chest[1]


@pytest.fixture(scope="module")
def ringed(chest):
    """Stored values of the chest, HU + 1024, with a ring of -2000; and its HU with air there."""
    hu_DHW, affine = chest
    stored_DHW, expected_DHW = hu_DHW.astype(np.int16) + np.int16(1024), hu_DHW.copy()
    for values_DHW, value in ((stored_DHW, RING), (expected_DHW, -1024)):
        values_DHW[:, :, :3] = values_DHW[:, :, -3:] = value
    return stored_DHW, expected_DHW, affine


def signed_in(bits, stored_DHW, padding=RING):
    def edit(d, dataset):
        dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = bits, bits - 1, 1
        dataset.PixelData = stored_DHW[d].tobytes()
        if padding is not None:
            dataset.add_new("PixelPaddingValue", "SS", padding)

    return edit


def encoded(file, make, syntax):
    dataset = pydicom.dcmread(file)
    dataset.PixelData = encapsulate([make(dataset)])
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(file)


def relabel(file, signed):
    dataset = pydicom.dcmread(file)
    dataset.PixelRepresentation = signed
    if signed:
        del dataset.PixelPaddingValue
        dataset.add_new("PixelPaddingValue", "SS", RING)
    else:
        dataset.add_new("PixelPaddingValue", "US", RING + 65536)
    dataset.save_as(file)


def unsigned_codestream(kind, bits):
    """A codestream that knows no sign, of the lowest `bits` bits of each value."""

    def make(dataset):
        pattern_HW = np.frombuffer(dataset.PixelData, np.uint16).reshape(dataset.Rows, dataset.Columns)
        pattern_HW = pattern_HW & np.uint16((1 << bits) - 1)
        if kind == "jpeg2000":
            return bytes(encode_array(pattern_HW, bits_stored=bits, photometric_interpretation=2))
        # the public function takes the precision from the largest value
        return bytes(_CharLS._encode(pattern_HW.tobytes(), 0, 0, *pattern_HW.shape, 1, bits))

    return make


KINDS = ["native", "big endian", "rle", "jpeg", "jpegls", "jpeg2000", "jpegls of 16 bits", "jpeg2000 of 16 bits"]


@pytest.mark.parametrize("bits", [12, 13, 16])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cut", [True, False])
def test_the_sign_of_fewer_bits_is_extended_in_every_syntax(tmp_path, ringed, write_series, recode, bits, kind, cut):
    """`cut`: the file holds no copies of the sign above the stored bits."""
    stored_DHW, expected_DHW, affine = ringed
    written = (stored_DHW.view(np.uint16) & ((1 << bits) - 1)).astype(np.uint16) if cut else stored_DHW
    files = write_series(tmp_path, expected_DHW, affine, edit=signed_in(bits, written))
    for file in files:
        if kind == "rle":
            dataset = pydicom.dcmread(file)
            dataset.compress(RLELossless, generate_instance_uid=False)
            dataset.save_as(file)
        elif kind == "jpeg":
            relabel(file, 0)  # else the encoder extends the sign
            recode(file, gdcm.TransferSyntax.JPEGLosslessProcess14_1)
            relabel(file, 1)
        elif kind == "big endian":
            recode(file, gdcm.TransferSyntax.ExplicitVRBigEndian)
        elif kind != "native":
            codec, _, sixteen = kind.partition(" ")
            syntax = JPEGLSLossless if codec == "jpegls" else JPEG2000Lossless
            encoded(file, unsigned_codestream(codec, bits if cut and not sixteen else 16), syntax)
    image = read_dicom(tmp_path)
    np.testing.assert_array_equal(image.hu_DHW, expected_DHW)
    assert image.flags == ()


def test_a_codestream_of_fewer_bits_than_the_header_has_no_sign(tmp_path, chest, write_series):
    """An encoder that takes the precision from the largest value: 2,047 in 11 bits is not -1."""
    hu_DHW, affine = chest
    files = write_series(tmp_path, hu_DHW, affine, edit=signed_in(13, hu_DHW + np.int16(1024), None))
    for d, file in enumerate(files):
        encoded(file, unsigned_codestream("jpegls", (hu_DHW[d].max() + 1024).item().bit_length()), JPEGLSLossless)
    image = read_dicom(tmp_path)
    np.testing.assert_array_equal(image.hu_DHW, hu_DHW)
    assert image.flags == ()


@pytest.mark.parametrize("cut", [True, False])
def test_signed_hu_of_twelve_bits(tmp_path, chest, write_series, cut):
    """Intercept 0: most values are negative, and zero lies between fat and muscle."""
    written = (chest[0].view(np.uint16) & 4095).astype(np.uint16) if cut else chest[0]

    def edit(d, dataset):
        signed_in(12, written, None)(d, dataset)
        dataset.RescaleIntercept = 0

    write_series(tmp_path, *chest, edit=edit)
    image = read_dicom(tmp_path)
    np.testing.assert_array_equal(image.hu_DHW, chest[0])
    assert image.flags == ()


@pytest.fixture(scope="module")
def with_metal(chest):
    """The chest with a rod of up to 6,000 HU, which fades over two voxels as a scanner blurs it."""
    hu_DHW = chest[0].astype(np.float64)
    rows, columns = np.mgrid[:36, :40]
    share_HW = np.exp(-((rows - 15) ** 2 + (columns - 20) ** 2) / 8.0)
    return np.round(hu_DHW + share_HW * (6000 - hu_DHW)).astype(np.int16), chest[1]


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("signed", [0, 1])
def test_values_above_the_stated_bits_do_not_wrap(tmp_path, with_metal, write_series, compress, signed):
    """6,000 HU in a header that says 12 bits: read as written and flagged, not 1,904."""
    hu_DHW, affine = with_metal

    def edit(_, dataset):
        dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 12, 11, signed
        if compress:
            dataset.PixelData = encapsulate([unsigned_codestream("jpeg2000", 16)(dataset)])
            dataset["PixelData"].is_undefined_length = True

    write_series(tmp_path, hu_DHW, affine, edit=edit, syntax=JPEG2000Lossless if compress else ExplicitVRLittleEndian)
    image = read_dicom(tmp_path)
    np.testing.assert_array_equal(image.hu_DHW, hu_DHW)
    assert image.flags == (Flag.STRAY_BITS,)


def test_metal_with_a_sharp_edge_does_not_wrap(tmp_path, chest, write_series):
    hu_DHW = chest[0].copy()
    hu_DHW[:, 12:18, 16:24] = 3500
    twelve = lambda _, ds: (setattr(ds, "BitsStored", 12), setattr(ds, "HighBit", 11))  # noqa: E731
    write_series(tmp_path, hu_DHW, chest[1], edit=twelve)
    image = read_dicom(tmp_path)
    np.testing.assert_array_equal(image.hu_DHW, hu_DHW)
    assert image.flags == (Flag.STRAY_BITS,)


@pytest.mark.parametrize("metal_hu", [1500, 2900])
def test_positive_values_that_reach_the_bit_of_the_sign(tmp_path, chest, write_series, metal_hu):
    """Signed by its header and never negative: bone above 1,023 HU is not -3,000."""
    hu_DHW = chest[0].copy()
    hu_DHW[:, 12:18, 16:24] = metal_hu
    hu_DHW[:, 13:17, 17:23] += 20
    write_series(tmp_path, hu_DHW, chest[1], edit=signed_in(12, hu_DHW + np.int16(1024), None))
    image = read_dicom(tmp_path)
    np.testing.assert_array_equal(image.hu_DHW, hu_DHW)
    assert image.flags == (Flag.STRAY_BITS,)


@pytest.mark.parametrize("mark", [0x1000, 0x8000, 0xF000])
def test_an_overlay_in_unused_bits_is_cleared_and_flagged(tmp_path, chest, write_series, mark):
    def edit(d, dataset):
        stored = (chest[0][d].astype(int) + 1024).astype(np.uint16)
        stored[5:8, 10:30:2] |= mark
        stored[20, 5:35] |= mark
        dataset.BitsStored, dataset.HighBit, dataset.PixelData = 12, 11, stored.tobytes()

    write_series(tmp_path, *chest, edit=edit)
    image = read_dicom(tmp_path)
    np.testing.assert_array_equal(image.hu_DHW, chest[0])
    assert image.flags == (Flag.STRAY_BITS,)


def test_a_mismatch_of_sign_in_a_real_file(fixtures):
    """13 signed bits, and a codestream that calls them unsigned. Its corners are -2000, as another decoder has them."""
    from ttepretrain.volume.dicom.coding.decoder import decoded
    from ttepretrain.volume.dicom.headers import HeaderReader
    from ttepretrain.volume.dicom.pixels import Storage, _coded, _fitting, to_hu

    file = fixtures / "dicom_pydicom_odd" / "J2K_pixelrep_mismatch.dcm"
    (stored_HW,) = decoded([_coded(HeaderReader().read(file))])
    storage, flags = _fitting(stored_HW, Storage(13, True, True, None, 1.0, 0.0))
    np.testing.assert_array_equal(to_hu(stored_HW, storage), pydicom.dcmread(file).pixel_array)
    assert flags == ()


@pytest.mark.parametrize("table", [b"\4\0\0\0\x70\x11\1\0", b"\x08\0\0\0\0\0\0\0\x10\0\0\0"])
def test_a_wrong_offset_table_of_one_picture_does_not_matter(tmp_path, chest, write_series, recode, table):
    """All fragments belong to the one picture, whatever the table says."""
    for file in write_series(tmp_path, *chest):
        recode(file, gdcm.TransferSyntax.JPEGLosslessProcess14_1)
        dataset = pydicom.dcmread(file)
        (frame,) = pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1)
        half = len(frame) // 4 * 2
        parts = frame[:half], frame[half:] + b"\0" * (len(frame) % 2)
        items = b"".join(b"\xfe\xff\x00\xe0" + len(part).to_bytes(4, "little") + part for part in parts)
        dataset.PixelData = b"\xfe\xff\x00\xe0" + table + items
        dataset["PixelData"].is_undefined_length = True
        dataset.save_as(file)
    assert dataset.file_meta.TransferSyntaxUID == JPEGLosslessSV1
    np.testing.assert_array_equal(read_dicom(tmp_path).hu_DHW, chest[0])


def test_an_extended_offset_table_is_not_needed(tmp_path, chest, write_series):
    """One that is wrong neither: the fragments tell as much."""
    for file in write_series(tmp_path, *chest):
        encoded(file, unsigned_codestream("jpeg2000", 16), JPEG2000Lossless)
        dataset = pydicom.dcmread(file)
        dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths = b"\x09" * 8, b"\x07" * 8
        dataset.save_as(file)
    np.testing.assert_array_equal(read_dicom(tmp_path).hu_DHW, chest[0])
