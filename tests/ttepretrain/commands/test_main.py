"""The command line itself: exit codes, help, `info`."""

import os
import subprocess
import sys

import pytest

from ttepretrain.commands.main import COMMANDS, parser, run
from ttepretrain.errors import IntegrityError


def test_info_describes_the_export(export, capsys):
    run(["info", str(export)])
    text = capsys.readouterr().out
    for expected in (
        "densenet121, norm group, 1024 features", "29 x 30 x 31 voxels", "12 x 11 x 10 mm", "centre -600 width 1500",
        "5; the first: TEST/0, TEST/1, TEST/2", "0, 30, 180, 365, inf days", "100 train subjects",
        "Trained on synthetic data",
    ):  # fmt: skip
        assert expected in text


def test_a_folder_that_is_no_export_is_an_integrity_error(tmp_path, scans):
    with pytest.raises(IntegrityError, match="is no complete export"):
        run(["info", str(tmp_path)])
    with pytest.raises(IntegrityError, match="is no complete export"):
        run(["embed", str(tmp_path), str(scans), "-o", str(tmp_path / "e.parquet")])


@pytest.mark.parametrize(
    ("arguments", "code"),
    [([], 2), (["info"], 2), (["info", "nowhere"], 4), (["--help"], 0), (["embed", "x", "y"], 2)],
)
def test_exit_codes_of_the_command(arguments, code, tmp_path):
    command = [sys.executable, "-c", "from ttepretrain.commands.main import main; main()", *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=path_to_library(), capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr


def test_the_module_is_the_command(export, tmp_path):
    outputs = []
    for how in (["-m", "ttepretrain"], ["-c", "from ttepretrain.commands.main import main; main()"]):
        command = [sys.executable, *how, "info", str(export)]
        done = subprocess.run(command, cwd=tmp_path, env=path_to_library(), capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example_that_parses(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        run([command, "--help"])
    text = capsys.readouterr().out
    example = text.rpartition("example:\n  ttepretrain ")[2].split()
    assert example[0] == command
    assert parser().parse_args(example).command == command
    assert max(map(len, text.splitlines())) <= 100


def path_to_library() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


@pytest.mark.parametrize("arguments", [["info", ""], ["embed", "export", "", "-o", "e.parquet"], ["doctor", ""]])
def test_an_empty_argument_is_not_the_current_folder(arguments, capsys):
    """As `"$SCANS"` is where SCANS was never set."""
    with pytest.raises(SystemExit):
        run(arguments)
    assert "is empty; write . for the current folder" in capsys.readouterr().err


def test_a_path_that_no_export_can_have_is_refused_in_one_line():
    with pytest.raises(IntegrityError, match=r"is no complete export: manifest\.json: File name too long"):
        run(["info", "a" * 300])
