"""What rank 0 reports during a run: metrics, picture, progress."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

from ttepretrain.errors import ResourceError
from ttepretrain.log import log
from ttepretrain.training.metrics import MetricsLog, MetricsRow, draw_progress
from ttepretrain.training.progress import Progress

DRAW_SECONDS = 30.0  # a picture takes a quarter of a second


class Telemetry:
    """Silent unless `active`, so that every rank calls it alike."""

    def __init__(
        self,
        folder: Path,
        unit: str,
        reference: str,
        active: bool,
        step: int,
        evaluated_step: int,
        last_step: int,
        epochs: int,
        batch_size: int,
        log_seconds: float,
    ):
        """Continue what an earlier start of the run has logged up to `step`. unit, reference: of `draw_progress`."""
        self.folder, self.unit, self.reference, self.active = folder, unit, reference, active
        if active:
            self.drawn_at = time.monotonic()
            self.log = MetricsLog(folder / "metrics.jsonl", step, evaluated_step)
            self.progress = Progress(step, last_step, epochs, batch_size, log_seconds)

    def step(self, row: MetricsRow) -> None:
        if self.active:
            row = dataclasses.replace(row, studies_per_second=self.progress.studies_per_second())
            self.log.add(row)
            self.progress.step(row)

    def tuning(self, row: MetricsRow) -> None:
        if self.active:
            self.log.add(row)
            self.progress.tuning(row)
            if time.monotonic() - self.drawn_at >= DRAW_SECONDS:
                self._draw()

    def resume_clock(self) -> None:
        """The next step's speed counts from now."""
        if self.active:
            self.progress.resume_clock()

    def say(self, text: str) -> None:
        if self.active:
            self.progress.say(text)

    def close(self) -> None:
        if self.active:
            self.progress.close()
            self.log.close()
            self._draw()

    def _draw(self) -> None:
        self.drawn_at = time.monotonic()
        try:
            draw_progress(self.log.rows, self.folder / "progress.png", self.unit, self.reference)
        except (OSError, ResourceError) as error:
            log.warning("progress.png is not drawn: %s", error)
