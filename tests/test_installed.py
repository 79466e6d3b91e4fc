"""What is under test is the installed wheel when the suite runs against one."""

import os
from pathlib import Path

import pytest

import ttepretrain


def test_the_library_under_test_is_the_installed_one():
    if "TTE_INSTALLED" not in os.environ:
        pytest.skip("run from the source tree; tests/installed.sh sets TTE_INSTALLED")
    assert Path(ttepretrain.__file__).is_relative_to(os.environ["TTE_INSTALLED"])
