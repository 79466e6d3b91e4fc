"""Every table that holds ids, times, numbers or truth reads a cell alike: one spelling, one value, whoever asks."""

from datetime import datetime
from decimal import Decimal

import polars as pl
import pytest

from data.given.inspect_studies import read_inspect_studies
from data.given.label_tables import read_label_tables
from data.given.study_table import read_studies
from data.subjects.splits import read_splits
from ehr.sources import columns
from ehr.sources.omop import TABLES, Clock, rows_of
from ehr.sources.table_rows import batches
from ttepretrain.errors import ConfigError

EMPTY, UNREADABLE, ZONED = "empty", "unreadable", "zoned"
BIG = 2**53
NULLS = ["", "NA", "nan", "NaN", "NaT", "NULL", "null", "None", "\\N", " NA ", "<NA>", "N/A", "#N/A"]

IDS = {
    "101": 101, " 101 ": 101, "00101": 101, "+101": 101, "-101": -101, "101.0": 101, "101.": 101, "101.000": 101,
    str(BIG + 1): BIG + 1, str(2**63 - 1): 2**63 - 1, f"{BIG}.0": UNREADABLE, str(2**63): UNREADABLE,
    "101.5": UNREADABLE, "1e2": UNREADABLE, "x101": UNREADABLE, "1,001": UNREADABLE, "true": UNREADABLE,
    **dict.fromkeys(NULLS, EMPTY),
}  # fmt: skip
TYPED_IDS = {
    "int8": (pl.Series([101], dtype=pl.Int8), 101), "uint64": (pl.Series([2**63], dtype=pl.UInt64), UNREADABLE),
    "float": (pl.Series([101.0]), 101), "float32": (pl.Series([101.0], dtype=pl.Float32), 101),
    "large float32": (pl.Series([2.0**24], dtype=pl.Float32), UNREADABLE),
    "exact float32": (pl.Series([2.0**24 - 1], dtype=pl.Float32), 2**24 - 1),
    "fraction": (pl.Series([101.5]), UNREADABLE), "large float": (pl.Series([float(BIG)]), UNREADABLE),
    "nan": (pl.Series([float("nan")]), EMPTY), "infinite": (pl.Series([float("inf")]), UNREADABLE),
    "decimal": (pl.Series([Decimal("101.00")]), 101), "null": (pl.Series([None], dtype=pl.Float64), EMPTY),
    "no type": (pl.Series([None], dtype=pl.Null), EMPTY),
    "categories": (pl.Series(["101.0"], dtype=pl.Categorical), 101),
}  # fmt: skip
DAY = datetime(2020, 1, 2)
TIMES = {
    "20200102": DAY, "2020-01-02": DAY, " 2020-01-02 ": DAY, "2020-01-02 00:00": DAY,
    "2020-01-02T10:20": datetime(2020, 1, 2, 10, 20), "2020-01-02 10:20:30": datetime(2020, 1, 2, 10, 20, 30),
    "2020-01-02 10:20:30.5": datetime(2020, 1, 2, 10, 20, 30, 500_000),
    "2020-01-02T10:20:30.1234567891": datetime(2020, 1, 2, 10, 20, 30, 123_456),
    "2020-01-02 10:20:60": UNREADABLE, "0000-01-02": UNREADABLE, "00000102": UNREADABLE,
    "2020/01/02": UNREADABLE, "1/2/2020": UNREADABLE, "2020-1-2": UNREADABLE, "2020-01-02 10:20 AM": UNREADABLE,
    "2020-02-30": UNREADABLE, "02.01.2020": UNREADABLE, "1577959200": UNREADABLE, "2020-01-02 24:00:00": UNREADABLE,
    "2020-01-02T10:20:30Z": ZONED, "2020-01-02 10:20:30+01:00": ZONED, "2020-01-02 10:20 CET": ZONED,
    **dict.fromkeys(NULLS, EMPTY),
}  # fmt: skip
NUMBERS = {
    "41.5": 41.5, " 41.5 ": 41.5, "4e1": 40.0, "-3": -3.0, "soon": UNREADABLE, "<5": UNREADABLE,
    **dict.fromkeys(NULLS, EMPTY),
}  # fmt: skip
TRUTH = {
    "true": True, "TRUE": True, " True ": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False,
    "Censored": EMPTY, "yes": UNREADABLE, "2": UNREADABLE, **dict.fromkeys(NULLS, EMPTY),
}  # fmt: skip


def quoted(cell: str) -> str:
    return f'"{cell}"'


def write(folder, suffix, table: dict):
    """A table of one row. csv cells are quoted: they arrive as they are."""
    path = folder / f"table{suffix}"
    if suffix == ".parquet":
        pl.DataFrame(
            {name: cell if isinstance(cell, pl.Series) else [cell] for name, cell in table.items()}
        ).write_parquet(path)
    else:
        path.write_text(f"{','.join(table)}\n{','.join(quoted(str(cell)) for cell in table.values())}\n")
    return path


# --- each reader: what it makes of one cell; where it must refuse, the words of columns.py


def study(folder, suffix, timezone=None, **cell):
    table = read_studies(
        write(folder, suffix, {"study_id": "s", "subject_id": 1, "study_time": "2020-01-01"} | cell), "never", timezone
    )
    (name,) = cell
    if table.refused:
        problem = {"subject_id": columns.NO_ID, "study_time": columns.NO_TIME}[name]
        assert [(bad.code, bad.detail) for bad in table.refused] == [("BAD_ROW", f"{name} {problem}")]
        return None
    return table.frame[name][0]


def split(folder, suffix, **cell):
    table = read_splits(write(folder, suffix, cell | {"split": "train"}), "input.splits")
    return table["subject_id"][0] if len(table) else None


def omop(folder, suffix, timezone=None, **cell):
    row = {"person_id": 1, "measurement_concept_id": 2, "measurement_date": "2020-01-01", "value_as_number": 5} | cell
    path = write(folder, suffix, {name: row[name] for name in row})
    table = TABLES["measurement"]
    (frame, _), *_ = batches(folder, path.name, table.columns, table.required)
    rows, counts = rows_of(table, frame, Clock(timezone, "never"))
    return (rows.row(0, named=True) if len(rows) else None), counts


def refuses(problem: str):
    return pytest.raises(ConfigError, match=problem.replace("(", r"\(").replace(")", r"\)").replace("^", r"\^"))


def check_id(read, expected):
    """Of a reader that refuses its table."""
    if expected == UNREADABLE:
        with refuses(columns.INEXACT_IDS):
            read()
    else:
        assert read() == (None if expected == EMPTY else expected)


@pytest.mark.parametrize(("cell", "expected"), IDS.items())
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_an_id_as_text_is_one_number_everywhere(tmp_path, suffix, cell, expected, caplog):
    value = None if expected in (EMPTY, UNREADABLE) else expected
    assert study(tmp_path, suffix, subject_id=cell) == value
    assert split(tmp_path, suffix, subject_id=cell) == value
    assert ("1 rows are left out" in caplog.text) == (expected == UNREADABLE)
    check_id(lambda: omop(tmp_path, suffix, person_id=cell)[0]["subject_id"], expected)
    check_id(lambda: omop(tmp_path, suffix, measurement_concept_id=cell)[0]["concept"], expected)


@pytest.mark.parametrize(("column", "expected"), TYPED_IDS.values(), ids=TYPED_IDS)
def test_an_id_of_any_type_is_one_number_everywhere(tmp_path, column, expected):
    value = None if expected in (EMPTY, UNREADABLE) else expected
    assert study(tmp_path, ".parquet", subject_id=column) == value
    assert split(tmp_path, ".parquet", subject_id=column) == value
    check_id(lambda: omop(tmp_path, ".parquet", person_id=column)[0]["subject_id"], expected)


@pytest.mark.parametrize(("cell", "expected"), IDS.items())
def test_inspects_persons_are_read_as_all_ids(tmp_path, cell, expected):
    inspects(tmp_path, person_id=cell)
    read = lambda: read_inspect_studies(tmp_path / "study_mapping.tsv", True)[0]["subject_id"]  # noqa: E731
    if expected == EMPTY:
        assert not len(read())  # nobody's study is in no split
    else:
        check_id(lambda: read()[0], expected)


def inspects(folder, **cell):
    for name, columns_ in (("study_mapping.tsv", MAPPING), ("splits.tsv", SPLITS)):
        row = {column: cell.get(column, value) for column, value in columns_.items()}
        (folder / name).write_text("\t".join(row) + "\n" + "\t".join(row.values()) + "\n")


MAPPING = {
    "impression_id": "i",
    "person_id": "1",
    "image_id": "m",
    "procedure_DATETIME": "2020-01-01",
    "provenance": "x",
}
SPLITS = {"impression_id": "i", "person_id": "1", "split": "train"}


@pytest.mark.parametrize(("cell", "expected"), TIMES.items())
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_time_as_text_is_one_moment_everywhere(tmp_path, suffix, cell, expected):
    value = expected if isinstance(expected, datetime) else None
    assert study(tmp_path, suffix, study_time=cell) == value
    if expected == ZONED:
        with refuses(columns.ZONED_TEXT):
            omop(tmp_path, suffix, measurement_date=cell)
        return
    row, counts = omop(tmp_path, suffix, measurement_date=cell)
    assert (row and row["time"]) == value
    assert (counts["unreadable_times"], counts["no_time"]) == (expected == UNREADABLE, value is None)


LOCAL = {  # in Berlin; the clocks change on 29 March and 25 October 2020, at 01:00 UTC
    "2020-07-01 12:00:00Z": datetime(2020, 7, 1, 14), "2020-01-01T12:00+01:00": datetime(2020, 1, 1, 12),
    "2020-03-29 00:59:59 UTC": datetime(2020, 3, 29, 1, 59, 59), "2020-03-29 01:00:00+00": datetime(2020, 3, 29, 3),
    "2020-10-25T02:30:00+02:00": datetime(2020, 10, 25, 2, 30), "2020-10-25 01:30 GMT": datetime(2020, 10, 25, 2, 30),
    "2020-01-01 12:00:00.5-0530": datetime(2020, 1, 1, 18, 30, 0, 500_000),
    "2019-12-31T23:30:00Z": datetime(2020, 1, 1, 0, 30), "2020-01-01 12:00:00": datetime(2020, 1, 1, 12),
    "2020-01-01T12:00:00+01:00[Europe/Berlin]": datetime(2020, 1, 1, 12), "2020-13-01 12:00Z": UNREADABLE,
    "2020-01-01 12:00 CET": ZONED, "2020-01-01 12:00 Europe/Berlin": ZONED, "2020-01-01 12:00+15:00": ZONED,
}  # fmt: skip


@pytest.mark.parametrize(("cell", "expected"), LOCAL.items())
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_text_with_an_offset_or_utc_becomes_local_where_the_zone_is_known(tmp_path, suffix, cell, expected):
    """The name of a zone alone is not guessed: CST is at -06:00 and at +08:00."""
    value = expected if isinstance(expected, datetime) else None
    assert study(tmp_path, suffix, timezone="Europe/Berlin", study_time=cell) == value
    if expected == ZONED:
        with refuses(columns.NAMED_ZONE.replace("+", r"\+")):
            omop(tmp_path, suffix, timezone="Europe/Berlin", measurement_date=cell)
        return
    row, counts = omop(tmp_path, suffix, timezone="Europe/Berlin", measurement_date=cell)
    assert (row and row["time"]) == value
    assert counts["unreadable_times"] == (expected == UNREADABLE)
    inspects(tmp_path, procedure_DATETIME=cell)
    table = read_studies(tmp_path / "study_mapping.tsv", "never", "Europe/Berlin")
    assert table.frame["study_time"].to_list() == ([] if value is None else [value])


@pytest.mark.parametrize(
    ("cells", "kinds"),
    [
        (
            ["x", "1.5", "9e30", "7"],
            "3 .*text that is no number: 1, fractions: 1, floats from 2.53 on.*: 1; write int64",
        ),
        ([2.0**53, 1.5, float("inf"), 7.0], r"3 .*\(fractions: 1, infinite or nan: 1, floats from 2.53 on.*: 1; write"),
    ],
)
def test_ids_that_are_none_are_told_by_kind_and_not_shown(cells, kinds):
    with pytest.raises(ConfigError, match=f"column c holds {kinds}"):
        columns.whole_numbers(pl.Series(cells), "column c")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("cell", ["20200102", "2020-01-02"])
def test_a_bare_date_is_known_as_one_everywhere(tmp_path, suffix, cell):
    table = {"study_id": "s", "subject_id": 1, "study_time": cell}
    assert read_studies(write(tmp_path, suffix, table), "never", None).frame["date_only"].to_list() == [True]
    assert omop(tmp_path, suffix, measurement_date=cell)[1]["date_only"] == 1


def label_row(folder, suffix, **cell):
    row = {"study_id": "s", "phenotype": "p", "kind": "prognosis", "label": "true", "horizon_days": 30} | cell
    return read_label_tables([write(folder, suffix, row)], {"p": "prognosis"}).row(0, named=True)


def survival_row(folder, suffix, **cell):
    row = {"study_id": "s", "phenotype": "p", "kind": "prognosis", "event": "true", "time_days": 30} | cell
    return read_label_tables([write(folder, suffix, row)], {"p": "prognosis"}).row(0, named=True)


@pytest.mark.parametrize(("cell", "expected"), NUMBERS.items())
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_number_as_text_is_one_number_everywhere(tmp_path, suffix, cell, expected):
    """Label tables refuse what is no number, and need a positive one; a laboratory's text is no value."""
    value = None if expected in (EMPTY, UNREADABLE) else expected
    assert omop(tmp_path, suffix, value_as_number=cell)[0]["numeric_value"] == value
    for read, name, rule in (
        (label_row, "horizon_days", "must be positive"),
        (survival_row, "time_days", "filled|before"),
    ):
        if value is not None and value > 0:
            assert read(tmp_path, suffix, **{name: cell})[name] == value
        else:
            with pytest.raises(ConfigError, match=columns.NO_NUMBERS if expected == UNREADABLE else rule):
                read(tmp_path, suffix, **{name: cell})


@pytest.mark.parametrize(("cell", "expected"), TRUTH.items())
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_truth_as_text_is_looked_up(tmp_path, suffix, cell, expected):
    if expected == UNREADABLE:
        with pytest.raises(ConfigError, match=columns.NO_TRUTH):
            label_row(tmp_path, suffix, label=cell)
    else:
        assert label_row(tmp_path, suffix, label=cell)["label"] is (None if expected == EMPTY else expected)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("cell", NULLS)
def test_a_name_may_be_any_text_and_what_has_a_form_may_not(tmp_path, suffix, cell):
    """A study called NA keeps its name; its split, its series and its hash are nothing."""
    row = {"study_id": "NA", "subject_id": 1, "study_time": "2020-01-01", "patient_id": "None", "image": "null"}
    row |= dict.fromkeys(("split", "series_uid", "image_sha256"), cell)
    frame = read_studies(write(tmp_path, suffix, row), "never", None).frame
    assert frame.select("study_id", "patient_id", "image").row(0) == ("NA", "None", "null")
    assert frame.select("split", "series_uid", "image_sha256").row(0) == (None, None, None)
    table = write(tmp_path, suffix, {"subject_id": 1, "split": cell})
    assert not len(read_splits(table, "input.splits"))


@pytest.mark.parametrize("dtype", [pl.Boolean, pl.Date, pl.Time])
def test_a_type_that_holds_no_ids_is_refused_in_the_same_words(tmp_path, dtype):
    column = pl.Series([None], dtype=dtype)
    for read in (study, split):
        with pytest.raises(ConfigError, match=rf"column subject_id is {dtype}; {columns.NO_IDS}"):
            read(tmp_path, ".parquet", subject_id=column)
    with pytest.raises(ConfigError, match=rf"measurement\.person_id is {dtype}; {columns.NO_IDS}"):
        omop(tmp_path, ".parquet", person_id=column)


def test_an_empty_column_of_pandas_is_no_text_that_was_lost(tmp_path):
    """pandas writes a column without a value as floats; floats with values are refused: 7 and 7.0 are two names."""
    nothing = pl.Series([None], dtype=pl.Float64)
    for name in ("image", "split", "series_uid", "patient_id", "image_sha256"):
        assert study(tmp_path, ".parquet", **{name: nothing}) is None
        with pytest.raises(ConfigError, match=rf"column {name} is Float64; {columns.NO_TEXT}"):
            study(tmp_path, ".parquet", **{name: pl.Series([7.0])})
