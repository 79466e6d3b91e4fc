"""What a run leaves of its course: metrics.jsonl and progress.png."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path

from ttepretrain.files import write_atomic
from ttepretrain.log import log

SMOOTHING_STEPS = 25  # of the picture's running mean


@dataclass(frozen=True)
class MetricsRow:
    """A line of metrics.jsonl: a training step, or (loss null) a pass over the tuning split."""

    step: int  # steps done
    epoch: int
    position: int  # studies of the epoch consumed
    loss: float | None  # mean over the cells of the step, all ranks
    loss_tuning: float | None  # mean over the cells of the tuning split
    cells: int
    lr: float | None
    grad_norm: float | None  # before clipping; null where the step was skipped
    studies_per_second: float | None


class MetricsLog:
    """Rows of metrics.jsonl, on disk and in memory. A file that cannot be written is given up; training continues."""

    def __init__(self, path: Path, step: int, evaluated_step: int):
        """Continue the file after `step`: rows of steps that a kill took back are dropped."""
        self.path = path
        self.rows: list[MetricsRow] = []
        if path.exists():
            rows = [_parse(line) for line in path.read_text().splitlines()]
            self.rows = [r for r in rows if r and r.step <= (step if r.loss_tuning is None else evaluated_step)]
            write_atomic(path, "".join(json.dumps(asdict(row)) + "\n" for row in self.rows))
        self._file = path.open("a", buffering=1)

    def add(self, row: MetricsRow) -> None:
        self.rows.append(row)
        self._quietly(lambda: self._file.write(json.dumps(asdict(row)) + "\n"))

    def close(self) -> None:
        self._quietly(self._file.close)

    def _quietly(self, write: Callable[[], object]) -> None:
        try:
            if not self._file.closed:
                write()
        except OSError as error:
            log.warning("%s is not written any more: %s", self.path.name, error.strerror)
            with suppress(OSError):  # of what it still holds
                self._file.close()


def _parse(line: str) -> MetricsRow | None:
    try:
        return MetricsRow(**json.loads(line))
    except (ValueError, TypeError):  # the line that a kill tore
        return None


def draw_progress(rows: list[MetricsRow], path: Path, unit: str, reference: str) -> None:
    """Picture of loss and tuning loss over steps, step 0's as a line; nothing without matplotlib.

    unit: of the loss. reference: what step 0's loss is of.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    training = [(row.step, row.loss) for row in rows if row.loss is not None]
    tuning = [(row.step, row.loss_tuning) for row in rows if row.loss_tuning is not None]
    if not training and not tuning:
        return
    figure = Figure(figsize=(10, 4), layout="constrained")
    # Two scales: the spread between batches would flatten the learning curve.
    left, right = figure.subplots(1, 2)
    if training:
        left.plot(*zip(*training), color="tab:blue", alpha=0.3, linewidth=0.8, label="each step")
        left.plot(*zip(*_running_mean(training)), color="tab:blue", label=f"mean of {SMOOTHING_STEPS} steps")
        left.legend()
    if tuning and tuning[0][0] == 0:
        right.axhline(tuning[0][1], color="grey", linestyle="--", label=reference)
    if tuning:
        right.plot(*zip(*tuning), color="tab:orange", marker="o", label="after each epoch")
        right.legend()
    left.set(title="training loss", xlabel="step", ylabel=unit)
    right.set(title="tuning loss", xlabel="step")
    content = BytesIO()
    figure.savefig(content, format="png", dpi=120)
    write_atomic(path, content.getvalue())


def _running_mean(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    recent: deque[float] = deque(maxlen=SMOOTHING_STEPS)
    means = []
    for step, loss in points:
        recent.append(loss)
        means.append((step, sum(recent) / len(recent)))
    return means
