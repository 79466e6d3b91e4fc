"""One study: cached once per content, or refused with a reason that names nobody."""

import errno
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest

from data.given.study import Study
from data.quarantine import Quarantined
from data.testing import chest, write_dicom, write_nifti
from data.volumes import prepare_study as prepare
from data.volumes import trusted
from data.volumes.cache import VolumeRecord, hash_voxels, read_volume, write_volume
from data.volumes.prepare_study import PreparedVolume, prepare_study
from ttepretrain.errors import ResourceError
from ttepretrain.volume import preprocess, refusal
from ttepretrain.volume.preprocess import preprocess_ct
from ttepretrain.volume.spec import VolumeSpec

SPEC = VolumeSpec((14.0, 13.0, 12.0), (12, 16, 20), (-1024, 3071), ((-600.0, 1500.0),))
CANARY = "Smith^John"


@pytest.fixture
def cache(tmp_path):
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path):
    write_nifti(tmp_path / "root" / "a.nii.gz", chest(1))
    write_dicom(tmp_path / "root" / "b", chest(2))
    return tmp_path / "root"


@pytest.mark.parametrize("image", ["a.nii.gz", "b"])
def test_a_study_is_cached_as_the_one_path_makes_it_and_not_made_again(root, cache, image, monkeypatch):
    first = prepare_study(Study("s", image), root, cache, SPEC)
    expected = preprocess_ct(root / image, SPEC)
    hu_DHW = read_volume(cache / f"{first.content_key}.b2nd", first.checksum)
    np.testing.assert_array_equal(hu_DHW, expected.hu_DHW)
    np.testing.assert_array_equal(np.reshape(first.record.affine, (4, 4)), expected.affine)
    assert first.record.shape == [12, 16, 20]
    assert not first.reused

    monkeypatch.setattr(preprocess, "preprocess_ct", None)
    again = prepare_study(Study("s", image), root, cache, SPEC)
    assert again.reused
    assert (again.record, again.checksum) == (first.record, first.checksum)


def test_other_names_and_places_of_the_same_bytes_are_the_same_content(root, cache):
    shutil.copytree(root / "b", root / "c")
    for file in (root / "c").iterdir():
        file.rename(file.with_name(f"z{1000 - int(file.stem)}"))
    first, second = (prepare_study(Study(image, image), root, cache, SPEC) for image in "bc")
    assert second.reused
    assert first.content_key == second.content_key


def test_a_file_replaced_behind_an_unchanged_mtime_is_other_content(root, cache):
    file = root / "a.nii.gz"
    before = prepare_study(Study("s", "a.nii.gz"), root, cache, SPEC)
    stat = file.stat()
    write_nifti(file, chest(99))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    after = prepare_study(Study("s", "a.nii.gz"), root, cache, SPEC)
    assert not after.reused
    assert after.record.voxel_hash != before.record.voxel_hash


@pytest.mark.parametrize("image", ["a.nii.gz", "b"])
def test_trusted_dates_spare_the_hash_and_a_changed_date_does_not(root, cache, image, monkeypatch):
    first = prepare_study(Study(image, image), root, cache, SPEC, trust_mtime=True)
    monkeypatch.setattr(trusted, "source_hash", None)
    again = prepare_study(Study(image, image), root, cache, SPEC, trust_mtime=True)
    assert again.reused
    assert again.content_key == first.content_key
    monkeypatch.undo()
    file = root / image if (root / image).is_file() else sorted((root / image).iterdir())[3]
    data, times = bytearray(file.read_bytes()), file.stat()
    data[-1] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert prepare_study(Study(image, image), root, cache, SPEC, trust_mtime=True).content_key == first.content_key
    os.utime(file)
    changed = prepare_study(Study(image, image), root, cache, SPEC, trust_mtime=True)
    assert isinstance(changed, Quarantined) or changed.content_key != first.content_key  # the gzip one is broken


def test_the_tables_series_and_patient_are_asked_of_the_images(root, cache):
    """Each has its own entry in the cache, so that a later word of the table is not answered from an earlier one."""
    write_dicom(root / "two" / "a", chest(2))
    write_dicom(root / "two" / "b", chest(3)[:-2])
    uids = [pydicom.dcmread(min((root / "two" / name).iterdir())).SeriesInstanceUID for name in "ab"]
    study_uid = pydicom.dcmread(min((root / "two" / "a").iterdir())).StudyInstanceUID
    for file in (root / "two" / "b").iterdir():
        dataset = pydicom.dcmread(file)
        dataset.StudyInstanceUID = study_uid
        dataset.save_as(file)
    by_rule = prepare_study(Study("s", "two", None, None), root, cache, SPEC)
    first, second = (prepare_study(Study("s", "two", uid, None), root, cache, SPEC) for uid in uids)
    assert by_rule.record.voxel_hash == first.record.voxel_hash != second.record.voxel_hash
    assert isinstance(prepare_study(Study("s", "two", uids[1], "nobody"), root, cache, SPEC), PreparedVolume)
    for said, code in (((None, CANARY), "IDENTITY_CONFLICT"), (("1.2.3", None), "NO_SERIES")):
        record = prepare_study(Study("s", "two", *said), root, cache, SPEC)
        assert (record.code, CANARY in record.detail) == (code, False)
    assert isinstance(prepare_study(Study("s", "a.nii.gz", "1.2.3", CANARY), root, cache, SPEC), PreparedVolume)


def test_a_damaged_stamp_is_made_again(root, cache):
    first = prepare_study(Study("s", "b"), root, cache, SPEC, trust_mtime=True)
    [stamp] = cache.glob("*.stamp")
    good = stamp.read_bytes()
    for damaged in (b"", b"[]", b"{}", good[:-9]):
        stamp.write_bytes(damaged)
        assert prepare_study(Study("s", "b"), root, cache, SPEC, trust_mtime=True).content_key == first.content_key
        assert stamp.read_bytes() == good


def test_two_series_in_one_folder_are_told_apart_by_the_file_that_is_named(tmp_path, cache):
    for name, seed in (("one", 1), ("two", 2)):
        write_dicom(tmp_path / name, chest(seed))
        for file in (tmp_path / name).iterdir():
            file.rename(tmp_path / f"{name}-{file.name}")
        (tmp_path / name).rmdir()
    first, second = (prepare_study(Study("s", f"{n}-003.dcm"), tmp_path, cache, SPEC) for n in ("one", "two"))
    assert first.record.source_hash == second.record.source_hash
    assert first.record.voxel_hash != second.record.voxel_hash
    assert first.content_key != second.content_key


def flipped(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]


def of_another_study(file: Path) -> None:
    write_volume(file.with_name("other.b2nd"), *sealed(chest(9, (12, 16, 20))))
    file.with_name("other.b2nd").replace(file)


def folder(file: Path) -> None:
    file.unlink()
    file.mkdir()
    (file / "chunk").touch()


def sealed(hu_DHW: np.ndarray) -> tuple[np.ndarray, VolumeRecord]:
    return hu_DHW, VolumeRecord(list(hu_DHW.shape), [1.0] * 3, [0.0] * 16, [], {}, [1.0] * 3, "", hash_voxels(hu_DHW))


BAD_ENTRIES = {
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-900]),
    "empty": lambda file: file.write_bytes(b""),
    "a flipped bit": lambda file: file.write_bytes(flipped(file.read_bytes())),
    "another study's": of_another_study,
    "another shape, well sealed": lambda file: write_volume(file, *sealed(chest(1, (12, 16, 21)))),
    "no volume": lambda file: file.write_text("CANARY"),
    "a folder": folder,
    "a link to nowhere": lambda file: (file.unlink(), file.symlink_to("nowhere")),
}


@pytest.mark.parametrize("damage", BAD_ENTRIES.values(), ids=BAD_ENTRIES)
def test_a_bad_entry_of_the_cache_is_made_again_to_the_byte(root, cache, damage):
    first = prepare_study(Study("s", "a.nii.gz"), root, cache, SPEC)
    file = cache / f"{first.content_key}.b2nd"
    good = file.read_bytes()
    damage(file)
    again = prepare_study(Study("s", "a.nii.gz"), root, cache, SPEC)
    assert (again.reused, again.checksum) == (False, first.checksum)
    assert file.read_bytes() == good
    assert prepare_study(Study("s", "a.nii.gz"), root, cache, SPEC).reused


def test_an_entry_of_an_earlier_version_is_not_used(root, cache, monkeypatch):
    monkeypatch.setattr("data.volumes.cache.PREPROCESS_VERSION", -1)
    stale = prepare_study(Study("s", "a.nii.gz"), root, cache, SPEC)
    monkeypatch.undo()
    fresh = prepare_study(Study("s", "a.nii.gz"), root, cache, SPEC)
    assert (fresh.reused, fresh.content_key == stale.content_key) == (False, False)


@pytest.mark.parametrize("image", ["a.nii", "b"])
def test_a_flipped_byte_is_seen_where_the_table_gives_the_images_hash(root, cache, image):
    """A3: by itself an uncompressed file looks as good as before. The sum of a folder is what a shell makes of it."""
    write_nifti(root / "a.nii", chest(1))
    command = 'cd "$0" && find -L . -type f -exec sha256sum {} + | cut -c1-64 | LC_ALL=C sort | sha256sum'
    shell = ["bash", "-c", command, root / image] if image == "b" else ["sha256sum", root / image]
    stated = subprocess.run(shell, capture_output=True, text=True, check=True).stdout[:64]
    study = Study("s", image, None, None, stated.upper())
    assert isinstance(prepare_study(study, root, cache, SPEC), PreparedVolume)
    assert prepare_study(study, root, cache, SPEC).reused
    flip(root / image if image == "a.nii" else sorted((root / image).iterdir())[5])
    assert isinstance(prepare_study(Study("s", image), root, cache, SPEC), PreparedVolume)
    for trust_mtime in (False, True):
        record = prepare_study(study, root, cache, SPEC, trust_mtime)
        assert (record.code, record.detail[:9]) == ("HASH_MISMATCH", "the files")


@pytest.mark.parametrize("name", [b"\xff\xfe latin", b"-rf", b"two\nlines", b"x" * 255])
def test_files_of_any_name_inside_a_folder_are_read(root, cache, name):
    file = sorted((root / "b").iterdir())[4]
    file.rename(file.with_name(os.fsdecode(name)))
    assert isinstance(prepare_study(Study("s", "b"), root, cache, SPEC), PreparedVolume)


def refused(image, root, cache) -> Quarantined:
    result = prepare_study(Study("s", image), root, cache, SPEC)
    assert isinstance(result, Quarantined)
    assert (result.study_id, result.stage) == ("s", "volumes")
    assert not list(cache.iterdir())
    assert str(root) not in result.detail
    assert CANARY not in result.detail
    return result


@pytest.mark.parametrize("keep", [0.5, -8])
def test_a_truncated_nifti_is_refused(root, cache, keep):
    file = root / "a.nii.gz"
    data = file.read_bytes()
    file.write_bytes(data[: int(keep * len(data)) if keep > 0 else keep])
    assert refused("a.nii.gz", root, cache).code in ("TRUNCATED", "CRC")


def test_a_series_with_a_missing_slice_is_refused(tmp_path, cache):
    write_dicom(tmp_path / CANARY, chest(2), patient=CANARY)
    (tmp_path / CANARY / "006.dcm").unlink()
    assert refused(CANARY, tmp_path, cache).code == "MISSING_SLICE"


@pytest.mark.parametrize(
    ("image", "code"),
    [
        ("absent.nii.gz", "NOT_FOUND"),
        ("absent", "NOT_FOUND"),
        ("../root/a.nii.gz", "OUTSIDE_ROOT"),
        ("\0", "OUTSIDE_ROOT"),
    ],
)
def test_an_image_that_is_not_there_or_not_ours_is_refused(root, cache, image, code):
    assert refused(image, root, cache).code == code


def test_an_unexpected_exception_is_recorded_by_type_and_place_without_its_message(root, cache, monkeypatch):
    def broken(path, *_):
        raise ZeroDivisionError(f"{CANARY} in {path}")

    monkeypatch.setattr(preprocess, "preprocess_ct", broken)
    record = refused("a.nii.gz", root, cache)
    assert record.code == "UNEXPECTED"
    assert record.detail.startswith("ZeroDivisionError in test_prepare_study.py:")


@pytest.fixture
def flaky_hash(monkeypatch):
    """Make the first `times` reads of a source fail with an errno; gives the list of the waits between attempts."""
    waits = []
    monkeypatch.setattr(refusal.time, "sleep", waits.append)

    def fail(times, number):
        original = hashlib.file_digest

        def file_digest(*arguments):
            nonlocal times
            times -= 1
            if times >= 0:
                raise OSError(number, os.strerror(number))
            return original(*arguments)

        monkeypatch.setattr(hashlib, "file_digest", file_digest)
        return waits

    return fail


def test_an_input_output_error_that_passes_is_waited_for(root, cache, flaky_hash):
    waits = flaky_hash(3, errno.EIO)
    assert isinstance(prepare_study(Study("s", "a.nii.gz"), root, cache, SPEC), PreparedVolume)
    assert waits == list(refusal.WAIT_SECONDS)


def test_an_input_output_error_that_stays_is_refused(root, cache, flaky_hash):
    flaky_hash(9, errno.ESTALE)
    assert refused("a.nii.gz", root, cache).code == "UNREADABLE"


def test_a_full_disk_ends_the_run_rather_than_the_study(root, cache, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match="disk full"):
        prepare_study(Study("s", "a.nii.gz"), root, cache, SPEC)
    assert not list(cache.iterdir())


CHANGED = Quarantined("s", "volumes", "UNREADABLE", "the files changed while they were read")


def flip(file: Path) -> None:
    """Change a byte of the last voxel; size and date stay."""
    stat, data = file.stat(), bytearray(file.read_bytes())
    data[-2] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_a_stamp_that_was_stale_before_is_made_again_and_the_study_kept(root, cache):
    """The voxels lie in the cache under the name of the bytes they were made of, also in later runs."""
    first = prepare_study(Study("s", "b"), root, cache, SPEC, trust_mtime=True)
    (cache / f"{first.content_key}.b2nd").unlink()
    flip(sorted((root / "b").iterdir())[5])
    kept = prepare_study(Study("s", "b"), root, cache, SPEC, trust_mtime=True)
    assert [file.stem for file in cache.glob("*.b2nd")] == [kept.content_key]
    for trust_mtime in (False, True):
        again = prepare_study(Study("s", "b"), root, cache, SPEC, trust_mtime)
        assert (again.reused, again.content_key, again.record) == (True, kept.content_key, kept.record)
    assert kept.record.source_hash != first.record.source_hash


TOUCHES = {
    "hard link": lambda file: os.link(file, file.parent.parent.parent / "backup"),
    "mode": lambda file: file.chmod(0o640),
    "date": os.utime,
    "a copy in its place": lambda file: shutil.copy(file, file.parent.parent / "new").replace(file),
}


@pytest.mark.parametrize("touch", TOUCHES.values(), ids=TOUCHES)
@pytest.mark.parametrize("trust_mtime", [False, True])
def test_a_file_whose_bytes_stay_may_be_touched_while_it_is_read(root, cache, monkeypatch, touch, trust_mtime):
    file = sorted((root / "b").iterdir())[5]
    states = []

    def read_then_touched(*arguments):
        volume = preprocess_ct(*arguments)
        states.append(prepare.source_state(root / "b"))
        touch(file)
        states.append(prepare.source_state(root / "b"))
        return volume

    monkeypatch.setattr(preprocess, "preprocess_ct", read_then_touched)
    assert isinstance(prepare_study(Study("s", "b"), root, cache, SPEC, trust_mtime), PreparedVolume)
    assert states[0] != states[1]


@pytest.mark.parametrize("trust_mtime", [False, True])
def test_a_file_that_changes_while_it_is_read_is_refused(root, cache, monkeypatch, trust_mtime):
    """Even when its size and its date are as before."""
    file = root / "a.nii.gz"

    def read_then_changed(*arguments):
        volume, stat, data = preprocess_ct(*arguments), file.stat(), file.read_bytes()
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        return volume

    monkeypatch.setattr(preprocess, "preprocess_ct", read_then_changed)
    result = prepare_study(Study("s", "a.nii.gz"), root, cache, SPEC, trust_mtime)
    assert result == CHANGED
    assert not list(cache.glob("*.b2nd"))


def test_a_cache_that_is_not_there_is_no_fault_of_the_scan(tmp_path):
    write_nifti(tmp_path / "a.nii.gz", chest(0))
    with pytest.raises(ResourceError, match="the volume cache cannot be used"):
        prepare_study(Study("s", "a.nii.gz"), tmp_path, tmp_path / "nowhere", SPEC)


@pytest.fixture
def counted(root, monkeypatch):
    """Function: prepare the study b -> (result, listings of its folder, files opened, calls of stat per file)."""
    counts = dict.fromkeys(("scandir", "open", "stat"), 0)

    def count(owner, name, key):
        original = getattr(owner, name)

        def counting(path, *arguments, **options):
            counts[key] += isinstance(path, str | Path) and Path(path).is_relative_to(root / "b")
            return original(path, *arguments, **options)

        monkeypatch.setattr(owner, name, counting)

    def run(study, cache, **options):
        counts.update(dict.fromkeys(counts, 0))
        result = prepare_study(study, root, cache, SPEC, **options)
        files = len(list((root / "b").iterdir()))
        return result, counts["scandir"], counts["open"] / files, counts["stat"] / files

    for owner, name, key in ((os, "scandir", "scandir"), (Path, "open", "open"), (os, "stat", "stat")):
        count(owner, name, key)
    return run


@pytest.mark.parametrize("stated", [False, True], ids=["", "image_sha256"])
def test_a_folder_is_listed_before_and_after_reading_and_each_file_opened_for_hash_header_and_pixels(
    root, cache, counted, stated
):
    """Once for both hashes. What is in the cache is listed once, and hashed."""
    sums = sorted(hashlib.sha256(file.read_bytes()).hexdigest() + "\n" for file in (root / "b").iterdir())
    study = Study("s", "b", None, None, hashlib.sha256("".join(sums).encode()).hexdigest() if stated else None)
    result, listings, opened, asked = counted(study, cache)
    assert isinstance(result, PreparedVolume)
    assert (listings, opened) == (2, 3)
    assert asked < 4  # before and after, and a few of the folder
    again, listings, opened, asked = counted(study, cache)
    assert again.reused
    assert (listings, opened) == (1, 1)
    assert asked < 2


def test_trusted_dates_list_a_folder_once_and_open_nothing(cache, counted):
    study = Study("s", "b")
    assert isinstance(counted(study, cache, trust_mtime=True)[0], PreparedVolume)
    again, listings, opened, asked = counted(study, cache, trust_mtime=True)
    assert again.reused
    assert (listings, opened) == (1, 0)
    assert asked < 2


@pytest.mark.parametrize("trust_mtime", [False, True])
@pytest.mark.parametrize("how", ["added", "removed", "replaced"])
def test_a_folder_that_is_being_filled_while_it_is_read_is_refused(root, cache, monkeypatch, how, trust_mtime):
    files = sorted((root / "b").iterdir())

    def read_then_changed(*arguments):
        volume = preprocess_ct(*arguments)
        if how == "removed":
            files[-1].unlink()
        else:
            new = root / "new"
            shutil.copy(files[2], new)
            flip(new)
            new.replace(files[3] if how == "replaced" else root / "b" / "999.dcm")
        return volume

    monkeypatch.setattr(preprocess, "preprocess_ct", read_then_changed)
    assert prepare_study(Study("s", "b"), root, cache, SPEC, trust_mtime) == CHANGED
    assert not list(cache.glob("*.b2nd"))


def test_what_is_added_after_the_listing_is_not_read(root, cache, monkeypatch):
    """The voxels are of the files that were hashed, and of no others."""
    expected = preprocess_ct(root / "b", SPEC).hu_DHW
    files = sorted((root / "b").iterdir())

    def changed_then_read(path, *arguments):
        dataset = pydicom.dcmread(files[-1])
        x, y, z = dataset.ImagePositionPatient
        step = z - pydicom.dcmread(files[-2]).ImagePositionPatient[2]
        dataset.SOPInstanceUID, dataset.ImagePositionPatient = pydicom.uid.generate_uid(), [x, y, z + step]
        dataset.save_as(root / "b" / "999.dcm")
        volume = preprocess_ct(path, *arguments)
        (root / "b" / "999.dcm").unlink()
        return volume

    monkeypatch.setattr(preprocess, "preprocess_ct", changed_then_read)
    result = prepare_study(Study("s", "b"), root, cache, SPEC)
    assert result.record.voxel_hash == hash_voxels(expected)
