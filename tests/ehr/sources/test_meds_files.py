"""Which files of a MEDS data set are read, and what their headers must say; deaths and births by their prefix."""

import gzip
import shutil
from datetime import datetime, timedelta

import polars as pl
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from data.labels.stage import _folder_hash
from ehr.config import EhrConfig
from ehr.odd_records import warn_of_files_and_clocks
from ehr.phenotype_file import Phenotype
from ehr.sources.meds import MedsSource, read_metadata
from ehr.sources.meds_files import event_files
from ehr.sources.nested import check_headers
from ttepretrain.errors import ConfigError, IntegrityError

T0 = datetime(2020, 6, 1, 12)
DAY = timedelta(days=1)
ROWS = [(1, T0 - 20 * 366 * DAY, "MEDS_BIRTH"), (1, T0 + 5 * DAY, "X/A"), (1, T0 + 9 * DAY, "MEDS_DEATH")]
ROWS += [(1, T0 + 12 * DAY, "X/A"), (2, T0 + 30 * DAY, "X/A"), (3, T0 + 40 * DAY, "X/B")]


@pytest.fixture
def folder(tmp_path, meds):
    return meds.write(tmp_path / "ehr", [ROWS])


@pytest.fixture
def studies(meds):
    return meds.studies([(s, T0, "train") for s in (1, 2, 3)])


def spelled(rows: list[tuple], death: str, birth: str) -> list[tuple]:
    names = {"MEDS_DEATH": death, "MEDS_BIRTH": birth}
    return [(s, time, names.get(code, code)) for s, time, code in rows]


@pytest.mark.parametrize("death", ["MEDS_DEATH//", "MEDS_DEATH//A", "MEDS_DEATH//ICD10//I21"])
def test_a_death_or_birth_with_more_behind_it_is_one(tmp_path, folder, studies, meds, label, death):
    """Follow-up ends with it, nothing after it is a label, the age is known; as with the code alone."""
    base = label(folder, studies)
    result = label(meds.write(tmp_path / "other", [spelled(ROWS, death, "MEDS_BIRTH//sure")]), studies)
    assert meds.same(result, base)
    assert result.labels["censor_days"].to_list() == [9.0, 30.0, 40.0]
    assert result.covariates["age_years"][0] == pytest.approx(20.04, abs=0.01)
    assert result.counts["events"]["qualified_codes"] == 2


@pytest.mark.parametrize("shards", ["one dictionary", "two files"])
def test_both_spellings_together_are_one_code(tmp_path, studies, meds, label, shards):
    """In one file the dictionary holds both; a second death and birth at another spelling change nothing."""
    again = [(1, T0 + 9 * DAY, "MEDS_DEATH//A"), (1, T0 - 20 * 366 * DAY, "MEDS_BIRTH//B")]
    base = label(meds.write(tmp_path / "base", [ROWS]), studies)
    parts = [[*ROWS, *again]] if shards == "one dictionary" else [ROWS, again]
    assert meds.same(label(meds.write(tmp_path / "ehr", parts), studies), base)


def test_codes_that_only_begin_alike_are_codes(tmp_path, studies, meds, label):
    rows = [
        *ROWS,
        (2, T0 + 3 * DAY, "MEDS_DEATHLY"),
        (3, T0 + 3 * DAY, "MEDS_DEATH/x"),
        (3, T0 + 2 * DAY, "meds_death//x"),
    ]
    result = label(meds.write(tmp_path / "ehr", [rows]), studies)
    assert {"MEDS_DEATHLY", "MEDS_DEATH/x", "meds_death//x"} <= set(result.tasks.codes)
    assert result.labels["censor_days"].to_list() == [9.0, 30.0, 40.0]


def test_no_null_or_unused_code_moves_when_spellings_are_merged(tmp_path, meds):
    rows = [
        (1, T0, None),
        (1, T0, "X/B"),
        (1, T0, "MEDS_DEATH//A"),
        (1, T0, "X/A"),
        (1, T0, "MEDS_DEATH"),
        (1, T0, "X/B"),
    ]
    (batch,) = MedsSource(meds.write(tmp_path / "ehr", [rows])).batches("data/0.parquet")
    names = batch.codes.gather(batch.code).to_list()
    assert names == ["X/B", "MEDS_DEATH", "X/A", "MEDS_DEATH", "X/B"]
    assert batch.codes.is_unique().all()
    assert batch.codes[batch.death] == "MEDS_DEATH"
    assert batch.counts["null_codes"] == 1


def test_the_metadata_of_a_kind_of_death_is_that_of_death(tmp_path, meds):
    folder = meds.write(tmp_path / "ehr", [ROWS], {"MEDS_DEATH//A": ["X/end"], "X/A": ["MEDS_DEATH//B", "X/root"]})
    assert read_metadata(folder).select("code", "parent_codes").rows() == [
        ("MEDS_DEATH", ["X/end"]), ("X/A", ["MEDS_DEATH", "X/root"]),
    ]  # fmt: skip


@pytest.mark.parametrize("code", ["MEDS_DEATH//A", "MEDS_DEATH//*", "MEDS_BIRTH//x"])
def test_a_kind_of_death_cannot_be_asked_for(code):
    """It would match nothing, or every death."""
    with pytest.raises(ConfigError, match=r"ehr\.exclude has no events of its own: every MEDS_\w+//\.\.\. is read as"):
        EhrConfig(exclude=[code])
    with pytest.raises(ConfigError, match=r"phenotypes\.dead\.codes has no events of its own"):
        Phenotype([code]).check("phenotypes.dead")


def test_sparks_folders_and_any_letter_case_are_read(folder, studies, meds, label):
    base, data = label(folder, studies), folder / "data"
    (data / "train" / "0.parquet").mkdir(parents=True)
    (data / "0.parquet").rename(data / "train" / "0.parquet" / "part-00000-c000.snappy.PARQUET")
    for name in (
        "_SUCCESS",
        "._SUCCESS.crc",
        ".part-00000-c000.snappy.PARQUET.crc",
        "._part-00000-c000.snappy.PARQUET",
    ):
        (data / "train" / "0.parquet" / name).write_bytes(b"x")
    (data / "__MACOSX").mkdir()
    (data / "__MACOSX" / "0.parquet").write_bytes(b"x")
    result = label(folder, studies)
    assert meds.same(result, base)
    events = result.counts["events"]
    assert (events["files"], events["junk_files"], events["unread_files"]) == (1, 3, [])


@pytest.mark.parametrize(
    "name", ["1.csv", "1.csv.gz", "1.parquet.gz", "1.pq", "1.arrow", "_temporary/1.parquet", ".1/1.parquet", "part-1"]
)  # fmt: skip
def test_what_looks_like_an_event_file_and_is_not_read_is_named(folder, studies, label, caplog, name):
    path = folder / "data" / name
    path.parent.mkdir(exist_ok=True)
    shutil.copy(folder / "data" / "0.parquet", path)
    counts = label(folder, studies).counts
    assert counts["events"]["unread_files"] == [f"data/{name}"]
    warn_of_files_and_clocks(counts, "midnight")
    assert f"1 files look like event files and are not read: data/{name}" in caplog.text


def test_links_to_folders_are_followed_once(tmp_path, folder, studies, meds, label):
    base = label(folder, studies)
    (folder / "data" / "train").mkdir()
    (folder / "data" / "0.parquet").rename(folder / "data" / "train" / "0.parquet")
    (folder / "data").rename(tmp_path / "elsewhere")
    (folder / "data").mkdir()
    (folder / "data" / "shards").symlink_to(tmp_path / "elsewhere" / "train")
    (folder / "data" / "again").symlink_to(tmp_path / "elsewhere" / "train")
    (tmp_path / "elsewhere" / "train" / "loop").symlink_to(folder)
    assert len(event_files(folder).read) == 1
    assert meds.same(label(folder, studies), base)
    before = _folder_hash(folder)
    pl.DataFrame({"x": [1]}).write_parquet(tmp_path / "elsewhere" / "train" / "0.parquet")
    assert _folder_hash(folder) != before  # else old labels would be used again


def test_a_delta_table_is_refused(folder):
    (folder / "data" / "_delta_log").mkdir()
    (folder / "data" / "_delta_log" / "00000.json").write_text("{}")
    with pytest.raises(ConfigError, match="belongs to a Delta table"):
        event_files(folder)


def twice(folder, name: str, column: str) -> None:
    table = parquet.read_table(folder / name)
    parquet.write_table(table.append_column(column, table[column]), folder / name)


@pytest.mark.parametrize("column", ["subject_id", "time", "code"])
def test_a_column_that_is_there_twice_is_named(folder, studies, label, column):
    twice(folder, "data/0.parquet", column)
    message = rf"data/0\.parquet: column {column} is there 2 times; keep one of them"
    with pytest.raises(ConfigError, match=message):
        label(folder, studies)
    with pytest.raises(ConfigError, match=message):
        check_headers(folder, None, "midnight")


def test_a_column_of_the_metadata_that_is_there_twice_is_named(tmp_path, meds):
    folder = meds.write(tmp_path / "ehr", [ROWS], {"X/A": ["X/root"]})
    twice(folder, "metadata/codes.parquet", "parent_codes")
    with pytest.raises(ConfigError, match=r"codes\.parquet: column parent_codes is there 2 times"):
        check_headers(folder, None, "midnight")


def test_a_list_of_parents_that_is_text_is_named(tmp_path, meds):
    folder = meds.write(tmp_path / "ehr", [ROWS], {"X/A": ["X/root"]})
    pl.DataFrame({"code": ["X/A"], "parent_codes": ["X/root"]}).write_parquet(folder / "metadata" / "codes.parquet")
    with pytest.raises(ConfigError, match=r"column parent_codes is large_string.*; write lists of text"):
        read_metadata(folder)


def test_a_missing_column_lists_what_is_there(folder):
    path = folder / "data" / "0.parquet"
    pl.read_parquet(path).rename({"subject_id": "Subject_ID"}).write_parquet(path)
    with pytest.raises(ConfigError, match=r"no column subject_id; it has Subject_ID, code, time"):
        check_headers(folder, None, "midnight")


def test_the_header_of_every_file_is_checked(tmp_path, meds):
    folder = meds.write(tmp_path / "ehr", [ROWS] * 40)
    check_headers(folder, None, "midnight")
    table = parquet.read_table(folder / "data" / "33.parquet")
    zoned = table["time"].cast(pa.timestamp("us", "UTC"))
    parquet.write_table(table.set_column(1, "time", zoned), folder / "data" / "33.parquet")
    with pytest.raises(ConfigError, match=r"data/33\.parquet: column time has zone UTC; set ehr\.timezone"):
        check_headers(folder, None, "midnight")
    check_headers(folder, "Europe/Berlin", "midnight")


CONTENTS = {"gzip": gzip.compress(b"x" * 99), "text": b"subject_id,time,code\n1,2,3\n",
            "Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"}  # fmt: skip


@pytest.mark.parametrize("what", CONTENTS)
def test_a_file_of_another_kind_is_called_what_it_is(folder, what):
    (folder / "data" / "0.parquet").write_bytes(CONTENTS[what])
    with pytest.raises(ConfigError, match=rf"data/0\.parquet: is .*{what}.* no parquet file"):
        check_headers(folder, None, "midnight")


def test_a_file_that_is_gone_is_not_called_damaged(folder):
    (folder / "data" / "1.parquet").symlink_to(folder / "nowhere.parquet")
    with pytest.raises(IntegrityError, match=r"data/1\.parquet: cannot be read \(No such file"):
        check_headers(folder, None, "midnight")


def test_ends_of_days_far_beyond_chance_are_told(caplog):
    def told(ends: int, date_only: str) -> bool:
        caplog.clear()
        events = {"unread_files": [], "day_end_moments": ends, "timed_moments": 1000}
        warn_of_files_and_clocks({"events": events}, date_only)
        return "Set ehr.date_only=day_end" in caplog.text

    assert (told(11, "midnight"), told(11, "never"), told(10, "midnight"), told(900, "day_end")) == (
        True,
        True,
        False,
        False,
    )
