"""Stop requests: a first signal asks for a save, a second one ends the process at once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
Handler = Callable[[int, FrameType | None], object] | int | signal.Handlers | None  # what Python keeps of a signal
# A launcher's forward and the terminal's own delivery of one Ctrl-C arrive within milliseconds: one request, not two.
SAME_REQUEST_SECONDS = 0.5


class StopSignals:
    """`requested` turns true at the first SIGTERM, SIGINT, SIGUSR1 or SIGHUP while the context is open."""

    def __init__(self) -> None:
        self.requested = False
        self._first = 0.0
        self._previous: dict[signal.Signals, Handler] = {}

    def __enter__(self) -> StopSignals:
        self._previous = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.requested and now - self._first > SAME_REQUEST_SECONDS:
            os._exit(128 + number)  # no clean-up: the last committed checkpoint stands
        if not self.requested:
            self.requested, self._first = True, now
