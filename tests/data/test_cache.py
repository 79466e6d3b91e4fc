"""A cached volume comes back exactly, or not at all."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from data import cache
from data.cache import VolumeRecord, content_key, hash_voxels, read_record, read_volume, write_volume
from data.testing import chest
from ttepretrain.errors import IntegrityError
from ttepretrain.volume.spec import PRESETS

SPEC = PRESETS["small"]
HU = chest(1, (9, 20, 31))


def record(hu_DHW):
    return VolumeRecord(
        list(hu_DHW.shape), [9.0, 8.0, 7.0], list(np.eye(4).ravel()), ["gantry_tilt"], {"kvp": 120.0, "kernel": None},
        [1.0, 0.5, 0.5], "source", hash_voxels(hu_DHW),
    )  # fmt: skip


@pytest.fixture
def cached(tmp_path):
    checksum = write_volume(tmp_path / "v.b2nd", HU, record(HU))
    return tmp_path / "v.b2nd", checksum


def test_voxels_and_record_come_back_exactly(cached):
    path, checksum = cached
    hu_DHW = read_volume(path, checksum)
    assert hu_DHW.dtype == np.int16
    np.testing.assert_array_equal(hu_DHW, HU)
    assert read_record(path) == (record(HU), checksum)


def test_equal_volumes_give_equal_bytes(tmp_path, cached):
    # a view with other strides is the same volume
    view = np.ascontiguousarray(HU[::-1])[::-1]
    (tmp_path / "elsewhere").mkdir()
    assert write_volume(tmp_path / "elsewhere" / "v.b2nd", view, record(view)) == cached[1]


def test_any_flipped_byte_is_noticed(cached):
    path, checksum = cached
    good = path.read_bytes()
    for position in np.linspace(0, len(good) - 1, 60).astype(int):
        damaged = bytearray(good)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(IntegrityError, match=r"checksum; run jobs\.prepare"):
            read_volume(path, checksum)


def test_a_flipped_bit_in_the_frame_is_as_good_as_absent_and_allocates_nothing(cached):
    """Head and tail say how large the volume is, and of what type: a bit there asks for petabytes, or is no Python."""
    path, checksum = cached
    good = path.read_bytes()
    intact = (record(HU), hashlib.sha256(good).hexdigest())
    assert intact[1] == checksum
    for position in (*range(200), *range(len(good) - 160, len(good))):
        damaged = bytearray(good)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        found = read_record(path)
        # a bit that says nothing of the voxels leaves record and voxels as they were
        assert found is None or (found[0] == intact[0] and found[1] != checksum)


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_a_truncated_file_is_as_good_as_absent(cached, keep):
    path, _ = cached
    path.write_bytes(path.read_bytes()[:keep])
    assert read_record(path) is None


def test_a_sound_file_of_another_study_under_this_name_is_as_good_as_absent(tmp_path, cached):
    write_volume(tmp_path / "other.b2nd", chest(2, (9, 20, 31)), record(chest(2, (9, 20, 31))))
    (tmp_path / "other.b2nd").replace(cached[0])
    assert read_record(cached[0]) is None


def test_a_file_with_other_voxels_than_were_sealed_is_as_good_as_absent(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_seal", lambda *_: "0" * 64)
    write_volume(tmp_path / "w.b2nd", HU, record(HU))
    monkeypatch.undo()
    assert read_record(tmp_path / "w.b2nd") is None
    assert read_record(tmp_path / "nothing.b2nd") is None


def test_the_content_key_changes_with_bytes_grid_and_version_and_not_with_windows(monkeypatch):
    keys = [
        content_key("a", "", SPEC),
        content_key("b", "", SPEC),
        content_key("a", "file", SPEC),
        content_key("a", "", replace(SPEC, spacing_mm=(6.0, 6.0, 5.0))),
        content_key("a", "", replace(SPEC, shape_DHW=(48, 56, 57))),
        content_key("a", "", replace(SPEC, hu_range=(-1000, 3071))),
    ]
    assert content_key("a", "", replace(SPEC, windows=((0.0, 100.0),))) == keys[0]
    monkeypatch.setattr(cache, "PREPROCESS_VERSION", cache.PREPROCESS_VERSION + 1)
    keys.append(content_key("a", "", SPEC))
    assert len(set(keys)) == len(keys)
