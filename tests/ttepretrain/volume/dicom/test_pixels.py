"""Stored bit patterns to HU: every one of them, against Python's own integers."""

import numpy as np
import pytest

from ttepretrain.volume.dicom.pixels import Storage, to_hu

AIR = -1024


def expected_hu(pattern: int, storage: Storage) -> float:
    """One bit pattern by the book: mask, sign, padding, scale, clip. A single padding value may use all 16 bits."""
    bits = storage.bits if storage.clear else 16
    value = pattern % 2**bits
    if storage.signed and value >= 2 ** (bits - 1):
        value -= 2**bits
    if storage.padding is not None and storage.padding[0] <= value <= storage.padding[1]:
        return AIR
    whole = pattern - 65536 * (storage.signed and pattern >= 32768)
    if storage.padding is not None and storage.padding[0] == storage.padding[1] == whole:
        return AIR
    hu = value * storage.slope + storage.intercept
    return hu if storage.slope % 1 or storage.intercept % 1 else min(max(hu, -32768), 32767)


@pytest.mark.parametrize("padding", [None, (-2000, -2000), (63536, 63536), (0, 0), (4000, 40000)])
@pytest.mark.parametrize("scale", [(1, -1024), (1, 0), (1, 1000), (1, -32768), (1, 40000), (2, -1024), (0.5, -1023.5)])
@pytest.mark.parametrize(("bits", "clear"), [(12, True), (16, True), (12, False)])
@pytest.mark.parametrize("signed", [False, True])
def test_every_bit_pattern(signed, bits, clear, scale, padding):
    storage = Storage(bits, signed, clear, padding, float(scale[0]), float(scale[1]))
    stored_HW = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    hu_HW = to_hu(stored_HW, storage)
    assert hu_HW.dtype == (np.float32 if scale[0] % 1 else np.int16)
    sample = [*range(0, 2**16, 7), 63536]  # the last is -2000, too
    np.testing.assert_allclose(hu_HW.ravel()[sample], [expected_hu(pattern, storage) for pattern in sample], rtol=1e-6)
    np.testing.assert_array_equal(stored_HW.ravel(), np.arange(2**16))  # what was read is left as it was
