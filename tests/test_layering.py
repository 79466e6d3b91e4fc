"""The import direction and the homes of heavy libraries, read from the syntax trees."""

import ast
from pathlib import Path

import pytest

pytestmark = pytest.mark.source

ORDER = ["ttepretrain", "ehr", "data", "jobs"]  # each may import itself and what stands before it
# Library -> the only places that may import it.
HOMES = {
    "ray": ("data/workers.py",),
    "deepspeed": ("ttepretrain/training/",),
    "polars": ("ehr/", "data/"),
    "monai": ("ttepretrain/models/",),
    "blosc2": ("data/volumes/cache.py",),
}
# What a label worker may see of the library: no torch, no volumes.
EHR_SEES = {"config", "errors", "tasks"}


def imports(path: Path) -> list[tuple[str, int, bool]]:
    """(dotted module, line, inside a function) of every import statement of a file."""
    tree = ast.parse(path.read_text())
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno, id(node) in inside) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            found += [(f"{node.module}.{alias.name}", node.lineno, id(node) in inside) for alias in node.names]
    return found


def sources(repository: Path) -> list[Path]:
    files = [path for top in ORDER for path in sorted((repository / top).rglob("*.py"))]
    assert len(files) > 30
    return files


def test_imports_run_from_jobs_to_the_library_and_never_back(repository):
    wrong = []
    for path in sources(repository):
        top = path.relative_to(repository).parts[0]
        above = ORDER[ORDER.index(top) + 1 :]
        wrong += [
            f"{path.relative_to(repository)}:{line} imports {name}"
            for name, line, _ in imports(path)
            if name.split(".")[0] in above
        ]
    assert not wrong, "\n".join(wrong)


def test_heavy_libraries_are_imported_only_at_home(repository):
    wrong = []
    for path in sources(repository):
        relative = path.relative_to(repository).as_posix()
        for name, line, _ in imports(path):
            homes = HOMES.get(name.split(".")[0])
            if homes and not any(relative.startswith(home) for home in homes):
                wrong.append(f"{relative}:{line} imports {name}; its home is {', '.join(homes)}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("library", ["deepspeed", "monai", "ray"])
def test_slow_imports_stay_inside_functions(repository, library):
    wrong = [
        f"{path.relative_to(repository)}:{line}"
        for path in sources(repository)
        for name, line, inside in imports(path)
        if name.split(".")[0] == library and not inside
    ]
    assert not wrong, "\n".join(wrong)


def test_ehr_sees_only_tasks_and_configuration_of_the_library_and_no_torch(repository):
    wrong = []
    for path in sorted((repository / "ehr").rglob("*.py")):
        for name, line, _ in imports(path):
            parts = name.split(".")
            if parts[0] == "torch" or (parts[0] == "ttepretrain" and parts[1] not in EHR_SEES):
                wrong.append(f"{path.relative_to(repository)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_before_and_after_the_scan_is_decided_in_the_timeline_alone(repository):
    """Only ehr/timeline.py compares times with the blackout."""
    users = [
        path.relative_to(repository).as_posix()
        for path in sorted((repository / "ehr").rglob("*.py"))
        if any(
            isinstance(node, ast.Compare) and "blackout" in ast.unparse(node)
            for node in ast.walk(ast.parse(path.read_text()))
        )
    ]
    assert set(users) <= {"ehr/timeline.py", "ehr/config.py"}, users


def test_there_is_no_utils_module_and_no_test_package(repository):
    assert not [path for path in sources(repository) if path.name == "utils.py"]
    assert not list((repository / "tests").rglob("__init__.py"))
