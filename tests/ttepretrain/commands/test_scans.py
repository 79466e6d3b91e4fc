"""What INPUT means: files, DICOM folders, folders of many, tables; keys; nothing overlooked."""

import errno
import inspect
import os
import sys
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


def test_folders_behind_links_are_read_once_and_real_ones_keep_their_name(tmp_path):
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    for name in ("case/IM1", "many/a/IM1"):
        (elsewhere / name).parent.mkdir(parents=True)
        (elsewhere / name).write_bytes(DICOM)
    (root / "z").mkdir(parents=True)
    (root / "z" / "x.nii").touch()
    for name, target in {"1_case": elsewhere / "case", "2_again": elsewhere / "case", "a": root / "z",
                         "many": elsewhere / "many"}.items():  # fmt: skip
        (root / name).symlink_to(target)
    assert keys(root) == ["z/x.nii", "1_case", "many/a"]
    (tmp_path / "root2").symlink_to(root)
    assert keys(tmp_path / "root2") == ["z/x.nii", "1_case", "many/a"]


def test_loops_of_links_end(tmp_path):
    root = tmp_path / "root"
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "x.nii").touch()
    (root / "a" / "b" / "up").symlink_to("..")
    (root / "self").symlink_to(".")
    (root / "outside").symlink_to("../..")
    (root / "itself").symlink_to("itself")
    (root / "x").symlink_to("y")
    (root / "y").symlink_to("x")
    assert keys(root) == ["a/x.nii"]


def test_a_tree_deeper_than_pythons_stack_is_read(tmp_path):
    depth = 300
    (tmp_path / ("d/" * depth)).mkdir(parents=True)
    (tmp_path / ("d/" * depth) / "x.nii").touch()
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 150)
    try:
        assert keys(tmp_path) == ["d/" * depth + "x.nii"]
    finally:
        sys.setrecursionlimit(limit)


def test_nifti_below_a_dicom_folder_is_not_swallowed(tmp_path):
    """One stray DICOM file at the top must not turn an archive into one scan."""
    for name in ("scout.dcm", "p1/IM1", "p1/deeper/IM2"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(DICOM)
    (tmp_path / "p2").mkdir()
    (tmp_path / "p2" / "x.nii.gz").touch()
    assert keys(tmp_path) == [tmp_path.name, "p2/x.nii.gz"]


def fill(folder, name, content=b"1"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


ASIDE = {
    "archives": (["scans.zip", "p/more.tar.gz"], "2 x archive (unpack it)", "WARNING"),
    "pairs": (["x.hdr", "x.img"], "2 x file in a format that is not read (convert it to NIfTI)", "WARNING"),
    "other formats": (["x.mha", "y.nrrd"], "2 x file in a format that is not read (convert it to NIfTI)", "WARNING"),
    "without suffix": (["notes"], "1 x file that is no DICOM beside other scans", "WARNING"),
    "hidden": ([".x.nii", ".cache/y.nii"], "2 x hidden file or folder", "INFO"),
    "documents": (["a.csv", "b.pdf", "DICOMDIR"], "2 x document; 1 x DICOMDIR", "INFO"),
}


@pytest.mark.parametrize("kind", ASIDE)
def test_what_is_passed_over_is_counted_in_one_line_without_names(tmp_path, caplog, kind):
    files, message, level = ASIDE[kind]
    folder = tmp_path / "CANARY"
    for name in ["scan.nii", *files]:
        fill(folder, name)
    with caplog.at_level("INFO"):
        assert keys(folder) == ["scan.nii"]
    (record,) = caplog.records
    assert record.levelname == level
    assert record.message.startswith(f"passed over in INPUT: {message}")
    assert "CANARY" not in record.message


@pytest.mark.timeout(60)
def test_pipes_sockets_devices_and_links_into_nothing_are_passed_over_and_counted(tmp_path, caplog):
    fill(tmp_path, "scan.nii")
    os.mkfifo(tmp_path / "IM1")
    (tmp_path / "IM2").symlink_to("/dev/zero")
    (tmp_path / "IM3").symlink_to("nowhere")
    (tmp_path / "IM4").symlink_to("IM4")
    assert keys(tmp_path) == ["scan.nii"]
    assert "2 x link that leads nowhere (restore its target); 2 x pipe, socket or device" in caplog.text


@pytest.mark.timeout(60)
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda p: p.symlink_to(p.name)])
@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_a_table_that_is_no_file_is_refused(tmp_path, make, name):
    make(tmp_path / name)
    with pytest.raises(ConfigError, match=r"INPUT .* is no regular file"):
        find_scans([tmp_path / name])


def test_a_lowest_folder_of_unknown_files_is_a_scan_that_will_be_refused(tmp_path):
    for name in ("p/x.hdr", "p/x.img", "q/x.mha", "r/IM1", "s/only.zip", "t/DICOMDIR"):
        fill(tmp_path, name)
    assert sorted(keys(tmp_path)) == ["p", "q", "r"]


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_folders_and_files_of_others_are_refused_and_not_overlooked(tmp_path):
    """Listed but not entered, entered but not listed, and files that may not be read."""
    for name in ("noenter/IM1", "nolist/x.nii", "noread/IM1", "noread/below/y.nii", "link/z.nii"):
        fill(tmp_path / "root", name)
    (tmp_path / "root" / "tolink").symlink_to(tmp_path / "root" / "noenter" / "IM1")
    root = tmp_path / "root"
    for name, mode in {"noenter": 0o444, "nolist": 0o111, "noread/IM1": 0}.items():
        (root / name).chmod(mode)
    for folder in (tmp_path, *list(tmp_path.parents)[:3]):
        folder.chmod(folder.stat().st_mode | 0o055)
    told, child = os.pipe()
    if (pid := os.fork()) == 0:
        os.setgid(65534)
        os.setuid(65534)
        try:
            os.write(child, "\n".join(keys(root)).encode())
        except BaseException as error:
            os.write(child, repr(error).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    expected = ["root", "link/z.nii", "noenter", "nolist", "noread", "noread/below/y.nii"]
    assert os.read(told, 10_000).decode().split("\n") == expected


def test_a_key_is_text_whatever_the_name(tmp_path):
    for name in (b"\xe9.nii", b"case \xff/IM1"):
        path = tmp_path / os.fsdecode(name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(DICOM)
    assert keys(tmp_path) == [r"\xe9.nii", r"case \xff"]
    (tmp_path / r"\xe9.nii").touch()
    with pytest.raises(ConfigError, match="1 of 3 scans have the same key"):
        find_scans([tmp_path])


def test_an_argument_that_cannot_be_looked_at_is_named(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: File name too long"):
        find_scans([tmp_path / ("x" * 300)])


CSV = {
    "semicolon": ("key;image\n1;a.nii\n", ["1"]),
    "tab": ("key\timage\n1\ta.nii\n", ["1"]),
    "mark": ("\ufeffkey,image\n1,a.nii\n", ["1"]),
    "old line ends": ("key,image\r1,a.nii\r2,b.nii", ["1", "2"]),
    "blank lines": ("key,image\n\n1,a.nii\n\n", ["1"]),
    "quoted": ('"key","image","note"\n"1,0","a.nii","a ""b"""\n', ["1,0"]),
    "a note of two lines": ('key,image,note\n1,a.nii,"first\nsecond"\n2,b.nii,x\n', ["1", "2"]),
    "inches": ('key,image,note\n1,a.nii,5" tube\n', ["1"]),
    "NA": ("key,image\nNA,a.nii\nnull,b.nii\n", ["NA", "null"]),
}


@pytest.mark.parametrize("kind", CSV)
def test_csv_as_people_write_it(tmp_path, kind):
    text, expected = CSV[kind]
    (tmp_path / "t.csv").write_text(text, newline="")
    assert keys(tmp_path / "t.csv") == expected


WRONG_CSV = {
    "swallowed rows": ('key,image\n1,"CANARY\n2,b.nii\n3,c"\n4,d.nii\n', "line 2: a cell begins with a quotation mark"),
    "never closed": ('key,image\n1,a.nii\n2,"CANARY\n3,c.nii\n', "line 3: a quotation mark is not closed"),
    "text after": ('key,image\n1,"CANARY"x\n', "line 2: a quotation mark is not closed, or text follows"),
    "cells": ("key,image\n1,a.nii\n2,CANARY,b.nii\n", "line 3: 3 cells, but the header has 2"),
    "few cells": ("key,image,note\n1,CANARY\n", "line 2: 2 cells, but the header has 3"),
    "no header": ("CANARY,/scans/CANARY.nii\n", "key is not there"),
    "twice": ("key,image,key\n1,a,CANARY\n", "key is twice"),
    "Latin-1": (b"key,image\nCANARY\xe9,a.nii\n", "not UTF-8 text; convert it"),
    "UTF-16": ("key,image\n1,CANARY\n".encode("utf-16"), "not UTF-8 text; convert it"),
    "long": ("key,image\n1," + "CANARY" * 30_000 + "\n", "line 2: "),
}


@pytest.mark.parametrize("kind", WRONG_CSV)
def test_errors_of_a_table_name_the_line_and_no_cell(tmp_path, kind):
    text, message = WRONG_CSV[kind]
    (tmp_path / "t.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=message) as refused:
        find_scans([tmp_path / "t.csv"])
    assert "CANARY" not in str(refused.value).replace(str(tmp_path), "")


def test_errors_of_a_parquet_table_hold_no_cell(tmp_path):
    parquet.write_table(pa.table({"key": [["CANARY"]], "image": ["a.nii"]}), tmp_path / "t.parquet")
    with pytest.raises(ConfigError, match="is not a table: ") as refused:
        find_scans([tmp_path / "t.parquet"])
    assert "CANARY" not in str(refused.value)
