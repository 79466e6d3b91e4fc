"""What a command tells on standard output."""

from __future__ import annotations

import os
import sys

from ttepretrain.errors import ResourceError


def say(text: str) -> None:
    """Print at once. Where the reader has gone, as of `| head`, the rest is dropped and the command goes on.

    Raises ResourceError where it cannot be written for another reason, such as a full disk.
    """
    try:
        print(text, flush=True)
    except OSError as error:
        nowhere = os.open(os.devnull, os.O_WRONLY)  # else what is still buffered fails again at the exit
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        if not isinstance(error, BrokenPipeError):
            raise ResourceError(f"standard output cannot be written: {error.strerror}") from None
