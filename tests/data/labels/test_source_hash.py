"""Label files are kept while the code that makes them stays, and no longer."""

import shutil

import pytest

from data.labels.source_hash import HOMES, closure, closure_hash, hash_of

STAGE = "data.labels.stage"


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """The packages as sources alone, the library elsewhere than the rest, as where it is installed."""
    folder, library = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("site-packages")
    homes = {top: (library if top == "ttepretrain" else folder) / top for top in HOMES}
    for top, home in homes.items():
        shutil.copytree(HOMES[top], home, ignore=shutil.ignore_patterns("__pycache__"))
    return homes


def test_the_hash_is_that_of_the_files_wherever_they_lie(copied):
    assert hash_of(closure(STAGE, copied)) == closure_hash(STAGE)


@pytest.mark.parametrize(
    "module",
    [
        "ehr.sources.columns", "ehr.sources.omop", "ehr.passes.loops", "ehr.timeline", "ehr.choice.tasks",
        "data.given.label_tables", "data.given.inspect_labels", "data.given.user_tables", "data.labels.stage",
        "data.labels.records", "data.labels.label_files", "data.parquet_files", "data.subjects.leakage",
        "ttepretrain.tasks", "ttepretrain.files", "ehr", "data.labels",
    ],
)  # fmt: skip
def test_a_touched_module_that_labels_are_made_with_changes_the_hash(copied, module):
    files = closure(STAGE, copied)
    before, path = hash_of(files), files[module]
    source = path.read_bytes()
    path.write_bytes(source + b"\n# touched\n")
    try:
        assert hash_of(closure(STAGE, copied)) != before
    finally:
        path.write_bytes(source)
    assert hash_of(closure(STAGE, copied)) == before


def test_what_labels_do_not_depend_on_is_not_asked(copied):
    """The table of studies is hashed by what was read from it."""
    modules = set(closure(STAGE, copied))
    of_records = set(closure("data.labels.records", copied))
    assert modules > of_records
    assert not [name for name in of_records if name.startswith(("ehr.passes", "ehr.labels", "data.given"))]
    outside = ("jobs", "data.cohort", "data.volumes", "data.batches", "data.given.study_table", "ttepretrain.volume")
    assert not [name for name in modules if name.startswith(outside)]
    folder = copied["jobs"]
    (folder / "report" / "page.py").write_text("changed\n")
    assert set(closure(STAGE, copied)) == modules


def test_imports_inside_functions_and_under_another_name_are_followed(tmp_path):
    (tmp_path / "top" / "room").mkdir(parents=True)
    for name, source in {
        "a": "def late():\n    from top.room import b as other\n    import os, top.d\n",
        "room/__init__": "",
        "room/b": "from top import c\nfrom top.room.b import CONSTANT\n",
        "c": "if False:\n    import top.a\n",
        "d": "",
        "unused": "",
    }.items():
        (tmp_path / "top" / f"{name}.py").write_text(source)
    assert set(closure("top.a", {"top": tmp_path / "top"})) == {"top.a", "top.room", "top.room.b", "top.c", "top.d"}
