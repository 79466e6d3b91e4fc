"""Progress of a run for a person: one live line on a terminal, plain lines in a log file."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from typing import TYPE_CHECKING

from ttepretrain.training.metrics import MetricsRow

if TYPE_CHECKING:
    import rich.progress

RECENT_STEPS = 20  # speed and loss shown are means over this many last steps


class Progress:
    """Says where the run stands; a terminal or log that is gone is no reason to stop."""

    def __init__(self, step: int, last_step: int, epochs: int, batch_size: int, log_seconds: float):
        self.last_step, self.epochs, self.batch_size, self.log_seconds = last_step, epochs, batch_size, log_seconds
        self._loss_tuning: float | None = None
        self._losses: deque[float] = deque(maxlen=RECENT_STEPS)
        self._times: deque[float] = deque(maxlen=RECENT_STEPS + 1)
        self._printed = -log_seconds
        self._bar = _terminal_bar(step, last_step) if sys.stdout.isatty() else None
        self.resume_clock()

    def resume_clock(self) -> None:
        """Steps count from now: something else took the time until here."""
        self._times.clear()
        self._times.append(time.monotonic())

    def studies_per_second(self) -> float:
        """Count a step that has just ended."""
        self._times.append(time.monotonic())
        return (len(self._times) - 1) * self.batch_size / max(self._times[-1] - self._times[0], 1e-9)

    def step(self, row: MetricsRow) -> None:
        if row.loss is not None:
            self._losses.append(row.loss)
        self._show(row)

    def tuning(self, row: MetricsRow) -> None:
        self._loss_tuning = row.loss_tuning
        self._show(row, always=True)

    def say(self, text: str) -> None:
        try:
            if self._bar is not None:
                self._bar.console.print(text, markup=False, highlight=False)
            else:
                print(text, flush=True)
        except OSError:
            sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _show(self, row: MetricsRow, always: bool = False) -> None:
        parts = [f"epoch {min(row.epoch + 1, self.epochs)}/{self.epochs}"]
        if self._losses:
            parts.append(f"loss {sum(self._losses) / len(self._losses):.5f}")
        if self._loss_tuning is not None:
            parts.append(f"tuning {self._loss_tuning:.5f}")
        if row.studies_per_second:
            parts.append(f"{row.studies_per_second:.1f} studies/s")
            parts.append(f"ETA {self._eta(row.step, row.studies_per_second)}")
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=row.step, description="  ".join(parts))
        elif always or time.monotonic() - self._printed >= self.log_seconds:
            self._printed = time.monotonic()
            self.say("  ".join([f"step {row.step}/{self.last_step}", *parts]))

    def _eta(self, step: int, studies_per_second: float) -> str:
        seconds = round((self.last_step - step) * self.batch_size / studies_per_second)
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def _terminal_bar(step: int, last_step: int) -> rich.progress.Progress | None:
    """Live bar; None where rich is not installed."""
    try:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    except ImportError:
        return None
    bar = Progress(MofNCompleteColumn(), BarColumn(bar_width=20), TextColumn("{task.description}"))
    bar.add_task("", total=last_step, completed=step)
    bar.start()
    return bar
