"""`embed` and `risk` stopped at any moment keep what is done; run again, they end with the bytes of a whole run."""

import gzip
import os
import re
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pyarrow.parquet as parquet
import pytest

from ttepretrain.errors import ExitCode

# The command with a slow reader and frequent saves, so that signals meet it on the way.
DRIVER = """
import signal, sys, time
from ttepretrain.commands import batches, outputs
from ttepretrain.commands.main import run
from ttepretrain.errors import exit_with
from ttepretrain.volume import refusal

for number in (signal.SIGINT, signal.SIGHUP):  # a shell ignores them in what it starts in the background
    signal.signal(number, signal.SIG_DFL)
outputs.SAVE_SECONDS = outputs.SAVE_SHARE = 0.0
refusal.WAIT_SECONDS = ()
read = batches.preprocess_ct

def slowly(path, spec):
    time.sleep(float(sys.argv[1]))
    return read(path, spec)

batches.preprocess_ct = slowly
exit_with(run, "ttepretrain", sys.argv[2:])
"""
SHAPE = (40, 36, 32)


def start(*arguments, pause=0.0) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", DRIVER, str(pause), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def whole(*arguments) -> str:
    """Standard error of a run to the end."""
    with start(*arguments) as process:
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out + err


def stopped(*arguments, number: int, after_saves: int, again: bool = False) -> int:
    """Exit status of a run that gets the signal after some saves."""
    with start(*arguments, pause=0.05) as process:
        try:
            saves = 0
            for line in process.stderr:
                saves += bool(re.search(r"\d+ scans are in ", line))
                if saves == after_saves:
                    break
            process.send_signal(number)
            if again:
                process.send_signal(number)
            process.communicate(timeout=60)
        finally:
            process.kill()
    return process.returncode


def ct(seed: int) -> np.ndarray:
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij"))
    radius = np.sqrt(((grid / (0.7 + 0.02 * (seed % 10))) ** 2).sum(0))
    return np.where(radius < 0.4, -800, np.where(radius < 1, 30 + seed, -1000)).astype(np.int16)


def save(path: Path, values: np.ndarray) -> None:
    nibabel.save(nibabel.Nifti1Image(values, np.diag([8.0, 9.0, 9.5, 1.0])), path)


def truncated(path: Path) -> None:
    save(path, ct(1))
    path.write_bytes(path.read_bytes()[:-500])


def with_nan(path: Path) -> None:
    save(path, np.where(ct(2) < -900, np.nan, ct(2)).astype(np.float32))


def listening(path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(f"/proc/self/fd/{folder}/{path.name}")
    os.close(folder)


def bomb(path: Path) -> None:
    """A header of 8 GB, compressed."""
    header = bytearray(nibabel.Nifti1Image(ct(3), np.eye(4)).header.binaryblock)
    struct.pack_into("<8h", header, 40, 3, 2000, 2000, 1000, 1, 1, 1, 1)
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(bytes(header) + bytes(1 << 20)))


def folder_of_nothing(path: Path) -> None:
    path.with_suffix("").mkdir()


BAD = [
    truncated,
    with_nan,
    os.mkfifo,
    listening,
    lambda path: path.symlink_to("/proc/self/mem"),  # EIO
    lambda path: save(path, (np.random.default_rng(0).gamma(2, 200, SHAPE)).astype(np.uint16)),  # as MR
    lambda path: save(path, ct(4)[:, :, :1]),  # a localizer
    lambda path: save(path, ct(5)[:, :, :2]),
    folder_of_nothing,
    lambda path: path.symlink_to("nowhere.nii"),
    bomb,
    lambda path: path.symlink_to(path.name),
    lambda path: path.symlink_to("/dev/zero"),
    lambda path: path.write_bytes(b""),
    lambda path: path.mkdir() or (path / "IM1").write_bytes(b"no DICOM"),
]


def make_archive(folder: Path, num: int) -> set[str]:
    """`num` scans of which every tenth is bad, each in another way; keys of the good ones."""
    folder.mkdir()
    for n in range(num):
        path = folder / f"{n:03}.nii"
        BAD[n // 10 % len(BAD)](path) if n % 10 == 7 else save(path, ct(n))
    return {f"{n:03}.nii" for n in range(num) if n % 10 != 7}


def keys_of(output: Path) -> list[str]:
    return parquet.read_table(output)["key"].to_pylist()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("num", [40, pytest.param(200, marks=pytest.mark.chaos)])
def test_a_run_that_is_killed_three_times_embeds_every_good_scan_once(export, tmp_path, num):
    good = make_archive(tmp_path / "scans", num)
    undisturbed, output = tmp_path / "whole" / "e.parquet", tmp_path / "out" / "e.parquet"
    for path in (undisturbed, output):
        path.parent.mkdir()
    command = ["embed", export, tmp_path / "scans", "--batch-size", "2", "-o"]
    whole(*command, undisturbed)
    for number, status in (
        (signal.SIGKILL, -signal.SIGKILL),
        (signal.SIGINT, ExitCode.INTERRUPTED),
        (signal.SIGTERM, ExitCode.INTERRUPTED),
    ):
        before = len(keys_of(output)) if output.exists() else 0
        assert stopped(*command, output, number=number, after_saves=3) == status
        assert before < len(keys_of(output)) < len(good)
    whole(*command, output)
    assert keys_of(output) == sorted(good)
    assert output.read_bytes() == undisturbed.read_bytes()
    same = "quarantine.parquet"
    assert output.with_name(same).read_bytes() == undisturbed.with_name(same).read_bytes()
    assert sorted(path.name for path in output.parent.iterdir()) == ["e.parquet", same]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_risk_resumes_after_a_closed_terminal_with_the_same_bytes(export, tmp_path):
    good = make_archive(tmp_path / "scans", 20)
    undisturbed, output = tmp_path / "whole.parquet", tmp_path / "r.parquet"
    command = ["risk", export, tmp_path / "scans", "--horizons", "30,365", "--batch-size", "2", "-o"]
    whole(*command, undisturbed)
    assert stopped(*command, output, number=signal.SIGHUP, after_saves=2, again=True) == ExitCode.INTERRUPTED
    done = set(keys_of(output))
    assert 0 < len(done) < len(good)
    assert f"20 scans, {len(done)} of them already done" in whole(*command, output)
    assert output.read_bytes() == undisturbed.read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_two_runs_with_one_output_keep_all_rows_of_the_first(export, tmp_path):
    good = make_archive(tmp_path / "scans", 20)
    output = tmp_path / "e.parquet"
    command = ["embed", export, tmp_path / "scans", "--batch-size", "2", "-o", output]
    with start(*command, pause=0.2) as first:
        assert re.search(r"\d+ scans are in e.parquet", "".join(first.stderr.readline() for _ in range(2)))
        with start(*command) as second:
            _, err = second.communicate(timeout=60)
        assert second.returncode == ExitCode.INTEGRITY
        assert f"e.parquet is in use by process {first.pid} on" in err
        first.communicate(timeout=60)
    assert first.returncode == 0
    assert keys_of(output) == sorted(good)
