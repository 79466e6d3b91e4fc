"""The joined tables of `prepared/`, its checks and its manifest."""

import json
import stat
from datetime import datetime

import polars as pl
import pytest

from data.given.study_table import StudyTable
from data.prepared import schema
from data.prepared.table_file import write_table
from data.prepared.write import (
    covariate_table,
    duplicates,
    quarantine_table,
    study_counts,
    volume_table,
    write_manifest,
    write_prepared,
)
from data.quarantine import Quarantined
from data.subjects.keys import key_table
from data.volumes.cache import VolumeRecord
from data.volumes.prepare_study import PreparedVolume
from ttepretrain.errors import BadDataError, IntegrityError, LeakageError
from ttepretrain.files import sha256_of
from ttepretrain.volume.spec import PRESETS

KEYS = key_table(
    bytes(32), pl.DataFrame({"study_id": list("abc"), "subject_id": [1, 2, 3], "split": ["train", "train", "tuning"]})
)


def volume(study_id, voxels, **acquisition):
    record = VolumeRecord(
        [4, 5, 6], [3.0, 2.0, 1.0], [0.0] * 16, ["lossy"], acquisition, [1.0, 2.0, 3.0], "source", voxels
    )
    return PreparedVolume(study_id, f"key-{voxels}", f"sum-{voxels}", record, reused=False)


def test_duplicates_within_a_split_are_found_by_their_voxels():
    volumes = [volume("b", "x"), volume("a", "x"), volume("c", "y")]
    assert duplicates(volumes, KEYS) == {"a", "b"}
    table = volume_table(volumes, {"a", "b"})
    assert table["study_id"].to_list() == ["a", "b", "c"]
    assert table["flags"].to_list() == [["lossy", "DUPLICATE_CONTENT"]] * 2 + [["lossy"]]


def test_duplicates_across_splits_stop_the_run_and_are_named_by_key():
    with pytest.raises(LeakageError, match=r"1 volumes appear in more than one split") as raised:
        duplicates([volume("a", "x"), volume("c", "x")], KEYS)
    assert all(key in str(raised.value) for key in KEYS.filter(pl.col("study_id") != "b")["study_key"])
    assert raised.value.exit_code == 7


def test_covariates_join_ehr_scanner_and_table_for_every_labelled_study():
    frame = pl.DataFrame(
        {
            "study_id": list("abc"),
            "subject_id": [1, 2, 3],
            "study_time": [datetime(2020, 1, 1, 23, 59), datetime(2020, 1, 2), datetime(2020, 1, 3)],
            "date_only": [False, True, False],
            "image": None,
            "split": "train",
            "sex": ["?", "?", "?"],
            "site": ["north", "south", "west"],
        }
    )
    of_ehr = pl.DataFrame(
        {"study_id": ["a", "b"], "age_years": [50.5, None], "sex": ["F", None], "past_codes": [["x"], []]},
        schema_overrides={"past_codes": pl.List(pl.String)},
    )
    table = covariate_table(of_ehr, StudyTable(frame, [], 3, 0), [volume("b", "y", kvp=120.0, contrast=True)])
    assert table.rows(named=True) == [
        {
            "study_id": "a", "age_years": 50.5, "sex": "F", "manufacturer": None, "kernel": None, "kvp": None,
            "contrast": None, "source_spacing_mm": None, "scan_hour": 23, "past_codes": ["x"],
            "table_sex": "?", "site": "north",
        },
        {
            "study_id": "b", "age_years": None, "sex": None, "manufacturer": None, "kernel": None, "kvp": 120.0,
            "contrast": True, "source_spacing_mm": [1.0, 2.0, 3.0], "scan_hour": None, "past_codes": [],
            "table_sex": "?", "site": "south",
        },
    ]  # fmt: skip


BAD = [Quarantined(f"s{n}", "volumes", "CRC", "detail") for n in range(3)]


def test_the_quarantine_does_not_depend_on_who_finished_first_and_an_empty_one_has_its_columns():
    unnamed = Quarantined(None, "table", "BAD_ROW", "no study_id")
    first, second = (quarantine_table([*records, unnamed]) for records in (BAD, BAD[::-1]))
    assert first.equals(second)
    assert first["study_id"].to_list() == ["s0", "s1", "s2", None]
    schema.QUARANTINE.check(first.to_arrow())
    assert quarantine_table([]).columns == ["study_id", "stage", "code", "detail"]


def test_a_study_in_the_tables_of_all_stages_is_ready():
    frame = KEYS.select("study_id", "subject_id", "split").with_columns(image=pl.lit(None, pl.String))
    counts = study_counts(StudyTable(frame, [], 4, 1), {"table": 3}, {"CRC": 1}, [KEYS[:2], KEYS[1:]])
    assert counts["splits"]["ready"] == {"train": 1, "tuning": 0, "held_out": 0}
    assert counts["splits"]["studies"] == {"train": 2, "tuning": 1, "held_out": 0}
    assert counts["studies"] == {"rows": 4, "repeated_rows": 1, "refused_rows": 0, "without_image": 3}


def summary_of(*ready):
    return {"splits": {"ready": dict(zip(("train", "tuning", "held_out"), ready))}}


def test_the_manifest_comes_last_and_has_the_checksum_of_every_file(tmp_path):
    (tmp_path / "tasks.json").write_text("{}")
    with pytest.raises(BadDataError, match="no study is left with what the stages need"):
        write_prepared(tmp_path, {schema.KEYS: KEYS}, ["tasks.json"], PRESETS["small"], summary_of(0, 0, 0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["keys.parquet", "summary.json", "tasks.json"]
    write_prepared(tmp_path, {schema.KEYS: KEYS}, ["tasks.json"], PRESETS["small"], summary_of(1, 0, 0))
    files = json.loads((tmp_path / "manifest.json").read_text())["files"]
    names = ["keys.parquet", "summary.json", "tasks.json"]
    assert {name: entry["sha256"] for name, entry in files.items()} == {n: sha256_of(tmp_path / n) for n in names}
    assert stat.S_IMODE((tmp_path / "keys.parquet").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.with_columns(pl.col("subject_id").cast(pl.Int32)), "subject_id: expected int64, found int32"),
        (lambda t: t.with_columns(note=pl.lit(1)), "column note is unknown"),
        (lambda t: t.reverse(), "study_id: expected ascending rows"),
    ],
)
def test_a_table_that_is_not_as_the_schema_says_is_never_written(tmp_path, change, message):
    with pytest.raises(IntegrityError, match=rf"prepared/keys\.parquet: .*{message}"):
        write_table(tmp_path, schema.KEYS, change(KEYS))
    assert not list(tmp_path.iterdir())


def test_a_file_that_the_schema_does_not_know_is_never_in_the_manifest(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(KeyError, match=r"notes\.txt is no file of prepared/"):
        write_manifest(tmp_path, ["notes.txt"], None, PRESETS["small"])
