"""What reads a command's standard output decides nothing of its work."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ttepretrain.errors import ExitCode


def run(*arguments, **streams) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "ttepretrain", *map(str, arguments)]
    return subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, timeout=120, **streams)


@pytest.fixture
def unread():
    """Writing end of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


def test_a_reader_that_has_gone_does_not_stop_the_work(tmp_path, unread):
    report = tmp_path / "report.json"
    (tmp_path / "bad.nii").write_bytes(b"bad")
    done = run("doctor", tmp_path / "bad.nii", "--json", report, stdout=unread)
    assert done.returncode == ExitCode.BAD_DATA
    assert json.loads(report.read_text())["scans"] == 1
    assert "Traceback" not in done.stderr


def test_a_reader_that_has_gone_is_no_error_of_info(export, unread):
    done = run("info", export, stdout=unread)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux only")
def test_standard_output_on_a_full_disk_is_said_in_one_line(export):
    with Path("/dev/full").open("w") as full:
        done = run("info", export, stdout=full)
    assert done.returncode == ExitCode.RESOURCES
    assert done.stderr == "ttepretrain: error: standard output cannot be written: No space left on device\n"
