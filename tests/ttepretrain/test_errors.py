"""Signals end every command in the same way: KeyboardInterrupt inside, exit code 75 outside."""

import os
import signal
import subprocess
import sys
import time

import pytest

from ttepretrain import errors
from ttepretrain.errors import STOPPING, ExitCode, exit_with
from ttepretrain.log import log


@pytest.fixture(autouse=True)
def quiet():
    handlers, level = log.handlers[:], log.level
    yield
    log.handlers[:] = handlers
    log.setLevel(level)


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_is_an_interruption_and_the_handlers_come_back(number, capsys):
    cleaned = []

    def main(_arguments):
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        finally:
            cleaned.append(True)

    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as ended:
        exit_with(main, "embed", [])
    assert ended.value.code == ExitCode.INTERRUPTED
    assert cleaned == [True]
    assert signal.getsignal(number) == before
    assert capsys.readouterr().err == "embed: error: interrupted; run the same command again to resume\n"


def test_the_same_request_twice_does_not_interrupt_the_saving():
    """A scheduler signals the group, and a launcher forwards it."""
    saved = []

    def main(_arguments):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
            saved.append(True)

    with pytest.raises(SystemExit) as ended:
        exit_with(main, "embed", [])
    assert (ended.value.code, saved) == (ExitCode.INTERRUPTED, [True])


def test_a_later_signal_interrupts_again(monkeypatch):
    monkeypatch.setattr(errors, "SAME_REQUEST_SECONDS", 0.0)
    saved = []

    def main(_arguments):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
            saved.append(True)

    with pytest.raises(SystemExit) as ended:
        exit_with(main, "embed", [])
    assert (ended.value.code, saved) == (ExitCode.INTERRUPTED, [])


def test_a_signal_that_is_ignored_stays_ignored():
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        exit_with(lambda _: os.kill(os.getpid(), signal.SIGHUP), "embed", [])
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_program_started_by_a_command_has_the_systems_own_handlers():
    """Ray's workers and the decoder: what is sent to them ends them."""
    ask = "import signal; print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)"
    told = []

    def main(_arguments):
        told.append(subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True).stdout)

    exit_with(main, "embed", [])
    assert told == ["True\n"]
