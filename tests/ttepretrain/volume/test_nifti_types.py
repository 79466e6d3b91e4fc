"""NIfTI of every number type reads as nibabel reads it, scaled; what is no number of one part is refused."""

import struct

import nibabel
import numpy as np
import pytest

from ttepretrain.errors import BadStudy
from ttepretrain.volume.nifti import read_nifti
from ttepretrain.volume.preprocess import read_ct

DATATYPE, BITPIX = 70, 72  # byte offsets in a NIfTI-1 header
# slope and intercept that bring HU into each type; unsigned ones store no value below zero
SCALING = {"u1": (12.0, -1024.0), "i1": (12.0, 400.0)}
NO_NUMBERS = {
    "complex64": (32, 64), "complex128": (1792, 128), "complex256": (2048, 256), "RGB": (128, 24), "RGBA": (2304, 32),
    "float128": (1536, 128), "bit": (1, 1), "none": (0, 0),
}  # fmt: skip


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
@pytest.mark.parametrize("image_class", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_every_number_type_equals_nibabel(tmp_path, chest, image_class, kind, order):
    hu_DHW, affine = chest
    slope, intercept = SCALING.get(kind, (1.0, -1024.0 if kind[0] == "u" else 0.0))
    stored = np.rint((hu_DHW.astype(float) - intercept) / slope).astype(kind)
    image = image_class(stored.transpose(2, 1, 0), affine[:, [2, 1, 0, 3]], dtype=stored.dtype)
    image.header.set_slope_inter(slope, intercept)
    image = image_class(stored.transpose(2, 1, 0), image.affine, image.header.as_byteswapped(order))
    image.header.set_slope_inter(slope, intercept)
    path = tmp_path / "typed.nii.gz"
    nibabel.save(image, path)
    theirs = nibabel.load(path)
    assert theirs.header.get_data_dtype() == np.dtype(order + kind)
    ours = read_ct(path)
    np.testing.assert_allclose(ours.hu_DHW, np.asarray(theirs.dataobj).transpose(2, 1, 0), atol=1e-3)
    assert np.abs(ours.hu_DHW - hu_DHW).max() <= slope / 2
    assert ours.hu_DHW.dtype == np.int16  # every value is whole


@pytest.mark.parametrize(("code", "bits"), NO_NUMBERS.values(), ids=NO_NUMBERS)
def test_complex_colour_and_long_floats_are_refused_by_name(tmp_path, chest, write_nifti, code, bits):
    path = write_nifti(tmp_path / "typed.nii", *chest)
    data = bytearray(path.read_bytes())
    struct.pack_into("<2h", data, DATATYPE, code, bits)
    path.write_bytes(data)
    with pytest.raises(BadStudy, match=rf"UNSUPPORTED_DTYPE.* {code}\b"):
        read_nifti(path)
