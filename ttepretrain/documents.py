"""JSON that others may have written: from regular files alone, bounded, every key once, no NaN."""

from __future__ import annotations

import difflib
import json
import os
import re
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, NoReturn

from ttepretrain.errors import ConfigError
from ttepretrain.plain_text import shown

MOST_VALUES = 2_000_000  # of one document: numbers, texts, lists; 200 MB in memory
MOST_LEVELS = 16  # of lists and mappings in one another, where any content is allowed
LFS_POINTER = b"version https://git-lfs.github.com/spec/"  # first bytes of what stands for a file not downloaded
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


@contextmanager
def open_regular(path: Path, most_bytes: int) -> Iterator[BufferedReader]:
    """A regular file to read, also behind a link. Raises ConfigError for a pipe, a device, a folder or a larger file,
    and for what Git leaves in the place of a large file.

    Nothing of another file is read: opening a pipe would block, and /dev/zero never ends.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError(f"{path.name} is not a regular file")
        if found.st_size > most_bytes:
            raise ConfigError(f"{path.name} has {found.st_size} bytes; at most {most_bytes} are read")
        if file.peek(len(LFS_POINTER)).startswith(LFS_POINTER):
            raise ConfigError(f"{path.name} is a Git LFS pointer, not the file itself; run `git lfs pull`")
        yield file


def read_regular(path: Path, most_bytes: int) -> bytes:
    """Content of a regular file. Raises ConfigError as `open_regular`, OSError where it cannot be read."""
    with open_regular(path, most_bytes) as file:
        return file.read(most_bytes)


def parse_json(content: bytes) -> Any:
    """Raises ConfigError for anything but one JSON document in UTF-8 with finite numbers and each key once."""
    if sum(map(content.count, (b",", b"[", b"{"))) > MOST_VALUES:
        raise ConfigError(f"holds more than {MOST_VALUES} values")
    try:
        document = json.loads(content.decode(), object_pairs_hook=_each_once, parse_constant=_no_number)
        if _SURROGATE.search(content):
            json.dumps(document, ensure_ascii=False).encode()
    except UnicodeError:
        raise ConfigError("is not Unicode text") from None
    except ConfigError:
        raise
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"is not JSON: {error}") from None
    return document


def require_keys(name: str, document: object, required: Collection[str], optional: Collection[str] = ()) -> dict:
    """The document, if it is a mapping with all required keys and no other but the optional ones; else ConfigError."""
    if not isinstance(document, dict):
        raise ConfigError(f"{name} must be a mapping; got {shown(document)}")
    known = (*required, *optional)
    for key in document:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{name} has the unknown key {shown(key)}{hint}")
    for key in required:
        if key not in document:
            raise ConfigError(f"{name} has no key {key!r}")
    return document


def require_shallow(name: str, document: object) -> None:
    """ConfigError for more than MOST_LEVELS of lists and mappings in one another."""
    level = [document]
    for _ in range(MOST_LEVELS):
        level = [
            inner
            for value in level
            if isinstance(value, dict | list)
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return
    raise ConfigError(f"{name} has more than {MOST_LEVELS} levels")


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ConfigError(f"has the key {shown(twice)} twice")
    return document


def _no_number(name: str) -> NoReturn:
    raise ConfigError(f"holds {name}, which is no number")
