"""The table of studies is read against its contract; bad rows are refused alone, a bad table is an error."""

from datetime import date, datetime

import polars as pl
import pytest

from data.given.study import Study
from data.given.study_table import read_studies, refuse_unusable
from ttepretrain.errors import ConfigError, IntegrityError

ROWS = {
    "study_id": ["s2", "s1"],
    "subject_id": [20, 10],
    "study_time": [datetime(2020, 5, 1, 13, 30, 0, 250), datetime(2020, 5, 2)],
    "image": ["a/2.nii.gz", None],
    "split": ["train", "held_out"],
    "site": ["x", "y"],
}


def write(path, **changes):
    table = pl.DataFrame({k: v for k, v in (ROWS | changes).items() if v is not None})
    table.write_parquet(path) if path.suffix == ".parquet" else table.write_csv(path)
    return path


def read(path, date_only="midnight", timezone=None):
    return read_studies(path, date_only, timezone)


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_parquet_and_csv_give_the_same_studies_sorted_by_id(tmp_path, suffix):
    table = read(write(tmp_path / f"studies{suffix}"))
    assert table.frame.to_dict(as_series=False) == {
        "study_id": ["s1", "s2"],
        "subject_id": [10, 20],
        "study_time": [datetime(2020, 5, 2), datetime(2020, 5, 1, 13, 30, 0, 250)],
        "date_only": [True, False],
        "image": [None, "a/2.nii.gz"],
        "split": ["held_out", "train"],
        "series_uid": [None, None],
        "patient_id": [None, None],
        "image_sha256": [None, None],
        "site": ["y", "x"],
    }
    assert table.frame.schema["study_time"] == pl.Datetime("us")
    assert (table.refused, table.num_studies, table.carried) == ([], 2, ["site"])


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_the_series_and_the_images_patient_are_read_as_text_and_not_carried(tmp_path, suffix):
    path = write(tmp_path / f"studies{suffix}", series_uid=["1.2.3", None], patient_id=[None, 70])
    table = read(path)
    assert table.frame.select("series_uid", "patient_id").rows() == [(None, "70"), ("1.2.3", None)]
    assert table.images == [Study("s2", "a/2.nii.gz", series_uid="1.2.3")]
    assert table.carried == ["site"]


@pytest.mark.parametrize(
    ("column", "rule", "expected"),
    [
        ([date(2020, 5, 1), date(2020, 5, 2)], "never", [True, True]),
        (["2020-05-01", "2020-05-02 00:00"], "never", [False, True]),
        (["2020-05-01", "2020-05-02 00:00"], "midnight", [True, True]),
        (["2020-05-01T07:01", "2020-05-02 00:00:00.000001"], "midnight", [False, False]),
    ],
)
def test_a_bare_date_is_date_only_and_midnight_by_rule(tmp_path, column, rule, expected):
    table = read(write(tmp_path / "studies.parquet", study_time=column), rule)
    assert table.refused == []
    assert table.frame["date_only"].to_list() == expected  # rows s1, s2 are columns 1, 0


def test_zoned_times_need_a_zone_to_be_converted_to(tmp_path):
    utc = pl.Series([datetime(2020, 7, 1, 22), datetime(2020, 1, 1, 22)]).dt.replace_time_zone("UTC")
    path = write(tmp_path / "studies.parquet", study_time=utc)
    with pytest.raises(ConfigError, match=r"zone UTC; set ehr\.timezone"):
        read(path)
    local = read(path, timezone="Europe/Berlin").frame["study_time"].to_list()
    assert local == [datetime(2020, 1, 1, 23), datetime(2020, 7, 2, 0)]


@pytest.mark.parametrize("dtype", [pl.Int32, pl.UInt64, pl.String])
def test_whole_subject_ids_of_any_width_become_int64(tmp_path, dtype):
    path = write(tmp_path / "studies.parquet", subject_id=pl.Series([20, 10]).cast(dtype))
    assert read(path).frame["subject_id"].to_list() == [10, 20]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"subject_id": None}, "no column subject_id; the table has study_id, study_time"),
        ({"subject_id": [date(2020, 5, 1)] * 2}, "column subject_id is Date; ids must be whole numbers"),
        ({"study_time": [1, 2]}, "study_time is Int64"),
        ({"study_id": [1.5, 2.5]}, "study_id is Float64"),
    ],
)
def test_a_column_of_the_wrong_kind_is_a_configuration_error(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        read(write(tmp_path / "studies.parquet", **changes))


@pytest.mark.parametrize(
    ("changes", "code", "detail"),
    [
        ({"study_id": ["s2", None]}, "BAD_ROW", "study_id is empty"),
        ({"study_id": ["s2", "s2"]}, "DUPLICATE_STUDY_ID", "several rows"),
        ({"subject_id": [20, None]}, "BAD_ROW", "subject_id"),
        ({"subject_id": ["20", "x10"]}, "BAD_ROW", "subject_id"),
        ({"subject_id": pl.Series([20, 2**63 + 1], dtype=pl.UInt64)}, "BAD_ROW", "subject_id"),
        ({"study_time": [datetime(2020, 5, 1), None]}, "BAD_ROW", "study_time"),
        ({"study_time": ["2020-05-01", "01.05.2020"]}, "BAD_ROW", "study_time"),
        ({"study_time": ["2020-05-01", "2020-02-30"]}, "BAD_ROW", "study_time"),
        ({"study_time": ["2020-05-01", "2020-05-01T10:00:00Z"]}, "BAD_ROW", "study_time"),
    ],
)
def test_a_bad_row_is_refused_alone(tmp_path, changes, code, detail):
    table = read(write(tmp_path / "studies.parquet", **changes))
    assert {(r.stage, r.code) for r in table.refused} == {("table", code)}
    assert all(detail in r.detail for r in table.refused)
    assert table.frame.height + len(table.refused) == 2


def test_rows_equal_in_every_column_count_once(tmp_path):
    table = pl.DataFrame(ROWS)
    pl.concat([table, table]).write_parquet(tmp_path / "studies.parquet")
    read_back = read(tmp_path / "studies.parquet")
    assert (read_back.num_rows, read_back.num_repeated, read_back.frame.height) == (4, 2, 2)


def test_a_truncated_table_is_an_integrity_error(tmp_path):
    path = write(tmp_path / "studies.parquet")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(IntegrityError, match=r"input\.studies.*damaged"):
        read(path)


@pytest.mark.parametrize("time", ["0020-05-01", "1399-02-12", "2563-05-01", "1900-01-01", "1970-01-01", "9999-12-31"])
def test_a_study_in_another_calendar_or_at_a_placeholder_date_is_refused(tmp_path, time):
    """It would be followed for centuries, or never."""
    table = read(write(tmp_path / "studies.csv", study_time=["2020-05-01", time]))
    assert [(bad.code, bad.detail[:27]) for bad in table.refused] == [("BAD_ROW", "study_time is a placeholder")]


def test_a_day_is_a_day_however_it_was_written(tmp_path):
    path = write(tmp_path / "studies.parquet", study_time=["2020-05-01 23:59:00", "2020-05-02T23:59:59.5"])
    frame = read(path, "day_end").frame
    assert frame["study_time"].to_list() == [datetime(2020, 5, 2), datetime(2020, 5, 1)]
    assert frame["date_only"].all()


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_header_without_rows_is_said_to_be_one(tmp_path, suffix):
    frame = pl.DataFrame(ROWS).clear()
    path = tmp_path / f"studies{suffix}"
    frame.write_parquet(path) if suffix == ".parquet" else frame.write_csv(path)
    with pytest.raises(ConfigError, match="the table has a header and no rows"):
        refuse_unusable(read(path))


@pytest.mark.parametrize(
    ("column", "cells", "message"),
    [
        (
            "subject_id",
            ["MRN-1", "MRN-2", "3"],
            "column subject_id is empty or not a whole number in 2 of 3 rows; write",
        ),
        ("study_time", ["01.05.2020", "5/1/20", "2020-05-01"], "column study_time .* in 2 of 3 rows; write timestamps"),
        (
            "study_time",
            ["1399-01-01", "", "2020-05-01"],
            r"study_time is empty or .* in 1, is a placeholder.* in 1 of 3",
        ),
        ("study_id", [None, None, "a"], "column study_id is empty in 2 of 3 rows; give every study a name"),
    ],
)
def test_a_column_that_spoils_most_rows_is_named_with_what_it_must_be(tmp_path, column, cells, message):
    rows = {"study_id": ["a", "b", "c"], "subject_id": ["1", "2", "3"], "study_time": ["2020-05-01"] * 3}
    pl.DataFrame(rows | {column: cells} | {"other": ["x", "y", "z"]}).write_csv(tmp_path / "studies.csv")
    table = read(tmp_path / "studies.csv")
    assert len(table.refused) == 2
    with pytest.raises(ConfigError, match=message):
        refuse_unusable(table)


def test_a_column_that_spoils_half_of_the_rows_is_left_to_the_limit_of_refusals(tmp_path):
    refuse_unusable(read(write(tmp_path / "studies.parquet", subject_id=["20", "x10"])))
