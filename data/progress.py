"""How far a long loop is: a bar on a terminal, a plain line every few seconds in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

LINE_SECONDS = 10.0


class Advance(Protocol):
    def __call__(self, steps: int = 1) -> None: ...


@contextmanager
def progress(
    what: str, total: int, line_seconds: float = LINE_SECONDS, clock: Callable[[], float] = time.monotonic
) -> Iterator[Advance]:
    """A function to call when a step is done; shows done/total, rate and remaining time. `clock`: seconds."""
    if sys.stderr.isatty():
        with _bar(what, total, clock) as bar:
            yield bar
        return
    start = shown = clock()
    done = 0

    def advance(steps: int = 1) -> None:
        nonlocal done, shown
        done += steps
        now = clock()
        if now - shown >= line_seconds or (done == total and now - start > 1):
            shown = now
            rate = done / max(now - start, 1e-9)
            left = f", {(total - done) / rate:.0f} s left" if done < total else ""
            print(f"{what} {done}/{total}, {rate:.3g}/s, {now - start:.0f} s{left}", file=sys.stderr, flush=True)

    yield advance


@contextmanager
def _bar(what: str, total: int, clock: Callable[[], float]) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )  # fmt: skip
    start = clock()
    with Progress(*columns, console=Console(stderr=True), get_time=clock) as bar:
        task = bar.add_task(what, total=total, rate="")

        def advance(steps: int = 1) -> None:
            bar.advance(task, steps)
            rate = bar.tasks[0].completed / max(clock() - start, 1e-9)
            bar.update(task, rate=f"{rate:.3g}/s")

        yield advance
