"""A scan that cannot be read: prepare, doctor, embed and risk refuse it alone, and with the same reason."""

import errno
import json
import os
import shutil
import socket

import pyarrow.parquet as parquet
import pytest

from data.given.study import Study
from data.volumes.prepare_study import PreparedVolume, prepare_study
from ttepretrain.commands.main import run
from ttepretrain.errors import BadStudy
from ttepretrain.volume import nifti, refusal
from ttepretrain.volume.spec import PRESETS

CANARY = "CANARY7731"
KEYS = ["a.nii.gz", "b.nii", "c.nii.gz"]


def by_prepare(archive, _export, out) -> dict[str, str | None]:
    results = [prepare_study(Study(key, key), archive, out, PRESETS["small"]) for key in KEYS]
    assert all(CANARY not in str(result) for result in results)
    return {result.study_id: None if isinstance(result, PreparedVolume) else result.code for result in results}


def by_doctor(archive, _export, out) -> dict[str, str | None]:
    run(["doctor", str(archive), "--preset", "small", "--json", str(out / "d.json")])
    text = (out / "d.json").read_text()
    assert CANARY not in text
    return dict(zip(KEYS, (finding["code"] for finding in json.loads(text)["findings"])))


def by_embed(archive, export, out) -> dict[str, str | None]:
    run(["embed", str(export), str(archive), "-o", str(out / "e.parquet")])
    return in_files(out / "e.parquet")


def by_risk(archive, export, out) -> dict[str, str | None]:
    run(["risk", str(export), str(archive), "--horizons", "30", "-o", str(out / "r.parquet")])
    return in_files(out / "r.parquet")


def in_files(output) -> dict[str, str | None]:
    records = parquet.read_table(output.with_name("quarantine.parquet")).to_pylist()
    assert CANARY not in str(records)
    written = dict.fromkeys(parquet.read_table(output)["key"].to_pylist())
    return written | {record["key"]: record["code"] for record in records}


COMMANDS = {"prepare": by_prepare, "doctor": by_doctor, "embed": by_embed, "risk": by_risk}


@pytest.fixture
def archive(scans, tmp_path):
    """Three scans, a, b and c."""
    folder = tmp_path / "archive"
    folder.mkdir()
    for key, source in zip(KEYS, ("a.nii.gz", "sub/b.nii", "sub/c.nii.gz")):
        shutil.copy(scans / source, folder / key)
    return folder


@pytest.fixture
def out(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.fixture
def raising(monkeypatch):
    """Make the reader raise `error` for b.nii; gives the waits between attempts."""
    waits = []
    monkeypatch.setattr(refusal.time, "sleep", waits.append)

    def arrange(error):
        def read(path, real=nifti.read_nifti):
            if path.name == "b.nii":
                raise error
            return real(path)

        monkeypatch.setattr(nifti, "read_nifti", read)
        return waits

    return arrange


def os_error(number) -> OSError:
    return OSError(number, os.strerror(number), CANARY)


RAISED = {
    "EIO": (os_error(errno.EIO), "UNREADABLE"),
    "ENXIO": (os_error(errno.ENXIO), "UNREADABLE"),
    "EACCES": (os_error(errno.EACCES), "PERMISSION"),
    "ZeroDivisionError": (ZeroDivisionError(CANARY), "UNEXPECTED"),
    "RuntimeError": (RuntimeError(CANARY), "UNEXPECTED"),
    "BadStudy": (BadStudy("NOT_HU", "of no use"), "NOT_HU"),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("fault", RAISED)
def test_a_fault_refuses_one_scan_with_the_same_reason_in_every_command(archive, export, out, raising, command, fault):
    error, code = RAISED[fault]
    waits = raising(error)
    assert COMMANDS[command](archive, export, out) == {"a.nii.gz": None, "b.nii": code, "c.nii.gz": None}
    assert waits == (list(refusal.WAIT_SECONDS) if fault == "EIO" else [])


def make_socket(path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)


ODD = {
    "socket": make_socket,
    "pipe": os.mkfifo,
    "loop": lambda path: path.symlink_to(path.name),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("odd", ODD)
def test_an_odd_file_refuses_one_scan(archive, export, out, monkeypatch, command, odd):
    monkeypatch.chdir(archive)  # the path of a socket is short
    (archive / "b.nii").unlink()
    ODD[odd](archive / "b.nii")
    assert COMMANDS[command](archive, export, out) == {"a.nii.gz": None, "b.nii": "UNREADABLE", "c.nii.gz": None}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        os_error(errno.ENOMEM),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ],
    ids=["MemoryError", "ENOMEM", "torch"],
)
def test_lack_of_memory_refuses_one_scan(archive, export, out, raising, command, error):
    """One large scan never stops a run; where memory is short for all, the limit on bad studies does."""
    raising(error)
    assert COMMANDS[command](archive, export, out) == {"a.nii.gz": None, "b.nii": "OUT_OF_MEMORY", "c.nii.gz": None}


@pytest.mark.parametrize("command", COMMANDS)
def test_an_interruption_is_no_refusal(archive, export, out, raising, command):
    raising(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        COMMANDS[command](archive, export, out)


def test_torch_reports_lack_of_memory_in_these_words():
    torch = pytest.importorskip("torch")
    with pytest.raises(RuntimeError, match=refusal.TORCH_MEMORY):
        torch.empty(2**58, dtype=torch.uint8)
