"""docs/reference/configuration.md: every key of a run with type, default and meaning, read from the dataclasses.

    python -m jobs.config_reference            write the page
    python -m jobs.config_reference --check    exit 2 where the page on disk is stale

The meaning of a key is the comment beside its field: the lines right above it, then the one on its last line.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

from data.prepared.reference import write_or_check
from jobs.config import RunConfig
from ttepretrain.errors import exit_with

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "configuration.md"

HEAD = """\
# Configuration keys

<!-- Written by `python -m jobs.config_reference` from the dataclasses. Edit the comments there, not this page. -->

A run is described by one YAML file, which holds only what differs from the defaults below.
Arguments on the command line come on top: `python -m jobs.pretrain CONFIG train.epochs=10`.

- Write a list with brackets, also when it has one entry: `ehr.label_tables=[x.csv]`.
- `null` means "not set".
- Paths are relative to the folder in which the command runs. Paths in the `image` column of a study
  table are relative to that table.
- An unknown key, a wrong type or a value out of range ends the command with exit code 2, with the
  full name of the key and the nearest valid one.
- Every stage writes its resolved configuration: `prepared/config.yaml` holds all values of a run.
"""


@dataclasses.dataclass(frozen=True)
class Section:
    """The keys of one dataclass. name: the dotted prefix of its keys, empty for the run's own."""

    name: str
    owner: type
    keys: tuple[Key, ...]


@dataclasses.dataclass(frozen=True)
class Key:
    name: str  # full dotted name
    type: str
    default: str
    meaning: str


def main(arguments: list[str]) -> None:
    description = "Write the reference of all configuration keys."
    write_or_check(arguments, "jobs.config_reference", description, PAGE, render())


def render() -> str:
    """The whole page."""
    lines = [HEAD]
    for section in sections(RunConfig):
        lines.append(f"## {section.name or 'The run'}\n")
        lines.append(f"Defined in `{section.owner.__module__.replace('.', '/')}.py`.\n")
        lines.append("| key | type | default | meaning |\n|---|---|---|---|")
        lines += [f"| `{key.name}` | {key.type} | {key.default} | {key.meaning} |" for key in section.keys]
        lines.append("")
    return "\n".join(lines)


def sections(schema: type, prefix: str = "") -> Iterator[Section]:
    """The dataclass's own keys first, then those of the dataclasses nested in it, in the order of the fields."""
    meanings, nested, keys = comments(schema), [], []
    default = schema()
    for field in dataclasses.fields(schema):
        value = getattr(default, field.name)
        if dataclasses.is_dataclass(value):
            nested.append((type(value), f"{prefix}{field.name}"))
            continue
        meaning = _cell(meanings[field.name])
        keys.append(Key(f"{prefix}{field.name}", _type(str(field.type)), f"`{yaml_text(value)}`", meaning))
    yield Section(prefix.removesuffix("."), schema, tuple(keys))
    for owner, name in nested:
        yield from sections(owner, f"{name}.")


def comments(schema: type) -> dict[str, str]:
    """Field -> its comment: the lines right above the field, then the comment on its last line; empty without any."""
    source = inspect.getsource(schema)
    on_line, alone = {}, set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not token.string.startswith(("# fmt:", "# type:")):
            on_line[token.start[0]] = token.string.lstrip("# ").rstrip()
            if token.line.lstrip().startswith("#"):
                alone.add(token.start[0])
    (tree,) = ast.parse(source).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            first = node.lineno
            while first - 1 in alone:
                first -= 1
            beside = [node.end_lineno] if node.end_lineno in on_line else []
            found[node.target.id] = "; ".join(
                part for part in (" ".join(on_line[line] for line in range(first, node.lineno)),
                                  *(on_line[line] for line in beside)) if part
            )  # fmt: skip
    return found


def yaml_text(value: object) -> str:
    """The value as one writes it in YAML."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(yaml_text, value))}]"
    return f"{value}"


def _type(annotation: str) -> str:
    parts = re.sub(r"tuple\[(\w+), \.\.\.\]", r"list[\1]", annotation).split(" | ")  # in YAML both are lists
    return " or ".join("`null`" if part == "None" else f"`{part}`" for part in parts)


def _cell(meaning: str) -> str:
    """A comment as a cell: Python's None is YAML's null, and a bar would end the cell."""
    return re.sub(r"\bNone\b", "`null`", meaning).replace(" | ", ", ").replace("|", "\\|")


if __name__ == "__main__":
    exit_with(main, "config_reference")
