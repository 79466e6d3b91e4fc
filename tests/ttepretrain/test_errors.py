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
    signals = {number: signal.getsignal(number) for number in STOPPING}
    yield
    for number, handler in signals.items():
        signal.signal(number, handler)
    log.handlers[:] = handlers
    log.setLevel(level)


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_is_an_interruption(number, capsys):
    cleaned = []

    def main(_arguments):
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        finally:
            cleaned.append(True)

    with pytest.raises(SystemExit) as ended:
        exit_with(main, "embed", [])
    assert ended.value.code == ExitCode.INTERRUPTED
    assert cleaned == [True]
    assert capsys.readouterr().err == "embed: error: interrupted; run the same command again to resume\n"


def test_without_a_signal_the_handlers_come_back():
    before = [signal.getsignal(number) for number in STOPPING]
    exit_with(lambda _: None, "embed", [])
    assert [signal.getsignal(number) for number in STOPPING] == before


# Interrupts `exec` of a text, as in the import of a dataclass; then repeats the request while Python ends.
ENDING = """
import atexit, os, signal, time
from ttepretrain.errors import exit_with

def again():
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.05)

signal.signal(signal.SIGINT, signal.default_int_handler)
atexit.register(again)
exit_with(lambda _: exec("import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(5)"), "embed", [])
"""


def test_the_exit_code_is_75_wherever_a_signal_arrives_and_however_often():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", ENDING], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == ExitCode.INTERRUPTED, done.stderr
    assert done.stderr == "embed: error: interrupted; run the same command again to resume\n"


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
