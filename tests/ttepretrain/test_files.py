"""Files are whole or absent, no wider open than the umask and the replaced file allow, and leave nothing behind."""

import os
import stat
from pathlib import Path

import pytest

from ttepretrain.files import remove_leftovers, replacing, write_atomic, write_json


@pytest.fixture
def umask():
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(
    ("mask", "wanted", "expected"),
    [(0o022, 0o644, 0o644), (0o077, 0o644, 0o600), (0o027, 0o644, 0o640), (0o000, 0o644, 0o644), (0o000, 0o600, 0o600)],
)
def test_a_file_follows_the_umask(tmp_path, umask, mask, wanted, expected):
    umask(mask)
    write_atomic(tmp_path / "a", b"1", wanted)
    assert mode(tmp_path / "a") == expected
    with replacing(tmp_path / "b", wanted) as part:
        assert mode(part) == expected  # before there is a byte in it
        part.unlink()
        part.write_bytes(b"2")  # as a library does that writes a sibling of its own
    assert mode(tmp_path / "b") == expected


@pytest.mark.parametrize(("before", "after"), [(0o600, 0o600), (0o640, 0o640), (0o666, 0o644), (0o400, 0o600)])
@pytest.mark.usefixtures("umask")
def test_a_replaced_file_keeps_what_its_owner_closed(tmp_path, before, after):
    (tmp_path / "a").write_text("old")
    (tmp_path / "a").chmod(before)
    write_json(tmp_path / "a", {})
    assert mode(tmp_path / "a") == after


def test_leftovers_of_this_file_go_and_those_of_others_stay(tmp_path):
    others = [".b.parquet.12.tmp", ".a.parquet.x.tmp", "a.parquet.12.tmp", ".a.parquet.12.tmp.bak", "a.parquet"]
    for name in [*others, ".a.parquet.12.tmp", ".a.parquet.31337.tmp"]:
        (tmp_path / name).touch()
    remove_leftovers(tmp_path / "a.parquet")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)


def test_what_a_killed_process_of_the_same_number_left_is_replaced(tmp_path):
    (tmp_path / f".a.{os.getpid()}.tmp").write_text("half")
    write_atomic(tmp_path / "a", "whole")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "whole")]
