"""Formats that are not read are named, by content and by suffix, with what to do; pipes and devices are not opened."""

import gzip
import io
import os
import socket
import struct
import tarfile
import zipfile

import nibabel
import numpy as np
import pytest
import SimpleITK

from ttepretrain.errors import BadStudy
from ttepretrain.volume.preprocess import read_ct
from ttepretrain.volume.source import source_files

VOXELS = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)


def refusal_of(path) -> tuple[str, str]:
    with pytest.raises(BadStudy) as refusal:
        read_ct(path)
    return str(refusal.value.code), refusal.value.detail


def by_simpleitk(path):
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(VOXELS), str(path))


def by_nibabel(path):
    kind = {".mgh": nibabel.MGHImage, ".mgz": nibabel.MGHImage, ".img": nibabel.Nifti1Pair}[path.suffix]
    kind(VOXELS.astype(np.int32), np.eye(4)).to_filename(path)


def analyze(path):
    nibabel.AnalyzeImage(VOXELS, np.eye(4)).to_filename(path.with_suffix(".img"))
    path.with_suffix(".img").unlink()


def archive(path):
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("0001.dcm", b"\0" * 128 + b"DICM")
        return
    with tarfile.open(path, "w:gz" if path.suffix in (".tgz", ".gz") else "w") as file:
        file.addfile(tarfile.TarInfo("0001.dcm"), io.BytesIO())


WRITERS = {
    "scan.mha": (by_simpleitk, "a MetaImage; convert"),
    "scan.mhd": (by_simpleitk, "a MetaImage; convert"),
    "scan.nrrd": (by_simpleitk, "an NRRD file; convert"),
    "scan.nhdr": (by_simpleitk, "an NRRD file; convert"),
    "scan.png": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(400)), "a picture for screens"),
    "scan.tif": (lambda path: path.write_bytes(b"II*\0" + bytes(400)), "a picture for screens"),
    "scan.mgh": (by_nibabel, "a FreeSurfer volume; convert"),
    "scan.mgz": (by_nibabel, "a FreeSurfer volume; convert"),
    "scan.img": (by_nibabel, "half of a .hdr/.img pair; convert"),
    "scan.hdr": (analyze, "Analyze 7.5, which does not tell left from right; convert"),
    "scan.npy": (lambda path: np.save(path, VOXELS), "a NumPy file"),
    "scan.npz": (lambda path: np.savez(path, VOXELS), "an archive; unpack"),
    "scan.h5": (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(400)), "HDF5"),
    "scan.zip": (archive, "an archive; unpack"),
    "scan.tar": (archive, "an archive; unpack"),
    "scan.tar.gz": (archive, "an archive; unpack"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_format_that_is_not_read_is_named(tmp_path, name):
    write, expected = WRITERS[name]
    folder = tmp_path / "one"
    folder.mkdir()
    write(folder / name)
    for path in (folder / name, folder):
        code, detail = refusal_of(path)
        assert (code, detail.startswith(expected)) == ("NOT_DICOM", True), detail


@pytest.mark.parametrize("name", [name for name in WRITERS if not name.endswith((".mgz", ".tar.gz"))])
def test_nor_does_the_name_of_a_nifti_file_hide_it(tmp_path, name):
    """Renamed to .nii, the content still says what it is."""
    write, expected = WRITERS[name]
    write(tmp_path / name)
    (tmp_path / name).rename(tmp_path / "renamed.nii")
    code, detail = refusal_of(tmp_path / "renamed.nii")
    if name in ("scan.mgh", "scan.img"):
        assert (code, detail) == ("NOT_NIFTI", "no single-file NIfTI magic")  # neither has a beginning of its own
    else:
        assert (code, detail.startswith(expected)) == ("NOT_NIFTI", True), detail


def test_a_nifti_file_under_another_name_is_told_to_be_renamed(tmp_path, chest, write_nifti):
    write_nifti(tmp_path / "scan.nii", *chest).rename(tmp_path / "scan.nifti")
    assert refusal_of(tmp_path / "scan.nifti")[1].startswith("NIfTI under another name")


def test_dicom_of_any_name_is_read(tmp_path, chest, write_series):
    for number, file in enumerate(write_series(tmp_path / "scan", *chest)):
        file.rename(file.with_name(f"{number}.{('img', 'hdr', 'zip', 'raw')[number % 4]}"))
    np.testing.assert_array_equal(read_ct(tmp_path / "scan").hu_DHW, chest[0])
    (tmp_path / "scan" / "thumbnail.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(400))
    np.testing.assert_array_equal(read_ct(tmp_path / "scan").hu_DHW, chest[0])


def test_a_damaged_file_names_no_format(tmp_path):
    for content in (b"", b"\0" * 400, b"hello", struct.pack("<i", 349) * 100):
        (tmp_path / "one").write_bytes(content)
        code, detail = refusal_of(tmp_path / "one")
        assert not any(word in detail for word in ("convert", "unpack", "rename")), detail
        (tmp_path / "one.nii.gz").write_bytes(gzip.compress(content))
        assert refusal_of(tmp_path / "one.nii.gz")[0] == "NOT_NIFTI"
        assert code != "UNEXPECTED"


@pytest.fixture
def special(tmp_path):
    """Function: name -> a pipe, a socket, or links to a pipe and a device, which would block or never end."""
    os.mkfifo(tmp_path / "pipe")
    kept = []

    def make(kind, path):
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "socket":
            here = os.open(path.parent, os.O_RDONLY)
            kept.append(socket.socket(socket.AF_UNIX))
            kept[-1].bind(f"/proc/self/fd/{here}/{path.name}")
            os.close(here)
        else:
            path.symlink_to({"link to a pipe": tmp_path / "pipe", "link to a device": "/dev/zero"}[kind])

    yield make
    for open_socket in kept:
        open_socket.close()


@pytest.mark.parametrize("kind", ["pipe", "socket", "link to a pipe", "link to a device"])
@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz", "scan.dcm", "scan"])
def test_what_is_no_regular_file_is_refused_without_opening_it(tmp_path, special, kind, name):
    special(kind, tmp_path / name)
    assert refusal_of(tmp_path / name) == ("UNREADABLE", "neither a file nor a folder")
    with pytest.raises(BadStudy, match="neither a file nor a folder"):
        source_files(tmp_path / name)


@pytest.mark.parametrize("kind", ["pipe", "socket", "link to a pipe", "link to a device"])
def test_inside_a_folder_only_regular_files_are_read(tmp_path, special, chest, write_series, kind):
    files = write_series(tmp_path / "scan", *chest)
    special(kind, tmp_path / "scan" / "0999.dcm")
    np.testing.assert_array_equal(read_ct(tmp_path / "scan").hu_DHW, chest[0])
    np.testing.assert_array_equal(read_ct(files[0]).hu_DHW, chest[0])
    assert source_files(tmp_path / "scan") == sorted(files)
