"""Rate and remaining time are those of the steps done, on a terminal and in a log file."""

import os
import pty
import sys
import time
from contextlib import suppress

import pytest

from data.progress import progress


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_log_file_gets_a_line_every_few_seconds_with_rate_and_remaining_time(capsys):
    clock = Clock()
    with progress("volumes", 100, line_seconds=10.0, clock=clock) as advance:
        for _ in range(100):
            clock.now += 0.5
            advance()
    assert capsys.readouterr().err.splitlines() == [
        "volumes 20/100, 2/s, 10 s, 40 s left",
        "volumes 40/100, 2/s, 20 s, 30 s left",
        "volumes 60/100, 2/s, 30 s, 20 s left",
        "volumes 80/100, 2/s, 40 s, 10 s left",
        "volumes 100/100, 2/s, 50 s",
    ]


def test_a_step_may_count_for_several_and_the_rate_is_that_of_all_so_far(capsys):
    clock = Clock()
    with progress("labels", 500, line_seconds=10.0, clock=clock) as advance:
        for steps in (30, 170):
            clock.now += 10.0
            advance(steps)
    assert capsys.readouterr().err.splitlines() == [
        "labels 30/500, 3/s, 10 s, 157 s left",
        "labels 200/500, 10/s, 20 s, 30 s left",
    ]


def test_what_is_done_at_once_says_nothing(capsys):
    clock = Clock()
    with progress("volumes", 2, clock=clock) as advance:
        advance()
        advance()
    assert capsys.readouterr().err == ""


def test_the_rate_is_that_of_a_real_run(capsys):
    with progress("volumes", 40, line_seconds=0.2) as advance:
        for _ in range(40):
            time.sleep(0.02)
            advance()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 2
    for line in lines:
        done, rate, seconds = line.split(",")[0].split()[1].split("/")[0], *line.split(",")[1:3]
        assert int(done) / float(rate[:-2]) == pytest.approx(float(seconds[:-2]), abs=0.6)  # whole seconds are shown
        assert float(rate[:-2]) <= 50


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_terminal_gets_a_bar_with_rate_and_remaining_time(monkeypatch):
    reading, writing = pty.openpty()
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    clock = Clock()
    with os.fdopen(writing, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with progress("volumes", 40, clock=clock) as advance:
            for _ in range(30):
                clock.now += 0.5
                advance()
        monkeypatch.undo()
    shown = ""
    with suppress(OSError):  # the other end is closed
        while part := os.read(reading, 1 << 16):  # a terminal gives what is there, in pieces
            shown += part.decode()
    os.close(reading)
    assert "volumes" in shown
    assert "30/40" in shown
    assert "2/s" in shown
    assert "0:00:05" in shown  # ten steps of half a second
