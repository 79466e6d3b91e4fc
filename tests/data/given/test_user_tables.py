"""Tables that users hand in: usual spellings are read; what cannot be is called what it is, with key, file and line."""

import gzip
import re

import polars as pl
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from data.given.label_tables import read_label_tables
from data.given.study_table import read_studies
from data.given.user_tables import read_table
from data.subjects.splits import read_splits
from ttepretrain.errors import ConfigError, IntegrityError

STUDIES = 'study_id,subject_id,study_time,note\ns1,1,2020-01-01 10:00:00,"two\nlines"\ns2,2,2020-01-02 11:00:00,"x\n'
LABELS = "study_id,phenotype,kind,label,horizon_days\ns1,p,prognosis,true,30\n"
SPLITS = "subject_id,split\n1,train\n2,test\n"


def store(path, text, delimiter=","):
    data = text.replace(",", delimiter).encode()
    path.write_bytes(gzip.compress(data) if path.suffix.lower() == ".gz" else data)
    return path


SPELLINGS = [
    ("t.csv", ","), ("T.CSV", ","), ("t.csv", ";"), ("t.csv", "\t"), ("t.csv", "|"), ("t.tsv", "\t"), ("T.TSV", "\t"),
    ("t.csv.gz", ","), ("T.Csv.Gz", ";"), ("t.tsv.gz", "\t"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "delimiter"), SPELLINGS)
def test_studies_labels_and_splits_are_read_in_every_usual_spelling(tmp_path, name, delimiter):
    path = tmp_path / name
    studies = read_studies(store(path, STUDIES, delimiter), "never", None)
    assert studies.frame.select("study_id", "subject_id", "note").rows() == [("s1", 1, "two\nlines"), ("s2", 2, '"x')]
    labels = read_label_tables([store(path, LABELS, delimiter)], {"p": "prognosis"})
    assert labels.select("study_id", "label", "horizon_days").rows() == [("s1", True, 30.0)]
    splits = read_splits(store(path, SPLITS, delimiter), "input.splits")
    assert splits.rows() == [(1, "train"), (2, "test")]


def test_parquet_is_read_in_either_letter_case(tmp_path):
    pl.DataFrame({"subject_id": [1], "split": ["train"]}).write_parquet(tmp_path / "S [1].PARQUET")
    assert read_splits(tmp_path / "S [1].PARQUET", "input.splits").rows() == [(1, "train")]


def test_a_row_that_begins_with_a_stray_mark_swallows_none(tmp_path):
    rows = [f"s{n},{n},2020-01-01" for n in range(1000)]
    rows[7] = 's7,7,2020-01-01,"a'
    text = "study_id,subject_id,study_time,note\n" + "\n".join(row + "," * (row.count(",") == 2) for row in rows)
    assert read_studies(store(tmp_path / "t.csv", text), "never", None).num_rows == 1000


def test_columns_without_a_name_are_no_columns(tmp_path):
    """Excel keeps the width of a sheet."""
    path = store(tmp_path / "t.csv", "study_id,subject_id,study_time,,\ns1,1,2020-01-01,,\n")
    assert read_studies(path, "never", None).carried == []


def test_a_study_called_na_keeps_its_name_without_quotation_marks(tmp_path):
    path = store(tmp_path / "t.csv", "study_id,subject_id,study_time\nNA,1,2020-01-01\nnull,2,2020-01-01\n")
    assert read_studies(path, "never", None).frame["study_id"].to_list() == ["NA", "null"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"", "is empty; a first line with the names of the columns is needed"),
        ("t.csv", b"\n", "is empty"),
        ("t.csv", b"a,b\n1\n", "t.csv, line 2: 1 cells, but the header has 2"),
        ("t.csv", b"a,b\n1,2\n1,2,3\n", "t.csv, line 3: 3 cells, but the header has 2"),
        ("t.csv", b'a,b\n1,"say \\"x\\", y"\n', 't.csv, line 2: a quotation mark is escaped by a backslash (\\")'),
        ("t.csv", "a,b\n1,ä\n".encode("latin-1"), "t.csv, line 2: is not UTF-8 text, perhaps Latin-1"),
        ("t.csv", "a,b\n1,2\n".encode("utf-16"), "t.csv is UTF-16 text"),
        ("t.csv", b"PK\x03\x04 xl/", "t.csv is an Excel workbook; save it as csv"),
        ("t.csv", b"<html><body>404", "t.csv is a web page"),
        ("t.csv", b"PAR1", "t.csv is a parquet file; name it .parquet"),
        ("t.parquet", b"a,b\n1,2\n", "t.parquet is not parquet; if it is text, name it .csv"),
        ("t.parquet", gzip.compress(b"a,b\n"), "t.parquet is not parquet, but gzip-compressed"),
        ("t.parquet", b"", "t.parquet is empty"),
        ("t.xlsx", b"PK\x03\x04", "t.xlsx: a .parquet or .csv table is needed"),
        ("._t.csv", b"\0\5\x16\7", "._t.csv is what macOS keeps beside a file; give t.csv itself"),
        ("t.csv", b"a,b,a\n1,2,3\n", "t.csv: columns a and a have the same name"),
        ("t.csv", b"Site,site\n1,2\n", "t.csv: columns Site and site have the same name (letter case does not count)"),
    ],
)
def test_what_cannot_be_read_is_called_what_it_is(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match="^input.studies: " + ".*" + re.escape(message)) as error:
        read_table(tmp_path / name, "input.studies")
    assert not re.search("damaged|restore", str(error.value))


def test_a_folder_and_nothing_are_no_table(tmp_path):
    with pytest.raises(ConfigError, match=r"input\.splits: .* is a folder; give the path of a table in it"):
        read_table(tmp_path, "input.splits")
    with pytest.raises(ConfigError, match=r"input\.splits: .*gone\.csv is not a file"):
        read_table(tmp_path / "gone.csv", "input.splits")


@pytest.mark.parametrize("names", [["a", "a"], ["Site", "site"]])
def test_a_parquet_with_a_column_twice_is_refused_by_name(tmp_path, names):
    parquet.write_table(pa.Table.from_arrays([pa.array([1])] * 2, names), tmp_path / "t.parquet")
    with pytest.raises(
        ConfigError, match=rf"input\.studies: t\.parquet: columns {names[0]} and {names[1]} have the same"
    ):
        read_table(tmp_path / "t.parquet", "input.studies")


def test_what_is_cut_short_is_damaged(tmp_path):
    store(tmp_path / "t.csv.gz", SPLITS * 900)
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "t.parquet")
    for name in ("t.csv.gz", "t.parquet"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-9])
        with pytest.raises(IntegrityError, match=rf"input\.splits: {name}: is damaged or cut short .*; copy it again"):
            read_table(tmp_path / name, "input.splits")


def test_a_tsv_with_study_id_is_no_table_of_inspect(tmp_path):
    path = store(tmp_path / "t.tsv", "impression_id,label\n1,TRUE\n", "\t")
    with pytest.raises(ConfigError, match="none of INSPECT's label columns"):
        read_label_tables([path], {})
