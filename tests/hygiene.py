"""Is every file tidy? Whitespace, last line, merge markers, size, and syntax of YAML, TOML and JSON.

    python tests/hygiene.py [FILE...]        # default: every file that git tracks or would add

Prints `FILE:LINE: what is wrong` and ends with exit code 1 if there is anything.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

MAX_BYTES = 1_000_000  # data and models do not belong into the history
MERGE_MARKERS = ("<<<<<<< ", ">>>>>>> ", "||||||| ")
PARSERS: dict[str, Callable[[str], object]] = {
    ".yaml": lambda text: list(yaml.safe_load_all(text)),
    ".yml": lambda text: list(yaml.safe_load_all(text)),
    ".cff": yaml.safe_load,
    ".toml": tomllib.loads,
    ".json": json.loads,
}


def main(names: list[str]) -> int:
    files = [Path(name) for name in names or tracked()]
    wrong = [f"{path}{line}" for path in files if path.is_file() and not path.is_symlink() for line in problems(path)]
    print("\n".join(wrong) or f"hygiene: {len(files)} files are tidy")
    return int(bool(wrong))


def tracked() -> list[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    return [
        name for name in subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0") if name
    ]


def problems(path: Path) -> Iterator[str]:
    """`:LINE: what is wrong`, for one file. Of binary files only the size is checked."""
    content = path.read_bytes()
    if len(content) > MAX_BYTES:
        yield f": {len(content):,} bytes, more than {MAX_BYTES:,}"
    if b"\0" in content:
        return
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        yield f": not UTF-8: {error}"
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.endswith("\r"):
            yield f":{number}: Windows line ending"
        elif line != line.rstrip():
            yield f":{number}: whitespace at the end of the line"
        if line.startswith(MERGE_MARKERS):
            yield f":{number}: merge marker"
    if text and (not text.endswith("\n") or text.endswith("\n\n")):
        yield ": must end with exactly one newline"
    if path.suffix in PARSERS:
        try:
            PARSERS[path.suffix](text)
        except (yaml.YAMLError, ValueError) as error:  # TOML's and JSON's errors are ValueErrors
            yield f": does not parse: {' '.join(str(error).split())}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
