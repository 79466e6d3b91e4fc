"""After `make setup` a clone has the command, from every folder, without an editable install."""

import os
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pyarrow.parquet as parquet
import pytest

from ttepretrain.testing import write_tiny_export

pytestmark = pytest.mark.source


@pytest.fixture
def run(repository, tmp_path):
    """Runs a program of .venv/bin in a folder outside the clone, with no PYTHONPATH; returns what it printed."""
    programs = repository / ".venv" / "bin"
    if Path(sys.prefix) != repository / ".venv":
        pytest.skip("these tests run in another environment than the one of `make setup`")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(program: str, *arguments: object) -> str:
        command = [str(programs / program), *map(str, arguments)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_the_command_embeds_a_scan_from_another_folder(run, tmp_path):
    write_tiny_export(tmp_path / "export")
    hu = np.full((40, 44, 36), -1000, np.int16)
    hu[8:32, 8:36, 8:28] = 40
    nibabel.save(nibabel.Nifti1Image(hu, np.diag([6.0, 6, 8, 1])), tmp_path / "scan.nii.gz")
    run("ttepretrain", "embed", "export", "scan.nii.gz", "-o", "embeddings.parquet")
    assert parquet.read_table(tmp_path / "embeddings.parquet")["key"].to_pylist() == ["scan.nii.gz"]


def test_the_module_runs_the_code_of_this_clone(run, repository):
    assert "embed" in run("python", "-m", "ttepretrain", "--help")
    found = run("python", "-c", "import ttepretrain; print(ttepretrain.__file__)")
    assert Path(found.strip()).resolve() == repository / "ttepretrain" / "__init__.py"


def test_the_other_folders_of_the_clone_shadow_nobodys_modules(run):
    names = "[name for name in ('data', 'ehr', 'jobs', 'tests') if importlib.util.find_spec(name)]"
    assert run("python", "-c", f"import importlib.util; print({names})").strip() == "[]"
