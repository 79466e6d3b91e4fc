"""One job per folder, one writer per file; the lock of a dead job is no lock."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from ttepretrain.errors import IntegrityError
from ttepretrain.lock import file_lock, folder_lock

HOLD = """
import sys, time
from pathlib import Path
from ttepretrain.lock import file_lock, folder_lock

with folder_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_holder_is_named_and_a_killed_one_is_taken_over(tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "SLURM_JOB_ID": "4711"}
    arguments = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, env=environment) as other:
        assert other.stdout.readline() == b"held\n"
        with (
            pytest.raises(IntegrityError, match=rf"process {other.pid} on .* \(SLURM job 4711\)"),
            folder_lock(tmp_path),
        ):
            pass
        other.send_signal(signal.SIGKILL)
        other.wait()
    with folder_lock(tmp_path):
        pass


def test_a_folder_is_free_again_after_the_block_even_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), folder_lock(tmp_path):
        raise ZeroDivisionError
    with folder_lock(tmp_path):
        pass


HOLD_FILE = HOLD.replace("folder_lock", "file_lock")


def test_the_writer_of_a_file_is_named_and_a_killed_one_is_taken_over(tmp_path):
    path = tmp_path / "e.parquet"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    arguments = [sys.executable, "-c", HOLD_FILE, str(path)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, env=environment) as other:
        assert other.stdout.readline() == b"held\n"
        message = rf"e\.parquet is in use by process {other.pid} on "
        with pytest.raises(IntegrityError, match=message), file_lock(path):
            pass
        with file_lock(tmp_path / "r.parquet"):  # another file of the folder is free
            pass
        other.send_signal(signal.SIGKILL)
        other.wait()
    with file_lock(path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_file_is_written_by_one_thread_at_a_time(tmp_path):
    """Also where the one before removes the lock while others wait for it."""
    inside, most = [], []

    def write():
        for _ in range(20):
            with file_lock(tmp_path / "q", wait=True):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.001)
                inside.pop()

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(most), max(most)) == (80, 1)
    assert not list(tmp_path.iterdir())


def test_a_disk_without_locks_is_told_as_such(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("ttepretrain.lock.fcntl.flock", fail)
    with pytest.raises(IntegrityError, match=r"cannot be locked \(No locks available\)"), file_lock(tmp_path / "e"):
        pass


@pytest.mark.parametrize("lock", [folder_lock, lambda folder: file_lock(folder / "e.parquet")])
@pytest.mark.parametrize("kind", ["link", "link to nothing", "pipe"])
def test_a_lock_that_somebody_else_laid_there_empties_no_file(tmp_path, lock, kind):
    """In a folder that others may write, such as those below /tmp."""
    precious = tmp_path / "precious"
    precious.write_text("precious")
    for name in (".lock", ".e.parquet.lock"):
        if kind == "pipe":
            os.mkfifo(tmp_path / name)
        else:
            (tmp_path / name).symlink_to(precious if kind == "link" else "nowhere")
    with (
        pytest.raises(IntegrityError, match=r"\.lock is not a regular file, as a lock must be; remove it"),
        lock(tmp_path),
    ):
        pass
    assert precious.read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()
