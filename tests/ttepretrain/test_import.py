"""`import ttepretrain` is light, and its lazy names are there."""

import subprocess
import sys
import tomllib

import pytest

import ttepretrain


def test_importing_the_library_imports_no_torch_and_nothing_heavy():
    code = (
        "import sys, ttepretrain, ttepretrain.commands.main, ttepretrain.tasks, ttepretrain.labels\n"
        "import ttepretrain.models.config\n"
        "dir(ttepretrain)\n"
        "heavy = {'torch', 'monai', 'pyarrow', 'nibabel', 'pydicom', 'omegaconf', 'pandas', 'polars'}\n"
        "print(*heavy & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("\n", "")


def test_public_names_load_on_first_use():
    for name in ttepretrain.__all__:
        assert getattr(ttepretrain, name) is not None
    assert callable(ttepretrain.load_encoder)
    assert set(ttepretrain.__all__) <= set(dir(ttepretrain))
    with pytest.raises(AttributeError, match="no attribute 'load_decoder'"):
        ttepretrain.load_decoder  # noqa: B018


@pytest.mark.source
def test_the_version_is_the_packages(repository):
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    assert ttepretrain.__version__ == project["version"]
