"""MEDS folders as they come: what is tolerated, what is dropped and counted, what is refused by file and column."""

import random
from datetime import date, datetime, timedelta

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from ehr.sources.meds import filled
from ttepretrain.errors import BadDataError, ConfigError, DeclaredError, IntegrityError

T0 = datetime(2150, 6, 1, 12)
DAY = timedelta(days=1)
ROWS = [(1, T0 - 9 * DAY, "X/A"), (1, T0 + 10 * DAY, "X/A"), (1, T0 + 40 * DAY, "X/B"), (2, T0 + 20 * DAY, "X/B")]
ROWS += [(2, None, "GENDER//F"), (3, T0 + 30 * DAY, "X/A"), (4, T0 + 12 * DAY, "X/C")]


@pytest.fixture
def folder(tmp_path, meds):
    return meds.write(tmp_path / "ehr", [ROWS])


@pytest.fixture
def studies(meds):
    return meds.studies([(s, T0, "train") for s in (1, 2, 3, 4)])


def rewrite(folder, **columns: pa.Array | pa.DataType) -> None:
    """Replace or cast columns of the first shard."""
    path = folder / "data" / "0.parquet"
    table = parquet.read_table(path)
    for name, column in columns.items():
        column = table[name].cast(column) if isinstance(column, pa.DataType) else column
        place = table.schema.get_field_index(name)
        table = table.set_column(place, name, column) if place >= 0 else table.append_column(name, column)
    parquet.write_table(table, path)


@pytest.mark.parametrize(
    "columns",
    [
        {"code": pa.large_string()},
        {"code": pa.dictionary(pa.int32(), pa.string())},
        {"code": pa.string_view()},
        {"subject_id": pa.int32()},
        {"subject_id": pa.uint64()},
        {"time": pa.timestamp("ns")},
        {"time": pa.timestamp("ms")},
        {"numeric_value": pa.array([1.0] * len(ROWS)), "whatever": pa.array([["x"]] * len(ROWS))},
    ],
    ids=lambda columns: "-".join(f"{k}:{v if isinstance(v, pa.DataType) else 'new'}" for k, v in columns.items()),
)
def test_other_widths_and_further_columns_change_nothing(folder, studies, label, meds, columns):
    base = label(folder, studies)
    rewrite(folder, **columns)
    assert meds.same(label(folder, studies), base)


def test_shards_may_differ_in_types_and_be_empty(folder, studies, label, meds):
    """A second shard without rows and with null-typed columns; a third that repeats the rows in other types."""
    base = label(folder, studies)
    empty = pa.table({name: pa.nulls(0) for name in ("subject_id", "time", "code")})
    parquet.write_table(empty, folder / "data" / "1.parquet")
    (folder / "data" / "deep").mkdir()
    types = {"subject_id": pl.Int16, "time": pl.Datetime("ns"), "code": pl.Categorical}
    frame = pl.DataFrame(ROWS, schema=types, orient="row")

    frame.with_columns(other=1).write_parquet(folder / "data" / "deep" / "2.parquet")
    assert meds.same(label(folder, studies), base)


def test_bare_dates_as_a_column_of_dates(tmp_path, meds, label, studies):
    """date32 means the same as midnight, and cannot be placed when midnight is a moment."""
    days = ((1, 3, "X/A"), (2, 9, "X/B"), (3, 12, "X/A"))
    folder = meds.write(tmp_path / "ehr", [[(s, T0.replace(hour=0) + k * DAY, code) for s, k, code in days]])
    base = label(folder, studies)
    rewrite(folder, time=pa.date32())
    assert meds.same(label(folder, studies), base)
    with pytest.raises(ConfigError, match=r"data/0\.parquet: column time holds dates"):
        label(folder, studies, date_only="never")


def test_zoned_times_need_a_zone_and_are_then_local(tmp_path, label, meds):
    """Stored in UTC, read as Berlin's clock: an hour later in January, two in July."""
    local = [datetime(2021, 1, 10, 12), datetime(2021, 7, 10, 12), datetime(2021, 12, 1, 12)]
    utc = [datetime(2021, 1, 10, 11), datetime(2021, 7, 10, 10), datetime(2021, 12, 1, 11)]
    rows = [(subject, time, f"X/{k}") for k, time in enumerate(local) for subject in range(k + 1)]
    folder, studies = meds.write(tmp_path / "ehr", [rows]), meds.studies([(s, local[0], "train") for s in range(3)])
    base = label(folder, studies)
    times = [utc[local.index(time)] for _, time, _ in rows]
    rewrite(folder, time=pa.array(times, pa.timestamp("us", "UTC")))
    with pytest.raises(ConfigError, match=r"data/0\.parquet: column time has zone UTC; set ehr\.timezone"):
        label(folder, studies)
    assert meds.same(label(folder, studies, timezone="Europe/Berlin"), base)


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        ({"subject_id": pa.float64()}, ConfigError, r"data/0\.parquet: column subject_id is double"),
        ({"subject_id": pa.string()}, ConfigError, r"data/0\.parquet: column subject_id is string"),
        (
            {"subject_id": pa.array([1, None, 1, 2, 2, 3, 4])},
            BadDataError,
            r"data/0\.parquet: column subject_id holds null",
        ),
        ({"subject_id": pa.array([1, 2**63 + 1] + [2] * 5, pa.uint64())}, BadDataError, "beyond int64"),
        ({"time": pa.string()}, ConfigError, r"data/0\.parquet: column time is string"),
        ({"code": pa.array([1] * len(ROWS))}, ConfigError, r"data/0\.parquet: column code is int64"),
    ],
)
def test_what_cannot_be_read_exactly_is_refused_by_file_and_column(folder, studies, label, columns, error, message):
    rewrite(folder, **columns)
    with pytest.raises(error, match=message):
        label(folder, studies)


def test_a_missing_column_is_named(folder, studies, label):
    path = folder / "data" / "0.parquet"
    pl.read_parquet(path).drop("code").write_parquet(path)
    with pytest.raises(ConfigError, match=r"data/0\.parquet: no column code"):
        label(folder, studies)


@pytest.mark.parametrize("missing", ["folder", "data"])
def test_a_missing_data_set_is_a_configuration_error(tmp_path, studies, label, missing):
    folder = tmp_path / "ehr"
    if missing == "data":
        (folder / "metadata").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"input\.ehr"):
        label(folder, studies)


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.97])
@pytest.mark.parametrize("victim", ["data/0.parquet", "metadata/codes.parquet"])
def test_a_truncated_file_stops_the_run_by_name(tmp_path, studies, meds, label, victim, keep):
    folder = meds.write(tmp_path / "ehr", [ROWS], {"X/A": ["X/root"]})
    content = (folder / victim).read_bytes()
    (folder / victim).write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(IntegrityError, match=victim.replace(".", r"\.")):
        label(folder, studies)


def test_a_flipped_byte_is_a_declared_error_or_goes_unseen(tmp_path, studies, meds, label):
    """parquet has no checksums we could rely on: the input's hash in provenance.json is what tells. Never a crash."""
    folder = meds.write(tmp_path / "ehr", [ROWS * 200])
    path, rng = folder / "data" / "0.parquet", random.Random(0)
    content = path.read_bytes()
    stopped = 0
    for _ in range(60):
        spoilt = bytearray(content)
        spoilt[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(spoilt)
        try:
            label(folder, studies)
        except DeclaredError:
            stopped += 1
    assert stopped > 10


@pytest.mark.parametrize("codes", [[None], [""], [None, ""]], ids=["null", "empty", "both"])
def test_null_and_empty_codes_are_dropped_and_counted(tmp_path, meds, label, folder, studies, codes):
    base = label(folder, studies)
    dirty = meds.write(tmp_path / "dirty", [[*ROWS, *((1, T0 + 90 * DAY, code) for code in codes)]])
    result = label(dirty, studies)
    assert meds.same(result, base)
    assert result.counts["events"]["null_codes"] == len(codes)


def test_odd_codes_are_codes(tmp_path, meds, label, studies):
    """Regular expressions, unicode, ten thousand characters."""
    odd = ["X/(a|b)*[", "Ärzte//\u202e☃", "Y" * 10_000]
    rows = [(s, T0 + k * DAY, code) for k, code in enumerate(odd, 5) for s in (1, 2)] + ROWS
    assert set(odd) <= set(label(meds.write(tmp_path / "ehr", [rows]), studies).tasks.codes)


PLACEHOLDERS = [datetime(year, 1, 1) for year in (1, 1900, 1970, 2300, 9999)] + [datetime(2099, 12, 31)]


@pytest.mark.parametrize("spikes", [*([spike] for spike in PLACEHOLDERS), PLACEHOLDERS], ids=[*"123456", "all"])
def test_placeholder_dates_are_dropped_and_counted(tmp_path, meds, label, folder, studies, spikes):
    base = label(folder, studies)
    dirty = meds.write(tmp_path / "dirty", [[*ROWS, *((1, spike, "X/C") for spike in spikes)]])
    result = label(dirty, studies)
    assert meds.same(result, base)
    assert result.counts["events"]["placeholder_dates"] == len(spikes)
    assert result.counts["events"]["placeholder_codes"] == {"X/C": len(spikes)}


def test_the_last_time_there_is_is_a_placeholder_and_no_static_event(tmp_path, meds, label, folder, studies):
    base = label(folder, studies)
    dirty = meds.write(tmp_path / "dirty", [[*ROWS, (1, T0, "X/C")]])
    table = parquet.read_table(dirty / "data" / "0.parquet")
    times = [*table["time"].cast(pa.int64()).to_pylist()[:-1], np.iinfo(np.int64).max]
    parquet.write_table(table.set_column(1, "time", pa.array(times, pa.timestamp("us"))), dirty / "data" / "0.parquet")
    result = label(dirty, studies)
    assert meds.same(result, base)
    assert result.counts["events"]["placeholder_dates"] == 1


@pytest.mark.parametrize("its", [slice(0, 40), slice(3, 40), slice(9, 17), slice(16, 16)])
def test_numbers_of_a_part_of_a_column_are_those_of_the_part(its):
    values = [None if k % 3 == 0 else k for k in range(40)]
    expected = [-7 if value is None else min(value, 30) for value in values[its]]
    assert filled(pa.array(values, pa.int64())[its], -7, 30).tolist() == expected


@pytest.mark.parametrize(
    ("born", "year", "age"), [(datetime(1970, 1, 1), 2020, 50.4), (datetime(2099, 12, 31), 2150, 50.4)]
)
def test_a_birth_on_a_placeholder_day_is_a_birth(tmp_path, meds, label, born, year, age):
    rows = [(s, time and time.replace(year=year), code) for s, time, code in ROWS]
    studies = meds.studies([(s, T0.replace(year=year), "train") for s in (1, 2, 3, 4)])
    folder = meds.write(tmp_path / "born", [[*rows, (1, born, "MEDS_BIRTH")]])
    assert label(folder, studies).covariates["age_years"][0] == pytest.approx(age, abs=0.1)


def test_events_after_death_and_before_birth_are_counted(tmp_path, meds, label, studies):
    rows = [*ROWS, (3, T0 + 29 * DAY, "MEDS_DEATH"), (2, T0 + 21 * DAY, "MEDS_BIRTH"), (3, None, "X/S")]
    events = label(meds.write(tmp_path / "ehr", [rows]), studies).counts["events"]
    assert (events["after_death"], events["before_birth"]) == (1, 1)
    rows += [(3, T0 + 33 * DAY, code) for code in ("X/A", "X/B", "X/C")]  # at one time
    events = label(meds.write(tmp_path / "more", [rows]), studies).counts["events"]
    assert (events["after_death"], events["before_birth"]) == (4, 1)


def test_a_thousand_copies_of_the_rows_change_nothing(tmp_path, meds, label, folder, studies):
    assert meds.same(label(meds.write(tmp_path / "copies", [ROWS * 1000]), studies), label(folder, studies))


def test_no_message_holds_an_id(tmp_path, meds, label, studies):
    """The data set's own file names are told, subject ids are not."""
    folder = meds.write(tmp_path / "ehr", [[(424242, T0, "X/A")]])
    with pytest.raises(BadDataError) as error:
        label(folder, studies)
    assert "424242" not in str(error.value)
    assert str(date.today().year) not in str(error.value)
