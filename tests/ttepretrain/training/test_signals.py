import os
import signal
import time

import pytest

from ttepretrain.testing import run_ranks
from ttepretrain.training.signals import SAME_REQUEST_SECONDS, SIGNALS, StopSignals


@pytest.mark.parametrize("number", SIGNALS)
def test_first_signal_only_asks(number):
    before = signal.getsignal(number)
    with StopSignals() as signals:
        assert not signals.requested
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # a launcher's copy of the same request
        assert signals.requested
    assert signal.getsignal(number) == before


def second_signal() -> None:
    with StopSignals():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1.2 * SAME_REQUEST_SECONDS)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)


@pytest.mark.slow
def test_second_signal_ends_the_process_at_once():
    [outcome] = run_ranks(second_signal, 1, timeout=5)
    assert outcome.exit_code == 128 + signal.SIGINT
