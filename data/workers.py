"""All of Ray: one session per command, and parallel maps that survive the death of workers.

Nothing else imports Ray. Functions and items travel by pickle, so a function is module-level (or a partial of one) and
results are small records; volumes go to disk, never through the object store.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.progress import progress
from ttepretrain.errors import IntegrityError, ResourceError
from ttepretrain.lock import folder_lock

REPOSITORY = Path(__file__).resolve().parents[1]
OBJECT_STORE_BYTES = 256 << 20  # small records only; Ray's default is a third of the memory
FOLDER_PREFIX = "tte-ray-"
LEFTOVER_SECONDS = 3600.0  # younger folders may be about to be locked
SLOW_START = "timed out during startup"  # in the text of a plain Exception; Ray's limit of 30 s is not for us to set
MAX_DEATHS = 2  # workers one item may kill before it is given up

# Inherited by the workers of a local session; on a cluster `ray start` runs with the job script's environment.
WORKER_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",  # Ray would print exception texts (identifiers) of results nobody fetched
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # else a driver under `uv run` makes every worker build an environment
    "OMP_NUM_THREADS": "1",  # one study per core; torch reads it too
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "POLARS_MAX_THREADS": "1",
}


# Despite its name, on every system: Ray then takes 127.0.0.1 as the node's address, and its servers listen there only.
# `_node_ip_address="127.0.0.1"` alone is resolved to the host's outer address (Ray 2.60). Read when ray is imported.
LOOPBACK_ENVIRONMENT = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


@dataclass(frozen=True)
class WorkerDied:
    """Result of an item whose worker process died (killed, out of memory, crashed) MAX_DEATHS times."""

    index: int


@contextmanager
def ray_session(num_cpus: int | None = None) -> Iterator[None]:
    """Ray for the block: on this machine's loopback with `num_cpus` workers (None: all cores).

    With RAY_ADDRESS in the environment the session joins that cluster instead and leaves it running; the cluster and
    this process then need the same RAY_AUTH_TOKEN. Raises ResourceError when the machine is too busy to start it.
    """
    pythonpath = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    cluster = os.environ.get("RAY_ADDRESS", "")
    loopback = not cluster or cluster.startswith("127.")
    variables = WORKER_ENVIRONMENT | {"PYTHONPATH": pythonpath} | (LOOPBACK_ENVIRONMENT if loopback else {})
    with _environment(variables), nullcontext() if cluster else _session_folder() as folder:
        import ray

        local: dict[str, Any] = {
            "address": "local",
            "num_cpus": num_cpus or len(os.sched_getaffinity(0)),
            "num_gpus": 0,
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
            "_node_ip_address": "127.0.0.1",
            "_temp_dir": str(folder),
        }
        try:
            with _own_sigterm():
                ray.init(log_to_driver=False, configure_logging=False, **({} if cluster else local))
        except Exception as error:
            if SLOW_START not in str(error):
                raise
            raise ResourceError("Ray's servers did not start in 30 s: the machine is overloaded; try again") from None
        try:
            yield
        finally:
            ray.shutdown()


def num_workers() -> int:
    """How many items of `map_bounded` run at once; needs an open `ray_session`."""
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def map_bounded(
    function: Callable[[Any], Any], items: Iterable[Any], in_flight_per_cpu: int = 2
) -> Iterator[tuple[int, Any]]:
    """(index, function(item)) of every item, in the order they finish; needs an open `ray_session`.

    `items` is drawn from as results leave: at most in_flight_per_cpu x CPUs are under way. An item whose worker dies
    runs again, and after MAX_DEATHS its result is WorkerDied(index). An exception of the function itself is raised
    here and ends the map.
    """
    import ray
    from ray.exceptions import NodeDiedError, OutOfMemoryError, RayTaskError, WorkerCrashedError

    # max_retries=0: Ray would run a poison item again without telling which one it was.
    task = ray.remote(num_cpus=1, max_retries=0)(_apply)
    shared = ray.put(function)
    limit = max(1, int(in_flight_per_cpu * ray.cluster_resources().get("CPU", 1)))
    waiting = enumerate(items)
    again: deque[tuple[int, Any, int]] = deque()
    running: dict[Any, tuple[int, Any, int]] = {}  # reference -> index, item, deaths
    try:
        while True:
            while len(running) < limit:
                if again:
                    entry = again.popleft()
                elif (new := next(waiting, None)) is not None:
                    entry = (*new, 0)
                else:
                    break
                running[task.remote(shared, entry[1])] = entry
            if not running:
                return
            done, _ = ray.wait(list(running), num_returns=1)
            reference = done[0]
            index, item, deaths = running.pop(reference)
            try:
                result = ray.get(reference)
            except RayTaskError as error:
                raise error.cause from error  # the cause alone has the type; the traceback is in `error`
            except (WorkerCrashedError, NodeDiedError, OutOfMemoryError):
                if deaths + 1 < MAX_DEATHS:
                    again.append((index, item, deaths + 1))
                    continue
                result = WorkerDied(index)
            yield index, result
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def map_shards(function: Callable[[Any], Any], shards: Sequence[Any]) -> list[Any]:
    """[function(shard) for shard in shards] over the workers, with progress; needs an open `ray_session`.

    Raises ResourceError when one shard of the EHR keeps killing its workers.
    """
    results: list[Any] = [None] * len(shards)
    with progress("labels", len(shards)) as advance:
        for index, result in map_bounded(function, shards):
            if isinstance(result, WorkerDied):
                raise ResourceError(
                    f"the worker of EHR shard {index} died twice, probably for lack of memory; lower prepare.num_cpus"
                )
            results[index] = result
            advance()
    return results


def _apply(function: Callable[[Any], Any], item: Any) -> Any:
    return function(item)


@contextmanager
def _session_folder() -> Iterator[Path]:
    """Folder for Ray's sockets and logs, gone after the block; those that killed drivers left go first.

    When a driver is killed the kernel ends Ray's servers and workers with it; two small monitors follow in a minute.
    """
    for leftover in Path("/tmp").glob(f"{FOLDER_PREFIX}*"):
        with suppress(OSError, IntegrityError):
            if time.time() - leftover.stat().st_mtime > LEFTOVER_SECONDS:
                with folder_lock(leftover):
                    shutil.rmtree(leftover)
    # Short: the path of Ray's sockets below it must stay under 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir="/tmp"))
    try:
        with folder_lock(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Ray ends the driver at once on SIGTERM; the command's own handler stays, which lets the block below clean up."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
