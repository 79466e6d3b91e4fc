"""INSPECT's studies: every trap of the public tables is counted, or refused by name."""

import gzip
import shutil
from datetime import datetime
from pathlib import Path

import polars as pl
import pytest

from data.given.study_table import read_studies
from data.subjects.splits import assign_splits
from data.testing import load_module
from ttepretrain.errors import ConfigError, LeakageError

release = load_module(Path(__file__).parents[1] / "inspect_release.py")
MAPPING, SPLITS, CROSSWALK = release.MAPPING, release.SPLITS, release.CROSSWALK
table, save, change, at = release.table, release.save, release.change, release.at
NUM = release.NUM_STUDIES


def studies(folder, **more):
    return read_studies(folder / MAPPING, "midnight", None, **more)


def test_a_clean_release_becomes_the_study_table(inspect):
    read = studies(inspect)
    assert len(read.frame) == NUM
    assert not read.refused
    first = read.frame.row(0, named=True)
    assert first["study_id"] == "imp0000"
    assert (first["subject_id"], first["image"], first["split"]) == (1_000_000, "CTPA/PE0000.nii.gz", "train")
    assert first["study_time"] == datetime(2015, 1, 1, 9, 30)
    assert read.carried == ["provenance"]
    frame, origins = assign_splits(read.frame, None, None, 0)
    assert set(frame["split"]) == {"train", "tuning", "held_out"}
    assert origins["hash"] == 0


def test_studies_that_cannot_be_used_are_left_out_and_counted_by_reason(inspect):
    rows = table(inspect, MAPPING)
    for row, value, column in (
        (3, None, "procedure_DATETIME"), (4, "NaT", "procedure_DATETIME"),
        (7, "rsna", "provenance"), (8, "RSNA", "provenance"), (9, "radfusion", "provenance"),
    ):  # fmt: skip
        rows = rows.with_columns(at(row, value, column))
    again = rows[20:21].with_columns(note_id=pl.lit("another"))  # the same in all that is used
    other = rows[30:31].with_columns(image_id=pl.lit("PE9999"))  # which image is it?
    save(inspect, MAPPING, pl.concat([rows, again, other]))
    save(inspect, SPLITS, table(inspect, SPLITS).filter(pl.col("person_id") != "1000050"))
    read = studies(inspect)
    assert read.inspect == {
        "repeated_rows": 1, "differing_rows_of_one_impression_id": 2, "provenance_rsna": 2,
        "no_procedure_DATETIME": 2, "no_split": 1,
    }  # fmt: skip
    gone = {f"imp{n:04d}" for n in (3, 4, 7, 8, 30, 50)}
    assert set(read.frame["study_id"]) == set(rows["impression_id"]) - gone
    assert not read.refused
    assert {"imp0007", "imp0008"} <= set(studies(inspect, keep_rsna=True).frame["study_id"])


def test_person_ids_that_pandas_wrote_as_floats_are_the_same(inspect):
    change(inspect, MAPPING, person_id=pl.col("person_id") + ".0")
    assert studies(inspect).frame["subject_id"][0] == 1_000_000


def test_a_person_in_two_splits_is_refused(inspect):
    change(inspect, MAPPING, person_id=at(1, "1000000", "person_id"))
    change(inspect, SPLITS, person_id=at(1, "1000000", "person_id"), split=at(1, "test", "split"))
    (inspect / CROSSWALK).unlink()
    with pytest.raises(LeakageError, match="1 persons of splits are in two splits"):
        studies(inspect)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (SPLITS, "1 of impression_id belong to another person in splits than in study_mapping"),
        (CROSSWALK, "1 of image_id belong to another person in image_ehr_crosswalk than in study_mapping"),
    ],
)
def test_tables_that_disagree_about_a_person_are_refused(inspect, name, message):
    change(inspect, name, person_id=at(5, "1000006", "person_id"))
    with pytest.raises(ConfigError, match=message):
        studies(inspect)


def test_the_crosswalk_is_no_must_and_two_of_them_are_refused(inspect):
    shutil.copy(inspect / CROSSWALK, inspect)
    with pytest.raises(ConfigError, match=r"2 files image_ehr_crosswalk\*\.csv; keep one"):
        studies(inspect)
    for path in inspect.rglob("image_ehr_crosswalk*"):
        path.unlink()
    assert len(studies(inspect).frame) == NUM


def test_tables_are_found_in_either_letter_case_and_compressed(inspect):
    clean = studies(inspect).frame
    (inspect / "Splits_20250611.TSV.gz").write_bytes(gzip.compress((inspect / SPLITS).read_bytes()))
    (inspect / SPLITS).unlink()
    (inspect / f"._{SPLITS}").write_bytes(b"\0\5\x16\7")
    (inspect / MAPPING).rename(inspect / MAPPING.upper())
    assert read_studies(inspect / MAPPING.upper(), "midnight", None).frame.equals(clean)


def test_what_is_missing_is_named(inspect):
    change(inspect, MAPPING, procedure_DATETIME=None)
    with pytest.raises(ConfigError, match=rf"{MAPPING}: no column procedure_DATETIME"):
        studies(inspect)
    change(inspect, MAPPING, procedure_DATETIME=pl.lit("2015-01-01"))
    (inspect / SPLITS).unlink()
    with pytest.raises(ConfigError, match=r"0 files splits\*\.tsv beside study_mapping_20250611\.tsv"):
        studies(inspect)


def test_a_row_with_other_cells_than_the_header_is_refused_by_line(inspect):
    text = (inspect / MAPPING).read_text()
    (inspect / MAPPING).write_text(text[: len(text) // 2] + "\ta\tb\tc\td\te\tf\tg\n" + text[len(text) // 2 :])
    with pytest.raises(ConfigError, match=rf"{MAPPING}, line 102: 10 cells, but the header has 6; quote cells"):
        studies(inspect)


def test_tables_that_excel_saved_are_the_same(inspect):
    """A byte order mark and line ends of two characters."""
    clean = studies(inspect).frame
    for name in (MAPPING, SPLITS):
        text = (inspect / name).read_text()
        (inspect / name).write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert studies(inspect).frame.equals(clean)
