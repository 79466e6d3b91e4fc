"""One job per folder; the lock of a dead job is no lock."""

import os
import signal
import subprocess
import sys

import pytest

from ttepretrain.errors import IntegrityError
from ttepretrain.lock import folder_lock

HOLD = """
import sys, time
from pathlib import Path
from ttepretrain.lock import folder_lock

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
