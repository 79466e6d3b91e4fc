"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]

# Two test processes share two cores; more threads only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the clone the tests run from."""
    return REPOSITORY


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """Folder of real data (TTE_FIXTURES, default ../shared/fixtures); skips where it is absent."""
    folder = Path(os.environ.get("TTE_FIXTURES", REPOSITORY.parent / "shared" / "fixtures"))
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} does not exist (set TTE_FIXTURES)")
    return folder
