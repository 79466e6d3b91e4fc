"""Benchmarks run rarely: every module of theirs imports, and every name of ours that they use exists."""

import ast
import importlib
import importlib.util
from pathlib import Path

import pytest

pytestmark = pytest.mark.source

FOLDER = Path(__file__).parents[2] / "benchmarks"
OURS = ("ttepretrain", "ehr", "data", "jobs", "benchmarks")
MODULES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("name", MODULES)
def test_every_import_of_a_benchmark_resolves(name):
    """Those inside functions too, which importing the module does not try."""
    importlib.import_module(f"benchmarks.{name}")
    for node in ast.walk(ast.parse((FOLDER / f"{name}.py").read_text())):
        if not isinstance(node, ast.ImportFrom) or node.module.split(".")[0] not in OURS:
            continue
        module = importlib.import_module(node.module)
        for alias in node.names:
            found = hasattr(module, alias.name) or importlib.util.find_spec(f"{node.module}.{alias.name}")
            assert found, f"benchmarks/{name}.py:{node.lineno}: {node.module} has no {alias.name}"
