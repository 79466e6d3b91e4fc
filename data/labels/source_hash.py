"""Which of our files decide what a module makes: the module, and all that its import statements reach.

A stage's files are kept while the hash of its own code stays: nobody has to list the files that matter, and an edit
elsewhere (a report, a command) makes nothing again.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import ttepretrain
from ttepretrain.files import sha256_of

_REPOSITORY = Path(__file__).resolve().parents[2]
# The library may be installed elsewhere than the rest.
HOMES = {"ttepretrain": Path(ttepretrain.__file__).parent} | {top: _REPOSITORY / top for top in ("ehr", "data", "jobs")}


@cache
def closure_hash(module: str) -> str:
    """Hash over the names and bytes of the closure of a module (dotted); computed once in a process."""
    return hash_of(closure(module, HOMES))


def hash_of(files: Mapping[str, Path]) -> str:
    hashes = [(name, sha256_of(path)) for name, path in sorted(files.items())]
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()


def closure(module: str, homes: Mapping[str, Path]) -> dict[str, Path]:
    """Files by dotted module name: the module, every module of `homes` that it reaches, and their packages.

    homes: folder of each top-level package. Import statements inside functions count as all others.
    """
    found: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = _file(name, homes)
        if name in found or path is None:
            continue
        found[name] = path
        waiting += [name.rpartition(".")[0], *_imported(path)]
    return found


def _file(name: str, homes: Mapping[str, Path]) -> Path | None:
    """None for other libraries, and for a name that is no module."""
    top, *rest = name.split(".")
    if top not in homes:
        return None
    path = homes[top].joinpath(*rest)
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in candidates if file.is_file()), None)


def _imported(path: Path) -> list[str]:
    """Of `from a.b import c` both a.b and a.b.c, which may be a module too. Relative imports: tests forbid them."""
    names = []
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names
