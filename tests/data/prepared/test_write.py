"""The joined tables of `prepared/`."""

from datetime import datetime

import polars as pl
import pytest

from data.given.study_table import StudyTable
from data.prepared.write import covariate_table, duplicates, volume_table
from data.subjects.keys import key_table
from data.volumes.cache import VolumeRecord
from data.volumes.prepare_study import PreparedVolume
from ttepretrain.errors import LeakageError

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
