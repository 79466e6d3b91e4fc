"""What INPUT means: files, DICOM folders, folders of many, tables; keys; nothing overlooked."""

import errno
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from ttepretrain.commands.scans import find_scans
from ttepretrain.errors import ConfigError

DICOM = b"\0" * 128 + b"DICM"


@pytest.fixture
def archive(tmp_path):
    """Two studies as DICOM, one as NIfTI, one damaged, and what lies about."""
    root = tmp_path / "archive"
    files = {
        "p1/ct/IM0001": DICOM, "p1/ct/IM0002.dcm": DICOM, "p1/ct/deeper/1.2.840.77": DICOM,
        "p2/scan.nii.gz": b"", "p2/report.txt": b"", "p2/IM/1": DICOM,
        "p3/broken/IM1": b"damaged", "p4/table.csv": b"", "DICOMDIR": DICOM, "autorun.inf": b"", "top.NII": b"",
        ".cache/x.nii": b"", "p2/.hidden.nii": b"",
    }  # fmt: skip
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def keys(*inputs) -> list[str]:
    return [scan.key for scan in find_scans(inputs)]


def test_a_folder_of_many_gives_every_scan_once_with_its_relative_path(archive):
    scans = find_scans([archive])
    assert [scan.key for scan in scans] == ["top.NII", "p1/ct", "p2/scan.nii.gz", "p2/IM", "p3/broken"]
    assert all(scan.path == archive / scan.key for scan in scans)


def test_a_dicom_folder_is_one_scan_named_after_itself(archive, monkeypatch):
    assert keys(archive / "p1" / "ct") == ["ct"]
    monkeypatch.chdir(archive / "p1" / "ct")
    assert keys(*[type(archive)(".")]) == ["ct"]


def test_a_file_is_one_scan_named_after_itself(archive):
    assert keys(archive / "p2/scan.nii.gz", archive / "p1/ct/IM0002.dcm") == ["scan.nii.gz", "IM0002.dcm"]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table_gives_its_keys_as_text_and_its_paths_relative_to_itself(tmp_path, suffix):
    table = pa.table({"key": [10, 9], "image": ["a/b.nii", "/elsewhere/c"], "age": [50, 60]})
    path = tmp_path / f"scans.{suffix}"
    if suffix == "csv":
        path.write_text("key,age,image\n010,50,a/b.nii\n9,60,/elsewhere/c\n")
    else:
        parquet.write_table(table, path)
    scans = find_scans([path])
    assert [scan.key for scan in scans] == (["010", "9"] if suffix == "csv" else ["10", "9"])
    assert [str(scan.path) for scan in scans] == [str(tmp_path / "a/b.nii"), "/elsewhere/c"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("study,image\n1,a.nii\n", "needs the columns key and image in its first line; key is not there"),
        ("key,image\n1,a.nii\n,b.nii\n3,\n", "2 rows without key or image"),
        ("key,image\n1,a.nii\n1,b.nii\n", "1 of 2 scans have the same key as another"),
        ("key,image\n", "contains no NIfTI file and no DICOM folder"),
        ("key,image\n1,a.nii,x\n", "is not a table: "),
        ("", "is not a table: "),
    ],
)
def test_tables_that_cannot_be_meant_are_refused(tmp_path, text, message):
    (tmp_path / "scans.csv").write_text(text)
    with pytest.raises(ConfigError, match=message):
        find_scans([tmp_path / "scans.csv"])


def test_a_damaged_parquet_table_is_refused(tmp_path):
    (tmp_path / "scans.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ConfigError, match="is not a table: "):
        find_scans([tmp_path / "scans.parquet"])


def test_missing_empty_and_ambiguous_arguments_are_refused(archive, tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        find_scans([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="contains no NIfTI file and no DICOM folder"):
        find_scans([tmp_path / "empty"])
    with pytest.raises(ConfigError, match=r"1 of 2 scans have the same key as another; give a table"):
        find_scans([archive / "top.NII", archive / "top.NII"])


def test_a_folder_that_cannot_be_listed_is_a_scan_that_will_be_refused(tmp_path, monkeypatch):
    """Its scans would be missing without a word."""
    (tmp_path / "open").mkdir()
    (tmp_path / "locked").mkdir()
    (tmp_path / "open" / "x.nii").touch()
    listed = os.scandir

    def closed(path):
        if Path(path).name == "locked":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", closed)
    assert {scan.key for scan in find_scans([tmp_path])} == {"open/x.nii", "locked"}
