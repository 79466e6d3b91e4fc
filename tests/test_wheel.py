"""The wheel: `ttepretrain` alone, installed in a bare environment beside a user's own data.py and ehr.py."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.source


@pytest.fixture(scope="module")
def wheel(repository, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    uv = repository / ".uv" / "bin" / "uv"
    if not uv.exists():
        pytest.skip("no .uv/bin/uv: the environment was not made by `make setup`")
    subprocess.run([uv, "build", "--quiet", "--wheel", "--out-dir", folder], cwd=repository, check=True, timeout=120)
    return next(folder.glob("*.whl"))


def test_the_wheel_installs_one_top_level_name(wheel):
    names = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"ttepretrain"}


def test_the_wheel_says_that_it_has_types(wheel):
    assert "ttepretrain/py.typed" in zipfile.ZipFile(wheel).namelist()


def test_a_checkpoint_loads_and_embeds_beside_a_users_data_and_ehr_modules(wheel, tmp_path):
    from ttepretrain.testing import write_tiny_export

    write_tiny_export(tmp_path / "export")
    home = tmp_path / "home"
    home.mkdir()
    for decoy in ("data.py", "ehr.py"):
        (home / decoy).write_text("raise RuntimeError('the user\\'s own module was imported by the library')\n")
    bare = tmp_path / "bare"
    venv.create(bare, with_pip=False)
    site = bare / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    zipfile.ZipFile(wheel).extractall(site)
    # The locked dependencies are lent by this environment; the library itself comes from the wheel.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (home / "embed.py").write_text(
        "import ttepretrain, torch\n"
        "from ttepretrain import load_encoder\n"
        f"encoder = load_encoder({str(tmp_path / 'export')!r})\n"
        "volume = torch.full((1, *encoder.spec.shape_DHW), -1000, dtype=torch.int16)\n"
        "print(ttepretrain.__file__)\n"
        "print(*encoder.embed_hu(volume).shape)\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [bare / "bin" / "python", "embed.py"], cwd=home, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    where, shape = done.stdout.splitlines()
    assert Path(where).is_relative_to(site)
    assert np.prod([int(n) for n in shape.split()]) > 0
