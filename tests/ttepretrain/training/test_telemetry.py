import io
import json
import sys

import pytest

from ttepretrain.training.metrics import MetricsLog, MetricsRow, draw_progress
from ttepretrain.training.progress import Progress


def row(step: int, loss: float | None = None, tuning: float | None = None, speed: float | None = None) -> MetricsRow:
    return MetricsRow(step, step // 4, step % 4 * 2, loss, tuning, 40, 1e-3, 0.5, speed)


def test_log_continues_where_the_checkpoint_is(tmp_path):
    """Rows of steps that a kill took back go, and so does a tuning row that the checkpoint does not know of."""
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, step=0, evaluated_step=-1)
    for entry in (row(0, tuning=1.0), row(1, 0.9), row(2, 0.8), row(3, 0.7), row(4, 0.6), row(4, tuning=0.9)):
        log.add(entry)
    log.close()
    with path.open("a") as file:
        file.write('{"step": 5, "epo')
    MetricsLog(path, step=4, evaluated_step=0).close()
    kept = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(entry["step"], entry["loss_tuning"]) for entry in kept] == [
        (0, 1.0),
        (1, None),
        (2, None),
        (3, None),
        (4, None),
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full exists on Linux")
def test_full_disk_switches_the_log_off_and_says_so(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.symlink_to("/dev/full")
    log = MetricsLog.__new__(MetricsLog)
    log.path, log.rows, log._file = path, [], path.open("a", buffering=1)
    log.add(row(1, 0.5))
    log.add(row(2, 0.5))
    log.close()
    assert caplog.text.count("not written any more") == 1
    assert len(log.rows) == 2  # the picture still has them


def test_plain_lines_come_every_so_often_and_at_every_tuning_loss(capsys):
    progress = Progress(step=0, last_step=200, epochs=50, batch_size=8, log_seconds=3600)
    progress.tuning(row(0, tuning=0.75))
    for step in range(1, 5):
        progress.step(row(step, 0.5, speed=12.0))
    progress.tuning(row(4, tuning=0.7))
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["step 0/200  epoch 1/50  tuning 0.75000", "step 4/200  epoch 2/50  loss 0.50000  tuning 0.70000"]
    progress = Progress(step=0, last_step=200, epochs=50, batch_size=8, log_seconds=0)
    progress.step(row(20, 0.5, speed=12.0))
    assert capsys.readouterr().out == "step 20/200  epoch 6/50  loss 0.50000  12.0 studies/s  ETA 0:02:00\n"


def test_reader_that_went_away_does_not_stop_training(monkeypatch):
    class Closed(io.StringIO):
        def write(self, _text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Closed())
    progress = Progress(step=0, last_step=8, epochs=2, batch_size=8, log_seconds=0)
    progress.step(row(1, 0.5, speed=1.0))
    progress.step(row(2, 0.5, speed=1.0))
    sys.stdout.close()


def test_picture_of_any_course(tmp_path):
    said = ("nats", "base rates alone")
    draw_progress([row(1)], tmp_path / "nothing.png", *said)  # a skipped step alone
    assert not (tmp_path / "nothing.png").exists()
    rows = [row(0, tuning=1.0), row(1, 0.9), row(2), row(4, 0.8), row(4, tuning=0.9)]
    draw_progress(rows, tmp_path / "some.png", *said)
    assert (tmp_path / "some.png").stat().st_size > 5000
