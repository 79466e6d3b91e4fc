"""Text from files as a terminal, a log or a page may show it: nothing in it moves a cursor, hides or poses as ours."""

from __future__ import annotations

import reprlib

MOST = 200  # characters of a value in a message
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxtuple, _SHORT.maxdict = 4, 16, 16, 8
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 120


def plain(text: object, most: int | None = None) -> str:
    """One line of `str(text)`: what is not printable as its escape (ESC is \\x1b, a change of direction \\u202e).

    most: characters to keep; the rest becomes its number.
    """
    line = str(text)
    if most is not None and len(line) > most:
        line = f"{line[:most]}... ({len(line) - most} more characters)"
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in line)


def shown(value: object) -> str:
    """`repr(value)` for a message: long and deep values are cut."""
    return plain(_SHORT.repr(value), MOST)
