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
# Rooms of each package, lowest first: each may import itself and those before it. Files beside the rooms are free to
# stand anywhere between them, as long as no circle comes of it.
ROOMS = {
    "ttepretrain": ["volume", "models", "survival", "export", "training", "evaluation", "probe", "commands"],
    "ehr": ["sources", "codes", "passes", "choice"],
    "data": ["given", "subjects", "cohort", "volumes", "prepared", "labels", "batches"],
    "jobs": ["plan", "report"],
}
# Where a training node looks, which has neither.
WITHOUT_POLARS_AND_RAY = ("data/batches/", "data/prepared/opened.py", "data/prepared/schema.py", "jobs/")
MOST_FILES = 14  # of one folder, __init__.py apart
# What a label worker may see of the library: no torch, no volumes.
EHR_SEES = {"config", "errors", "files", "log", "tasks"}


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


def only_for_types(path: Path) -> set[int]:
    """Lines of the imports that a type checker alone runs."""
    blocks = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.If))
    typing = (block for block in blocks if ast.unparse(block.test) == "TYPE_CHECKING")
    return {
        node.lineno for block in typing for node in ast.walk(block) if isinstance(node, ast.Import | ast.ImportFrom)
    }


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


def modules(repository: Path) -> dict[str, Path]:
    """Dotted name -> file of every module below the packages."""
    names = {}
    for path in sources(repository):
        parts = path.relative_to(repository).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imported_files(path: Path, files: dict[str, Path]) -> set[Path]:
    """Our own files that a file imports, anywhere in it; `from a.b import c` is of module a.b.c where there is one."""
    found = set()
    for name, _, _ in imports(path):
        here = next((files[n] for n in (name, name.rpartition(".")[0]) if n in files), None)
        if here is not None:
            found.add(here)
    return found - {path}


def circles(edges: dict) -> list[list]:
    """The groups of nodes that reach each other, sorted; empty where the graph has no circle."""
    reached = {}
    for start in edges:
        seen, waiting = set(), [start]
        while waiting:
            for node in edges.get(waiting.pop(), ()):
                if node not in seen:
                    seen.add(node)
                    waiting.append(node)
        reached[start] = seen
    groups = {
        frozenset(other for other in edges if other in reached[node] and node in reached[other]) for node in edges
    }
    return sorted(sorted(map(str, group)) for group in groups if group)


def test_circles_are_found():
    assert circles({1: {2}, 2: {3}, 3: {2}, 4: {1}}) == [["2", "3"]]
    assert circles({1: {2, 3}, 2: {3}, 3: set()}) == []


def test_no_files_and_no_rooms_import_each_other_in_a_circle(repository):
    """In every folder, its files and its sub-folders (each as one) import each other in one direction only."""
    files = modules(repository)
    edges = {path: imported_files(path, files) for path in files.values()}
    assert sum(map(len, edges.values())) > 500
    wrong = circles(edges)
    for folder in sorted({path.parent for path in edges}):
        inside = {path: path.relative_to(folder).parts[0] for path in edges if path.is_relative_to(folder)}
        rooms = {room: set() for room in inside.values()}
        for path, room in inside.items():
            rooms[room] |= {inside[other] for other in edges[path] if other in inside} - {room}
        wrong += [[folder.relative_to(repository).as_posix(), *circle] for circle in circles(rooms)]
    assert not wrong, "\n".join(map(str, wrong))


@pytest.mark.parametrize("top", ORDER)
def test_rooms_import_only_rooms_below_them(repository, top):
    order = ROOMS[top]
    rooms = [path.name for path in (repository / top).iterdir() if list(path.rglob("*.py"))]
    assert sorted(rooms) == sorted(order), "name every room in ROOMS"
    files = modules(repository)
    wrong = []
    for path in (path for path in files.values() if path.is_relative_to(repository / top)):
        room, *inside = path.relative_to(repository / top).parts
        for other in imported_files(path, files) if inside else ():
            first, *rest = (
                other.relative_to(repository).parts[1:] if other.is_relative_to(repository / top) else (room,)
            )
            if rest and order.index(first) > order.index(room):
                wrong.append(f"{path.relative_to(repository)} imports {other.relative_to(repository)}")
    assert not wrong, "\n".join(wrong)


def test_a_training_node_needs_neither_polars_nor_ray(repository):
    """Nor do typos: jobs answer them before they import either, and no job works on tables itself."""
    wrong = [
        f"{path.relative_to(repository)}:{line} imports {name}"
        for path in sources(repository)
        if path.relative_to(repository).as_posix().startswith(WITHOUT_POLARS_AND_RAY)
        for name, line, _ in imports(path)
        if name.split(".")[0] in ("polars", "ray") and line not in only_for_types(path)
    ]
    assert not wrong, "\n".join(wrong)


def test_a_room_holds_about_a_dozen_files_and_no_two_files_of_a_package_share_a_name(repository):
    paths = [path for path in sources(repository) if path.name != "__init__.py"]
    full = {path.parent: sum(p.parent == path.parent for p in paths) for path in paths}
    assert not {folder: count for folder, count in full.items() if count > MOST_FILES}
    for top in ORDER:
        names = [path.name for path in paths if path.is_relative_to(repository / top) and path.name != "config.py"]
        assert sorted(set(names)) == sorted(names)


def test_heavy_libraries_are_imported_only_at_home(repository):
    wrong = []
    for path in sources(repository):
        relative = path.relative_to(repository).as_posix()
        typing = only_for_types(path)
        for name, line, _ in imports(path):
            homes = HOMES.get(name.split(".")[0])
            if homes and line not in typing and not any(relative.startswith(home) for home in homes):
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
