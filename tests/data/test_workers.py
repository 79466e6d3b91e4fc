"""The parallel map gives every item's result once, whatever happens to the workers."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from data.workers import FOLDER_PREFIX, LEFTOVER_SECONDS, WorkerDied, _session_folder, map_bounded, ray_session
from ttepretrain.lock import folder_lock

pytestmark = pytest.mark.slow

# Workers import nothing from here: pytest's own module names mean nothing to them, so functions travel by value.


@pytest.fixture(scope="module", autouse=True)
def session():
    with ray_session(num_cpus=2):
        yield


def by_value(function):
    function.__module__ = "__main__"
    return function


@by_value
def square(x):
    return x * x


@by_value
def die_on(x, poison):
    import os
    import signal

    if x in poison:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


@by_value
def die_once(x, folder):
    import os
    import signal
    from pathlib import Path

    marker = Path(folder) / str(x)
    if x % 2 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return x


@by_value
def fail_on_three(x):
    if x == 3:
        raise LookupError("three")
    return x


@by_value
def surroundings(_):
    import os
    import sys

    import data.workers

    return {
        "threads": os.environ["OMP_NUM_THREADS"],
        "root": str(data.workers.REPOSITORY),
        "torch": "torch" in sys.modules,
        "pid": os.getpid(),
    }


@by_value
def say_pid_and_wait(x, folder):
    import os
    import time
    from pathlib import Path

    (Path(folder) / f"{x}.{os.getpid()}").touch()
    time.sleep(1.0)
    return x


def test_results_are_complete_and_carry_their_index():
    assert dict(map_bounded(square, range(40))) == {n: n * n for n in range(40)}


def test_nothing_to_do_is_done_at_once():
    assert list(map_bounded(square, [])) == []


def test_items_are_drawn_as_results_leave():
    drawn = []
    results = map_bounded(square, (drawn.append(n) or n for n in range(100)), in_flight_per_cpu=2)
    next(results)
    assert len(drawn) <= 2 * 2 + 1
    results.close()


def test_an_item_that_kills_its_workers_is_given_up_and_the_others_are_not():
    results = dict(map_bounded(partial(die_on, poison={4, 7}), range(12)))
    assert results == {n: WorkerDied(n) if n in (4, 7) else n for n in range(12)}


def test_an_item_whose_worker_died_once_runs_again(tmp_path):
    assert dict(map_bounded(partial(die_once, folder=tmp_path), range(6))) == {n: n for n in range(6)}


def test_a_worker_killed_from_outside_costs_no_result(tmp_path):
    def kill_first():
        for _ in range(200):
            started = list(tmp_path.iterdir())
            if started:
                os.kill(int(started[0].name.split(".")[1]), signal.SIGKILL)
                return
            time.sleep(0.02)

    killer = threading.Thread(target=kill_first)
    killer.start()
    results = dict(map_bounded(partial(say_pid_and_wait, folder=tmp_path), range(3)))
    killer.join()
    assert results == {n: n for n in range(3)}
    assert len(list(tmp_path.iterdir())) == 4  # one of the three was started twice


def test_an_exception_of_the_function_surfaces_as_itself():
    with pytest.raises(LookupError, match="three"):
        list(map_bounded(fail_on_three, range(6)))
    assert dict(map_bounded(square, [5])) == {0: 25}  # the session lives on


def test_workers_see_the_repository_and_one_thread_each(repository):
    [(_, seen)] = map_bounded(surroundings, [0])
    assert seen.pop("pid") != os.getpid()
    assert seen == {"threads": "1", "root": str(repository), "torch": False}


def test_ray_listens_on_loopback_only():
    """Every listening TCP socket of this process's descendants is bound to 127.0.0.1."""
    family = descendants(os.getpid())
    inodes = set()
    for pid in family:
        try:
            links = [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()]
        except OSError:
            continue
        inodes |= {link[8:-1] for link in links if link.startswith("socket:[")}
    addresses = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                addresses.append(fields[1].rpartition(":")[0])
    loopback = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    assert addresses
    assert set(addresses) <= loopback


def descendants(pid):
    children = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(status.parent.name))
    found, waiting = [], [pid]
    while waiting:
        waiting += (new := children.get(waiting.pop(), []))
        found += new
    return found


def test_a_killed_driver_takes_its_servers_and_workers_along(repository):
    code = """
import time
from data.workers import ray_session

with ray_session(num_cpus=1):
    print("up", flush=True)
    time.sleep(60)
"""
    environment = os.environ | {"PYTHONPATH": str(repository)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment) as driver:
        assert driver.stdout.readline() == b"up\n"
        # Ray's monitors of the node try for a minute to report the death of their server, then end too
        family = [pid for pid in descendants(driver.pid) if "Agent" not in command(pid)]
        assert len(family) >= 3
        driver.kill()
    for _ in range(100):
        alive = [command(pid) for pid in family if command(pid)]
        if not alive:
            return
        time.sleep(0.1)
    pytest.fail(f"outlive the driver: {alive}")


def command(pid):
    """Command line; empty for a process that is gone, or waits to be reaped."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    except OSError:
        return ""


def test_folders_of_killed_sessions_are_removed_and_those_in_use_are_not():
    held, left, young = (Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir="/tmp")) for _ in range(3))
    old = time.time() - 2 * LEFTOVER_SECONDS
    with folder_lock(held):
        (left / "log").touch()
        os.utime(held, (old, old))
        os.utime(left, (old, old))
        with _session_folder() as mine:
            assert mine.is_dir()
            assert [folder.is_dir() for folder in (held, left, young)] == [True, False, True]
    assert not mine.exists()
    for folder in (held, young):
        shutil.rmtree(folder)
