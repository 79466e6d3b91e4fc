"""One logger: silent in the library, shown once by a command, seen by whoever listens."""

import logging
import subprocess
import sys

import pytest

from ttepretrain.errors import ConfigError, ExitCode, exit_with
from ttepretrain.log import log, show_log


@pytest.fixture
def shown():
    """show_log; afterwards the logger is as it was."""
    handlers, level = log.handlers[:], log.level
    yield show_log
    log.handlers[:] = handlers
    log.setLevel(level)


def test_the_library_is_silent_until_a_command_shows_the_log():
    script = "from ttepretrain.log import log; log.warning('a'); log.error('b')"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("", "")


def test_a_shown_message_carries_the_prefix_and_from_warnings_up_the_level(shown, capsys):
    shown("prepare")
    log.debug("hidden")
    log.info("labels of %d studies", 3)
    log.warning("few events")
    log.error("disk full")
    assert capsys.readouterr() == (
        "",
        "prepare: labels of 3 studies\nprepare: warning: few events\nprepare: error: disk full\n",
    )


def test_two_calls_show_a_message_once(shown, capsys):
    shown("first")
    shown("second")
    log.warning("once")
    assert capsys.readouterr().err == "second: warning: once\n"


def test_other_listeners_hear_what_is_shown(shown, caplog):
    shown("prepare")
    with caplog.at_level(logging.INFO):
        log.info("heard")
    assert caplog.messages == ["heard"]


@pytest.mark.usefixtures("shown")
def test_a_declared_failure_ends_a_command_with_its_message_and_exit_code(capsys):
    def main(arguments):
        assert arguments == ["a=b"]
        raise ConfigError("a must be a number; got 'b'")

    with pytest.raises(SystemExit) as ended:
        exit_with(main, "prepare", ["a=b"])
    assert ended.value.code == ExitCode.USAGE
    assert capsys.readouterr().err == "prepare: error: a must be a number; got 'b'\n"


@pytest.mark.usefixtures("shown")
def test_an_interrupted_command_asks_to_be_run_again(capsys):
    def main(_arguments):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        exit_with(main, "pretrain", [])
    assert ended.value.code == ExitCode.INTERRUPTED
    assert capsys.readouterr().err == "pretrain: error: interrupted; run the same command again to resume\n"
