"""The documents are true of the tree: links, anchors, paths, modules, targets and keys that they name exist."""

import argparse
import ast
import re
from pathlib import Path

import pytest
import yaml

from jobs import config_reference
from jobs.config import RunConfig
from ttepretrain.commands.main import COMMANDS
from ttepretrain.config import valid_keys

pytestmark = pytest.mark.source

ROOT = Path(__file__).parents[1]
PAGES = [
    path
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
    if path.exists()
]
MAX_LINE = 100
PACKAGES = ("ttepretrain", "ehr", "data", "jobs", "benchmarks", "tests")
TOP = (*PACKAGES, "configs", "docs")
KEYS = list(valid_keys(RunConfig))
SECTIONS = {key.rpartition(".")[0] for key in KEYS if "." in key}
FENCE = re.compile(r"^ *(```|~~~).*?^ *\1 *$", re.M | re.S)
FILE = re.compile(r"\.(html|safetensors)$")  # report.html is no key
COMMENT = re.compile(r"<!--.*?-->", re.S)
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def prose(page: Path) -> str:
    """The page with code blocks (fenced and indented) and comments blanked, line numbers kept."""
    text = page.read_text()
    for pattern in (FENCE, COMMENT):
        text = pattern.sub(lambda found: "\n" * found.group().count("\n"), text)
    return re.sub(r"(?m)(?<=\n\n)(?: {4}.*\n|\n)+", lambda found: "\n" * found.group().count("\n"), text)


def spans(page: Path) -> list[str]:
    """Inline code."""
    return re.findall(r"`([^`\n]+)`", prose(page))


def code(page: Path) -> str:
    """Inline code and code blocks, together."""
    text = page.read_text()
    indented = re.findall(r"(?m)(?<=\n\n)(?: {4}.*\n|\n)+", FENCE.sub("", text))
    return "\n".join([*spans(page), *(found.group() for found in FENCE.finditer(text)), *indented])


def anchors(page: Path) -> set[str]:
    """Anchors of the headings, as GitHub makes them."""
    found: dict[str, int] = {}
    names = set()
    for heading in re.findall(r"(?m)^#+ (.+?) *$", prose(page)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        names.add(f"{slug}-{found[slug]}" if slug in found else slug)
        found[slug] = found.get(slug, 0) + 1
    return names


def test_the_configuration_reference_is_fresh():
    assert config_reference.PAGE.read_text() == config_reference.render(), (
        "run `.venv/bin/python -m jobs.config_reference`"
    )


def test_every_configuration_key_has_a_meaning():
    keys = [key for section in config_reference.sections(RunConfig) for key in section.keys]
    assert [key.name for key in keys if not key.meaning] == []
    assert sorted(key.name for key in keys) == sorted(KEYS)


@each_page
def test_links_and_anchors_resolve(page):
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.exists():
            wrong.append(f"{target}: no such file")
        elif anchor and anchor not in anchors(path):
            wrong.append(f"{target}: no such heading; {path.name} has {sorted(anchors(path))}")
    assert not wrong, "\n".join(wrong)


@each_page
def test_lines_are_short(page):
    """At most 100 characters; tables, code, images and the targets of links may be longer."""
    wrong = []
    for number, line in enumerate(prose(page).splitlines(), 1):
        shown = re.sub(r"\]\([^)]*\)", "]", line)
        if len(shown) > MAX_LINE and not line.lstrip().startswith(("|", "![")):
            wrong.append(f"{page.name}:{number}: {len(shown)} characters")
    assert not wrong, "\n".join(wrong)


@each_page
def test_paths_and_names_in_code_exist(page):
    modules = {path.name for top in TOP for path in (ROOT / top).rglob("*.py")}
    wrong = []
    for span in spans(page):
        if re.fullmatch(rf"({'|'.join(TOP)})/[\w./*-]*", span):
            if not any(ROOT.glob(span.rstrip("/"))):
                wrong.append(f"`{span}`: no such path")
        elif re.fullmatch(r"\w+\.py", span):
            if span not in modules:
                wrong.append(f"`{span}`: no such file")
        elif re.fullmatch(rf"({'|'.join((*PACKAGES, *SECTIONS))})(\.[\w*]+)+(=.*)?", span) and not FILE.search(span):
            name = span.partition("=")[0]
            if not (is_key(name) or is_python_name(name)):
                wrong.append(f"`{span}`: neither a configuration key nor a name of the code")
    assert not wrong, "\n".join(wrong)


@each_page
def test_make_targets_and_modules_exist(page):
    text = code(page)
    targets = re.findall(r"(?m)^([a-z-]+):(?!=)", (ROOT / "Makefile").read_text())
    wrong = [f"make {target}" for target in re.findall(r"(?<![\w-])make ([a-z][a-z-]*)", text) if target not in targets]
    modules = re.findall(rf"(?<![\w-])-m ((?:{'|'.join(PACKAGES)})(?:\.\w+)*)", text)
    wrong += [f"python -m {module}" for module in modules if not is_runnable(module)]
    assert not wrong, "\n".join(wrong)


@each_page
def test_commands_and_their_options_exist(page):
    wrong = []
    for line in code(page).splitlines():
        found = re.match(r"\W*(?:\S*/)?(?:python -m )?ttepretrain ([a-z]+)", line)
        if not found or found[1] == "import":
            continue
        known = options_of(found[1]) if found[1] in COMMANDS else set()
        given = [found[1], *re.findall(r" (--?[a-z][a-z-]*)", line)]
        wrong += [f"ttepretrain {found[1]}: {word}" for word in given if word not in {*COMMANDS, *known}]
    assert not wrong, "\n".join(wrong)


@each_page
def test_configuration_keys_exist(page):
    """Keys with a value, `ehr.tasks=PATH`, on command lines and in sentences; and those of runs' YAML files."""
    given = re.findall(rf"(?<![\w./])((?:{'|'.join(sorted(SECTIONS))})\.[\w.]+)=", code(page))
    wrong = [key for key in given if key not in KEYS]
    for block in re.findall(r"(?ms)^ *```yaml\n(.*?)^ *```|\.yaml <<'END'\n(.*?)^END", page.read_text()):
        document = yaml.safe_load(block[0] or block[1])
        if set(document) & {"name", *SECTIONS}:  # a run's file; phenotype files have other keys
            wrong += [key for key in leaves(document) if key not in KEYS]
    assert not wrong, "\n".join(wrong)


def test_the_code_names_pages_that_exist():
    files = [ROOT / "Makefile", ROOT / "pyproject.toml"]
    for top in (*PACKAGES, "configs"):
        files += [path for path in (ROOT / top).rglob("*.*") if path.suffix in (".py", ".yaml", ".sh")]
    named = {(path, name) for path in files for name in re.findall(r"\b(docs/[\w/-]+\.md)\b", path.read_text())}
    assert len(named) > 10
    assert not [f"{path.relative_to(ROOT)}: {name}" for path, name in sorted(named) if not (ROOT / name).exists()]


def test_the_map_lists_every_page():
    listed = re.findall(r"\]\(([^)#\s]+)\)", (ROOT / "docs/README.md").read_text())
    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")} - {"README.md"}
    assert pages - set(listed) == set()
    assert len(listed) == len(set(listed)), "a page stands twice"


def options_of(command: str) -> set[str]:
    """Options of `ttepretrain COMMAND`."""
    parser = argparse.ArgumentParser()
    COMMANDS[command].add_arguments(parser)
    return set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", parser.format_help()))


def is_key(name: str) -> bool:
    """A key, a section, or a section followed by a star."""
    return name in KEYS or name.removesuffix(".*") in SECTIONS


def is_runnable(module: str) -> bool:
    path = ROOT / module.replace(".", "/")
    return path.with_suffix(".py").exists() or (path / "__main__.py").exists()


def is_python_name(name: str) -> bool:
    """A package, a module, or what stands at the top level of a module."""
    path = ROOT / name.replace(".", "/")
    if path.is_dir() or path.with_suffix(".py").exists():
        return True
    module = path.parent.with_suffix(".py")
    if not module.exists():
        module = path.parent / "__init__.py"
    if not module.exists():
        return False
    named = set()
    for node in ast.parse(module.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            named.add(node.name)
        elif isinstance(node, ast.Assign):
            named |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.ImportFrom):
            named |= {alias.asname or alias.name for alias in node.names}
    return path.name in named


def leaves(document: dict, prefix: str = "") -> list[str]:
    """Full dotted names of what is set."""
    found = []
    for key, value in document.items():
        found += leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]
    return found
