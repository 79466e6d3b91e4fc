"""What training opens is what jobs.prepare wrote: keys, labels and volumes of a split, and no file that differs."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as parquet
import pytest

from data.prepared import schema
from data.prepared.opened import PreparedStudies, read_table
from data.prepared.table_file import write_table
from data.prepared.write import write_manifest
from data.testing import load_module
from ttepretrain.errors import ConfigError, IntegrityError
from ttepretrain.tasks import TaskSet

folder_of = load_module(Path(__file__).parents[1] / "numbered_folder.py")
SPEC, NUM_STUDIES = folder_of.SPEC, folder_of.NUM_STUDIES
UNLABELLED, WITHOUT_VOLUME = folder_of.UNLABELLED, folder_of.WITHOUT_VOLUME
NAMES = ["tasks.json", "labels.parquet", "volumes.parquet", "keys.parquet"]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return folder_of.write_folder(tmp_path_factory.mktemp("opened") / "prepared")


@pytest.fixture(scope="module")
def prepared(written):
    return written[0]


@pytest.fixture
def own_copy(prepared, tmp_path):
    return shutil.copytree(prepared, tmp_path / "prepared")


@pytest.fixture(scope="module")
def train(prepared):
    return PreparedStudies.open(prepared, "train")


def sealed_again(folder):
    """The folder with the checksums of its files as they are now."""
    write_manifest(folder, NAMES, pl.read_parquet(folder / "volumes.parquet"), SPEC)
    return folder


def test_a_split_holds_its_studies_with_labels_and_a_volume_in_the_order_of_their_ids(train, prepared):
    gone = {*UNLABELLED, *WITHOUT_VOLUME}
    expected = [n for n in range(NUM_STUDIES) if n % 6 != 5 and n not in gone]
    assert [int(train.read_hu(row)[0, 0, 0]) for row in range(len(train))] == expected
    # the rank counts all labelled studies, whatever their split and volume
    labelled = [n for n in range(NUM_STUDIES) if n not in UNLABELLED]
    assert train.study_rank.tolist() == [labelled.index(n) for n in expected]
    assert len(PreparedStudies.open(prepared, "tuning")) == 5
    assert len(PreparedStudies.open(prepared, "held_out")) == 0
    assert train.spec == SPEC


def test_keys_and_labels_are_those_of_the_study(train, written):
    keys = dict(pl.read_parquet(written[0] / "keys.parquet").select("study_id", "study_key").iter_rows())
    for row in (0, 4, len(train) - 1):
        n = int(train.read_hu(row)[0, 0, 0])
        assert train.study_key[row] == keys[f"ct-{n:02d}"]
        expected = written[1].take(np.array([n]))
        actual = train.labels.take(np.array([row]))
        assert actual.censor_days == expected.censor_days
        np.testing.assert_array_equal(actual.event_days, expected.event_days)
        np.testing.assert_array_equal(actual.history.index, expected.history.index)


def test_labels_that_the_likelihood_cannot_take_are_refused(own_copy):
    """By the rules of the task set: an event inside its blackout."""
    blackout_days = TaskSet.load(own_copy / "tasks.json").blackout_days
    labels = pl.read_parquet(own_copy / "labels.parquet")
    early = pl.lit([blackout_days]).alias("event_days"), pl.lit([0], pl.List(pl.Int32)).alias("task_index")
    labels = pl.concat([labels[:1].with_columns(early), labels[1:]])
    write_table(own_copy, schema.LABELS, labels)
    with pytest.raises(IntegrityError, match="event_days must lie after the blackout"):
        PreparedStudies.open(sealed_again(own_copy), "train")


@pytest.mark.parametrize("name", NAMES)
def test_a_changed_file_is_an_integrity_error(own_copy, name):
    data = bytearray((own_copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (own_copy / name).write_bytes(data)
    with pytest.raises(IntegrityError, match=rf"prepared/{name} does not match manifest\.json; run jobs\.prepare"):
        PreparedStudies.open(own_copy, "train")


def test_an_unfinished_or_partial_folder_is_refused_with_its_remedy(own_copy, tmp_path):
    with pytest.raises(ConfigError, match=r"not prepared; run jobs\.prepare"):
        PreparedStudies.open(tmp_path, "train")
    manifest = json.loads((own_copy / "manifest.json").read_text())
    del manifest["files"]["volumes.parquet"]
    (own_copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match=r"no volumes\.parquet; run jobs\.prepare with stages labels and volumes"):
        PreparedStudies.open(own_copy, "train")
    (own_copy / "manifest.json").write_text("{")
    with pytest.raises(IntegrityError, match="damaged"):
        PreparedStudies.open(own_copy, "train")


def test_the_fingerprint_is_that_of_the_whole_data_set(prepared, train, own_copy, tmp_path):
    assert PreparedStudies.open(prepared, "tuning").fingerprint == train.fingerprint
    assert PreparedStudies.open(own_copy, "train").fingerprint == train.fingerprint
    other, _ = folder_of.write_folder(tmp_path / "other", lambda n: "tuning" if n % 6 == 4 else "train")
    assert PreparedStudies.open(other, "train").fingerprint != train.fingerprint


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("labels", lambda t: t.with_columns(pl.col("task_index").cast(pl.List(pl.Int64))),
         r"labels.parquet: column task_index: expected list<item: int32>, found list<item: int64>"),
        ("labels", lambda t: t.drop("visit_index"), "labels.parquet: column visit_index: .* found no such column"),
        ("labels", lambda t: t.reverse(), "labels.parquet: column study_id: expected ascending rows, found a smaller"),
        ("keys", lambda t: t.with_columns(split=None), "keys.parquet: column split: expected string, found null"),
        ("keys", lambda t: t.with_columns(split=pl.lit(None, pl.String)), "keys.parquet: column split: .* no null"),
        ("volumes", lambda t: pl.concat([t[:1], t]), "volumes.parquet: column study_id: .* found a row twice at row 1"),
    ],
)  # fmt: skip
def test_a_table_that_is_not_as_the_schema_says_is_refused(own_copy, name, change, message):
    """Even where the manifest has its checksum: another program may have written it."""
    path = own_copy / f"{name}.parquet"
    change(pl.read_parquet(path)).write_parquet(path)
    with pytest.raises(IntegrityError, match=rf"prepared/{message}.*; run jobs\.prepare again"):
        PreparedStudies.open(sealed_again(own_copy), "train")


def test_how_text_and_lists_are_stored_does_not_matter(own_copy, train):
    """Old folders, and other writers: large or dictionary-encoded text, categories."""
    for name in ("keys", "volumes"):
        frame = pl.read_parquet(own_copy / f"{name}.parquet")
        frame.with_columns(pl.col("study_id").cast(pl.Categorical)).write_parquet(own_copy / f"{name}.parquet")
    assert PreparedStudies.open(sealed_again(own_copy), "train").study_key.tolist() == train.study_key.tolist()


def test_further_columns_are_no_harm(own_copy, train):
    path = own_copy / "volumes.parquet"
    parquet.write_table(parquet.read_table(path).append_column("note", [["x"] * (NUM_STUDIES - 2)]), path)
    assert len(PreparedStudies.open(sealed_again(own_copy), "train")) == len(train)
    assert read_table(own_copy, schema.VOLUMES, ["study_id"]).column_names == ["study_id"]


def test_a_folder_of_another_schema_version_is_refused(own_copy):
    manifest = json.loads((own_copy / "manifest.json").read_text())
    (own_copy / "manifest.json").write_text(json.dumps(manifest | {"schema_version": 2}))
    with pytest.raises(IntegrityError, match=r"expected schema_version 1, found 2; run jobs\.prepare again"):
        PreparedStudies.open(own_copy, "train")


@pytest.mark.parametrize("module", ["data.prepared.opened", "data.prepared.schema", "data.batches.loader"])
def test_a_training_node_needs_neither_polars_nor_ray(repository, module):
    heavy = ("polars", "ray", "monai", "deepspeed")
    code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
