"""docs/reference/prepared.md: every file and column of `prepared/`, made from the schema.

python -m data.prepared.reference            write the page
python -m data.prepared.reference --check    exit 2 where the page on disk is stale
"""

from __future__ import annotations

import argparse
from pathlib import Path

from data.prepared.schema import FILES, Column, File, Table
from ttepretrain.errors import ConfigError, exit_with

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "prepared.md"

HEAD = """\
# Prepared files

<!-- Written by `python -m data.prepared.reference` from data/prepared/schema.py: edit that. -->

`python -m jobs.prepare` writes the folder `prepared/` of a run. Only its owner may open it: apart
from the input, it alone holds identifiers of patients. Everything outside it names studies and
subjects by the keys in `keys.parquet`.

- The folder is complete when `manifest.json` is there, which is written last. Training opens no
  folder without it, and no file whose checksum differs.
- Every table is checked against the types and rules below before it is written, and again when it
  is read. A violation names the file, the column, what was expected and what was found.
- A list never holds a null. Times have microseconds and no zone. Durations are fractions of days.
- Columns hold no nulls, except where the last column of a table below says what a null means.

## Files

`labels` and `volumes` are the stages of `prepare.stages`. A mode is the most that a file allows:
the umask takes from it, and what its owner closed stays closed. Files with mode 0600 can be read
only by their owner.
"""


def main(arguments: list[str]) -> None:
    description = "Write the reference of the files of prepared/."
    write_or_check(arguments, "data.prepared.reference", description, PAGE, render())


def write_or_check(arguments: list[str], module: str, description: str, path: Path, page: str) -> None:
    """`python -m MODULE [--check]`: write a generated page. Raises ConfigError when --check finds a stale one."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 2 if the page on disk is stale")
    if not parser.parse_args(arguments).check:
        path.write_text(page)
    elif not path.exists() or path.read_text() != page:
        raise ConfigError(f"{path.name} is stale; run `.venv/bin/python -m {module}` and commit the page")


def render() -> str:
    """The whole page."""
    lines = [HEAD, "| file | stage | mode | content |", "|---|---|---|---|"]
    lines += [_file(file) for file in FILES]
    for file in FILES:
        if isinstance(file, Table):
            lines += ["", f"## {file.name.replace('*', '…')}", "", f"{_sentence(file.meaning)}", "", _rows(file), ""]
            lines += ["| column | type | unit | meaning | null |", "|---|---|---|---|---|"]
            lines += [_column(column) for column in file.columns]
            if file.more:
                lines += ["", f"Further columns: {file.more}."]
    return "\n".join(lines) + "\n"


def _file(file: File) -> str:
    return f"| `{file.name}` | {file.stage or 'always'} | {file.mode:04o} | {file.meaning} |"


def _rows(table: Table) -> str:
    columns = ", ".join(f"`{name}`" for name in table.ascends)
    return f"Rows ascend by {columns}; {'no value occurs twice' if table.unique else 'values may repeat'}."


def _column(column: Column) -> str:
    dtype = f"{column.dtype}".replace("item: ", "")
    return f"| `{column.name}` | `{dtype}` | {column.unit} | {column.meaning} | {column.null or ''} |"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


if __name__ == "__main__":
    exit_with(main, "prepared.reference")
