"""The one logger of the library and of the commands. It is silent until a command shows it."""

from __future__ import annotations

import logging
import sys

from ttepretrain.plain_text import plain

log = logging.getLogger("ttepretrain")
log.addHandler(logging.NullHandler())  # without it, Python prints warnings of an unconfigured logger


class _Shown(logging.Handler):
    """Writes `PREFIX: message` to stderr, with the level's name from warnings up.

    A message may quote a file: its lines after the first are indented, so that none poses as another message.
    """

    def __init__(self, prefix: str):
        super().__init__()
        self.prefix = prefix

    def emit(self, record: logging.LogRecord) -> None:
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        try:
            # sys.stderr of this moment: a progress bar puts its own stream there while it is drawn.
            first, *rest = map(plain, record.getMessage().split("\n"))
            message = "\n".join([first, *(f"  {line.removeprefix('  ')}" for line in rest)])
            print(f"{self.prefix}: {level}{message}", file=sys.stderr, flush=True)
        except Exception:
            self.handleError(record)


def show_log(prefix: str) -> None:
    """Show the log on stderr, each message once and under this prefix. A second call replaces the first."""
    for handler in log.handlers[:]:
        if isinstance(handler, _Shown):
            log.removeHandler(handler)
    log.addHandler(_Shown(prefix))
    log.setLevel(logging.INFO)
