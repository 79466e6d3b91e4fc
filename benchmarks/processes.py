"""What this process and those below it use: time of processors and memory.

Memory of several processes together is the sum of their proportional set sizes (PSS), in which a page that n processes
share counts 1/n in each. Resident sizes (RSS) would count libraries and Ray's object store once per process.

    python -m benchmarks.processes PID      watches PID until its own input ends, then prints the peak in MiB
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jobs.provenance import REPOSITORY

EVERY_S = 0.25  # between two looks; a look takes about 10 ms per GiB


def main() -> None:
    """A process of its own, so that a busy interpreter does not delay the looks; it leaves itself out."""
    watched, peak = int(sys.argv[1]), 0.0
    print("watching", flush=True)
    while not select.select([sys.stdin], [], [], EVERY_S)[0]:
        peak = max(peak, sum(map(pss_mib, tree(watched) - {os.getpid()})))
    print(round(peak))


@contextmanager
def watched_memory() -> Iterator[list[int]]:
    """After the block the list holds one number: peak MiB of this process and all below it together, as PSS."""
    command = [sys.executable, "-m", "benchmarks.processes", str(os.getpid())]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as watcher:
        watcher.stdout.readline()
        peak: list[int] = []
        yield peak
        peak.append(int(watcher.communicate()[0]))


def tree(root: int) -> set[int]:
    """Numbers of the process and of all below it."""
    parents = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            parents[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
    below, found = {root}, set()
    while below:
        found |= below
        below = {child for child, parent in parents.items() if parent in below}
    return found


def workers() -> list[Path]:
    """/proc folders of this process and of the Ray workers below it."""
    named = (Path("/proc") / str(number) for number in sorted(tree(os.getpid())))
    return [p for p in named if p.name == str(os.getpid()) or (p / "cmdline").read_bytes().startswith(b"ray::")]


def cpu_seconds(process: Path) -> float:
    user, system = (process / "stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def forget_peak(process: Path) -> None:
    (process / "clear_refs").write_text("5")


def peak_rss_mib(process: Path) -> int:
    return int(_field(process / "status", "VmHWM")) >> 10


def pss_mib(number: int) -> float:
    """0 of a process that has ended."""
    with suppress(OSError, KeyError):
        return int(_field(Path("/proc") / str(number) / "smaps_rollup", "Pss")) / 1024
    return 0.0


def _field(path: Path, name: str) -> str:
    """KiB of the line `name: 123 kB`."""
    lines = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
    return lines[name].split()[0]


if __name__ == "__main__":
    main()
