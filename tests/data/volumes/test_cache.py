"""A cached volume comes back exactly, or not at all."""

import hashlib
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.testing import chest
from data.volumes import cache
from data.volumes.cache import VolumeRecord, content_key, hash_voxels, read_crop, read_record, read_volume, write_volume
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
    assert read_record(path, HU.shape) == (record(HU), checksum)


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
        found = read_record(path, HU.shape)
        # a bit that says nothing of the voxels leaves record and voxels as they were
        assert found is None or (found[0] == intact[0] and found[1] != checksum)


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_a_truncated_file_is_as_good_as_absent(cached, keep):
    path, _ = cached
    path.write_bytes(path.read_bytes()[:keep])
    assert read_record(path, HU.shape) is None


def test_a_sound_file_of_another_study_under_this_name_is_as_good_as_absent(tmp_path, cached):
    write_volume(tmp_path / "other.b2nd", chest(2, (9, 20, 31)), record(chest(2, (9, 20, 31))))
    (tmp_path / "other.b2nd").replace(cached[0])
    assert read_record(cached[0], HU.shape) is None


def test_a_file_with_other_voxels_than_were_sealed_is_as_good_as_absent(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_seal", lambda *_: "0" * 64)
    write_volume(tmp_path / "w.b2nd", HU, record(HU))
    monkeypatch.undo()
    assert read_record(tmp_path / "w.b2nd", HU.shape) is None
    assert read_record(tmp_path / "nothing.b2nd", HU.shape) is None


def test_a_sealed_file_of_another_shape_is_as_good_as_absent(cached):
    path, _ = cached
    write_volume(path, HU[1:], record(HU[1:]))
    assert read_record(path, HU.shape) is None
    assert read_record(path, HU[1:].shape) is not None


def test_a_folder_in_a_files_place_is_absent_and_gives_way(cached):
    path, checksum = cached
    path.unlink()
    path.mkdir()
    (path / "chunk").write_bytes(b"of blosc2's sparse frames")
    assert read_record(path, HU.shape) is None
    assert write_volume(path, HU, record(HU)) == checksum
    assert path.is_file()


# --- a part of a volume

LARGE = np.pad(HU, ((40, 41), (50, 43), (60, 65)), mode="reflect")  # 2 x 3 x 3 chunks of 45 x 38 x 52
BOXES = [((0, 0, 0), LARGE.shape), ((46, 40, 60), (30, 30, 40)), ((44, 37, 51), (2, 2, 2)), ((89, 112, 155), (1, 1, 1))]


@pytest.fixture
def large(tmp_path):
    write_volume(tmp_path / "v.b2nd", LARGE, record(LARGE))
    return tmp_path / "v.b2nd"


def bytes_read() -> int:
    return int(re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())[1])


@pytest.mark.parametrize(("start", "shape"), BOXES)
def test_a_crop_is_that_part_of_the_volume(large, start, shape):
    crop_DHW = read_crop(large, start, shape)
    assert crop_DHW.dtype == np.int16
    np.testing.assert_array_equal(crop_DHW, LARGE[tuple(slice(a, a + n) for a, n in zip(start, shape))])


@pytest.mark.skipif(sys.platform != "linux", reason="counts bytes in /proc")
def test_a_crop_reads_fewer_bytes_than_the_volume(large):
    """One chunk of 18, read twice (to check it and to unpack it), besides head and tail."""
    read_crop(large, *BOXES[1])
    before = bytes_read()
    read_crop(large, *BOXES[1])
    assert bytes_read() - before < large.stat().st_size / 4


def test_a_crop_is_right_or_refused_whatever_byte_of_the_file_is_flipped(large):
    good, (start, shape) = large.read_bytes(), BOXES[2]  # it meets eight chunks
    expected = LARGE[tuple(slice(a, a + n) for a, n in zip(start, shape))]
    refused = 0
    positions = [*range(200), *np.linspace(200, len(good) - 400, 200).astype(int), *range(len(good) - 400, len(good))]
    for position in positions:
        damaged = bytearray(good)
        damaged[position] ^= 1 << position % 8
        large.write_bytes(damaged)
        try:
            np.testing.assert_array_equal(read_crop(large, start, shape), expected)
        except IntegrityError:
            refused += 1
    assert refused > 200  # the rest lies in chunks it does not meet, or says nothing of voxels


def test_a_crop_of_a_foreign_file_is_refused(large):
    large.rename(large.with_name("w.b2nd"))
    with pytest.raises(IntegrityError, match=r"damaged; run jobs\.prepare"):
        read_crop(large.with_name("w.b2nd"), *BOXES[1])
    with pytest.raises(FileNotFoundError):
        read_crop(large, *BOXES[1])


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
