"""The schema of `prepared/`: its checks by hand, its twin in `ehr`, and the page that is made from it."""

from datetime import datetime

import polars as pl
import pyarrow as pa
import pytest

import ehr.schema
from data.prepared import reference, schema
from data.prepared.schema import Column, Table, file_of
from ttepretrain.errors import ConfigError, IntegrityError

T0 = datetime(2020, 1, 1)
TABLE = Table(
    name="x.parquet",
    meaning="",
    ascends=("name", "time"),
    unique=False,
    columns=(
        Column("name", pa.string(), "", null="none"),
        Column("time", pa.timestamp("us"), ""),
        Column("days", pa.list_(pa.float64()), "", null="none"),
    ),
)


def table(names, times=None, days=None):
    times = [T0] * len(names) if times is None else times
    days = [[1.0]] * len(names) if days is None else days
    return pa.Table.from_pydict({"name": names, "time": times, "days": days}, schema=TABLE.schema)


@pytest.mark.parametrize(
    "good",
    [
        table([]),
        table(["a"]),
        table(["a", "a", "b", None, None]),
        table(["a", "a", "b"], [T0, T0.replace(year=2021), T0]),
        table(["a", "b"], days=[[], None]),
        pa.concat_tables([table(["a"]), table(["b"])]),
    ],
)
def test_what_is_as_stated_passes(good):
    TABLE.check(good)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (table(["b", "a"]), "name, time: expected ascending rows, found a smaller value at row 1"),
        (table([None, "a"]), "found a smaller value at row 1"),
        (table(["a", "a"], [T0, T0.replace(year=2019)]), "found a smaller value at row 1"),
        (table(["a"], [None]), "time: expected no null, found 1 of 1"),
        (table(["a"], days=[[1.0, None]]), "days: expected no null in a list, found 1"),
        (table(["a"]).drop(["days"]), "days: expected list<item: double>, found no such column"),
        (table(["a"]).append_column("more", [["x"]]), "column more is unknown; known: name, time, days"),
        (table(["a"]).cast(pa.schema([("name", pa.string()), ("time", pa.timestamp("ms")),
                                      ("days", pa.list_(pa.float64()))])), "time: expected timestamp.us., found"),
    ],
)  # fmt: skip
def test_what_is_not_is_named_with_file_and_column_but_no_value(bad, message):
    with pytest.raises(IntegrityError, match=f"prepared/x.parquet: .*{message}"):
        TABLE.check(bad)


def test_equal_rows_are_refused_where_a_row_stands_for_one_thing():
    labels = Table(name="y.parquet", meaning="", ascends=("name",), columns=TABLE.columns)
    labels.check(table(["a", "b"]))
    with pytest.raises(IntegrityError, match="name: expected ascending rows, found a row twice at row 2"):
        labels.check(table(["a", "b", "b"]))


def test_every_file_has_one_entry_and_a_name_of_another_folder_none():
    assert file_of("covariates.parquet") is schema.COVARIATES
    assert file_of("stages/covariates.parquet") is schema.EHR_HALF
    assert file_of("labels_meds/edema/30d.parquet") is schema.MEDS_LABELS
    assert file_of("stages/meds/data/0.parquet").name == "stages/meds/**"
    for name in ("volumes/deep/x.b2nd", "stages/keys.parquet", "labels.csv"):
        with pytest.raises(KeyError, match="is no file of prepared"):
            file_of(name)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (schema.LABELS, ehr.schema.LABELS),
        (schema.PHENOTYPES, ehr.schema.PHENOTYPES),
        (schema.EHR_HALF, ehr.schema.COVARIATES),
    ],
)
def test_what_ehr_hands_on_is_what_is_written(ours, theirs):
    """Codes are categories in memory and text in the file."""
    stored = {name: pl.List(pl.String) if name == "past_codes" else dtype for name, dtype in theirs.items()}
    assert dict(pl.Schema(ours.schema)) == stored


def test_every_column_has_a_meaning_of_one_line():
    for file in schema.FILES:
        assert file.meaning
        assert "\n" not in file.meaning
        for column in file.columns if isinstance(file, Table) else ():
            assert column.meaning
            assert "|" not in f"{column.meaning}{column.unit}{column.null}"


@pytest.mark.source
def test_the_page_is_fresh(tmp_path, monkeypatch):
    reference.main(["--check"])
    stale = tmp_path / "prepared.md"
    monkeypatch.setattr(reference, "PAGE", stale)
    with pytest.raises(ConfigError, match=r"prepared\.md is stale; run `.venv/bin/python -m data.prepared.reference`"):
        reference.main(["--check"])
    reference.main([])
    reference.main(["--check"])
    assert all(len(line) <= 100 or line.startswith("|") for line in stale.read_text().splitlines())
