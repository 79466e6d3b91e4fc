"""The one logger of the library and of the commands. It is silent until a command shows it."""

from __future__ import annotations

import logging
import sys

log = logging.getLogger("ttepretrain")
log.addHandler(logging.NullHandler())  # without it, Python prints warnings of an unconfigured logger


class _Shown(logging.Handler):
    """Writes `PREFIX: message` to stderr, with the level's name from warnings up."""

    def __init__(self, prefix: str):
        super().__init__()
        self.prefix = prefix

    def emit(self, record: logging.LogRecord) -> None:
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        try:
            # sys.stderr of this moment: a progress bar puts its own stream there while it is drawn.
            print(f"{self.prefix}: {level}{record.getMessage()}", file=sys.stderr, flush=True)
        except Exception:
            self.handleError(record)


def show_log(prefix: str) -> None:
    """Show the log on stderr, each message once and under this prefix. A second call replaces the first."""
    for handler in log.handlers[:]:
        if isinstance(handler, _Shown):
            log.removeHandler(handler)
    log.addHandler(_Shown(prefix))
    log.setLevel(logging.INFO)
