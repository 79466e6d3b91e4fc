"""The table of studies is read against its contract; bad rows are refused alone, a bad table is an error."""

from datetime import date, datetime

import polars as pl
import pytest

from data.given.study_table import assign_splits, hash_split, read_splits, read_studies, resolve_image
from ttepretrain.errors import BadStudy, ConfigError, IntegrityError, LeakageError

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
        ({"subject_id": [20.0, 10.0]}, "subject_id is Float64; floats lose digits"),
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
        ({"study_id": ["s2", None]}, "BAD_ROW", "no study_id"),
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


# --- images


@pytest.mark.parametrize(
    "image",
    ["../x.nii.gz", "a/../../x", "/etc/passwd", "~/x.nii", "~root/x", "$HOME/x", "a/${HOME}/x", "file:///etc/passwd",
     "http://host/x.nii.gz", "a\0b.nii.gz", "", "out/secret.nii.gz", "out"],
)  # fmt: skip
def test_an_image_never_leads_out_of_the_tables_folder(tmp_path, image):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret.nii.gz").touch()
    root = tmp_path / "root"
    root.mkdir()
    (root / "out").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadStudy, match="OUTSIDE_ROOT"):
        resolve_image(root, image)


@pytest.mark.parametrize("image", ["a/x.nii.gz", "inside/x.nii.gz", "-rf.nii", "a b\nc.nii", "x..y.nii", "é" * 100])
def test_an_image_below_the_tables_folder_is_found_whatever_its_name(tmp_path, image):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "link").symlink_to(root)
    (root / "a").mkdir()
    (root / "inside").symlink_to(root / "a")
    for top in (root, tmp_path / "link"):
        assert resolve_image(top, image).parent.samefile((root / image).parent)


# --- splits


def studies(**splits):
    """One study per subject and split given as s<subject>=split."""
    rows = [(f"{name}.{n}", int(name[1:]), split) for name, given in splits.items() for n, split in enumerate(given)]
    return pl.DataFrame(rows, schema=["study_id", "subject_id", "split"], orient="row").cast({"split": pl.String})


def splits(**given):
    rows = [(int(name[1:]), split) for name, split in given.items()]
    return pl.DataFrame(rows, schema={"subject_id": pl.Int64, "split": pl.String}, orient="row")


def assigned(table, given=None, ehr=None, seed=0):
    frame, counts = assign_splits(table, given, ehr, seed)
    return dict(frame.select("subject_id", "split").iter_rows()), counts


def test_the_table_decides_then_the_ehr_then_the_hash():
    table = studies(s1=["valid", None], s2=[None], s3=[None])
    by_subject, counts = assigned(table, ehr=splits(s1="tuning", s2="test", s9="train"))
    assert by_subject == {1: "tuning", 2: "held_out", 3: hash_split(3, 0)}
    assert counts == {"table": 1, "input.splits": 0, "ehr": 1, "hash": 1}


def test_given_splits_replace_those_of_the_ehr():
    by_subject, counts = assigned(studies(s1=[None]), given=splits(s1="train"), ehr=splits(s1="held_out"))
    assert by_subject == {1: "train"}
    assert counts["input.splits"] == 1


@pytest.mark.parametrize(
    "arguments",
    [
        {"table": studies(s1=["train", "held_out"])},
        {"table": studies(s1=["train"]), "ehr": splits(s1="held_out")},
        {"table": studies(s1=["train"]), "given": splits(s1="tuning")},
        {"table": studies(s1=[None]), "ehr": pl.concat([splits(s1="train"), splits(s1="test")])},
    ],
)
def test_a_subject_in_two_splits_stops_the_run_without_naming_it(arguments):
    with pytest.raises(LeakageError, match=r"^1 subjects are in two splits"):
        assigned(**arguments)


def test_valid_and_tuning_are_the_same_split():
    assert assigned(studies(s1=["valid", "tuning"]))[0] == {1: "tuning"}


def test_an_unknown_split_name_is_a_configuration_error():
    with pytest.raises(ConfigError, match="unknown split 'dev'; the names are train, tuning"):
        assigned(studies(s1=["dev"]))


def test_hashed_splits_depend_on_the_subject_alone_and_have_the_stated_shares():
    alone = {subject: hash_split(subject, seed=3) for subject in range(20_000)}
    together, _ = assigned(studies(**{f"s{n}": [None] for n in range(100)}), seed=3)
    assert together == {n: alone[n] for n in range(100)}
    counts = pl.Series(list(alone.values())).value_counts()
    shares = {split: count / 20_000 for split, count in counts.iter_rows()}
    assert shares == pytest.approx({"train": 0.7, "tuning": 0.1, "held_out": 0.2}, abs=0.01)
    assert alone != {subject: hash_split(subject, seed=4) for subject in range(20_000)}


def test_a_splits_table_needs_its_two_columns(tmp_path):
    pl.DataFrame({"subject_id": [1], "fold": [1]}).write_csv(tmp_path / "splits.csv")
    with pytest.raises(ConfigError, match=r"input\.splits: columns subject_id and split"):
        read_splits(tmp_path / "splits.csv", "input.splits")
    pl.DataFrame({"subject_id": [1, 1], "split": ["train", "train"]}).write_csv(tmp_path / "splits.csv")
    assert read_splits(tmp_path / "splits.csv", "input.splits").rows() == [(1, "train")]
