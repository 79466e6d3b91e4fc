"""A small INSPECT release, written once and copied for every test that damages it."""

import shutil
from pathlib import Path

import pytest

from data.testing import load_module

release = load_module(Path(__file__).with_name("inspect_release.py"))


@pytest.fixture(scope="session")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inspect")
    release.write_inspect(folder, release.NUM_STUDIES)
    return folder


@pytest.fixture
def inspect(original, tmp_path):
    return shutil.copytree(original, tmp_path / "inspect")
