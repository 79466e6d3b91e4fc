"""Write the run's synthetic cohort: `python -m jobs.cohort CONFIG [key=value ...]`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jobs.config import read_run_config
from ttepretrain.errors import BadDataError, exit_with


def main(arguments: list[str]) -> None:
    config = read_run_config(arguments, "jobs.cohort", "Writes the synthetic cohort of a run.")
    if not config.synthetic:
        print("cohort: nothing to write, the run has its own input.studies")
        return
    from data.cohort.build import write_cohort

    started = time.monotonic()
    if write_cohort(config.cohort_folder, config.cohort, _in_workers(config.prepare.num_cpus)):
        print(f"cohort: {config.cohort.size}, seed {config.cohort.seed}: written in {time.monotonic() - started:.0f} s")
    else:
        print(f"cohort: {config.cohort.size}, seed {config.cohort.seed}: already there, reused")


def _in_workers(num_cpus: int | None) -> Callable[[Callable, Iterable], Iterator[Any]]:
    """map over Ray workers; the session opens when the first result is asked for."""

    def map_images(function: Callable, items: Iterable) -> Iterator[Any]:
        from data.workers import WorkerDied, map_bounded, ray_session

        with ray_session(num_cpus):
            for _, result in map_bounded(function, items):
                if isinstance(result, WorkerDied):
                    raise BadDataError("a worker died twice on the same images; is memory short?")
                yield result

    return map_images


if __name__ == "__main__":
    exit_with(main, "cohort")
