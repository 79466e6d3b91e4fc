"""Fixtures shared by all tests."""

import ctypes
import gc
import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]

# Two test processes share two cores; more threads only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

MEMORY_PAGES = Path("/proc/self/statm")
# A full collection takes .2 s. Collect when a test has left this much, and after a file that has left a process large.
GROWN_BYTES, LARGE_BYTES = 300 * 2**20, 2**30


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


class MemoryKeeper:
    """Gives memory that tests have freed back to the system.

    Cycles keep encoders alive until Python collects them, and glibc keeps what is freed: the tests of the encoders
    alone left 3.4 GiB in their process, of which 0.5 GiB were in use.
    """

    def __init__(self) -> None:
        libc = ctypes.CDLL(None)
        self.trim = libc.malloc_trim if MEMORY_PAGES.exists() and hasattr(libc, "malloc_trim") else None
        self.kept_bytes = 0
        self.file = ""

    @staticmethod
    def resident_bytes() -> int:
        return int(MEMORY_PAGES.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        if self.trim is None:  # not Linux with glibc
            return
        file, resident_bytes = nodeid.partition("::")[0], self.resident_bytes()
        other_file, self.file = file != self.file, file
        if resident_bytes > self.kept_bytes + GROWN_BYTES or (other_file and resident_bytes > LARGE_BYTES):
            gc.collect()
            self.trim(0)
            self.kept_bytes = self.resident_bytes()


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(MemoryKeeper())
