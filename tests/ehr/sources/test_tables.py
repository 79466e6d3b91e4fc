"""Files of an OMOP extract are found in every usual spelling; what resembles a table and is not read is named."""

import re
from pathlib import Path

import polars as pl
import pytest

from ehr.sources.headers import check_headers
from ehr.sources.table_rows import batches
from ehr.sources.tables import find_tables
from ttepretrain.errors import ConfigError, IntegrityError


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x\n")
    return folder


def found(folder: Path) -> dict[str, tuple[str, ...]]:
    return find_tables(folder).files


@pytest.mark.parametrize(
    "names",
    [
        ("person_1.csv", "person_2.csv", "person_3.csv"),
        ("person-00001.csv.gz", "person-00002.csv.gz"),
        ("person_part1.csv", "person_part2.csv"),
        ("PERSON.1.CSV", "PERSON.2.CSV"),
        ("person (1).csv", "person (2).csv"),
        ("person-000000000000.csv", "person-000000000001.csv"),
        ("person-00000-of-00002.parquet", "person-00001-of-00002.parquet"),
        ("person_2019.parquet", "person_2020.parquet"),
        ("person-part-0000.snappy.parquet", "person-part-0001.snappy.parquet"),
        ("person/000000000000.csv", "person/000000000001.csv"),
        ("person/year=2019/part-0000.snappy.parquet", "person/year=2020/part-0000.c000.snappy.parquet"),
        ("person_1/a.csv", "person_2/a.csv"),
        ("cdm_person_1.tsv", "cdm_person_2.tsv"),
        ("person.snappy.parquet",),
        ("person.csv.bz2",),
        ("person.csv.zst",),
        ("person.tsv.gz",),
        ("person_20240101.csv",),
        ("omop_person.csv",),
        ("dbo.person.csv",),
        ("cdm_person.csv.gz",),
        ("CDM_V54_PERSON.CSV",),
    ],
)
def test_the_usual_spellings_are_read(tmp_path, names):
    tables = find_tables(touch(tmp_path, *names, "death.csv"))
    assert tables.files == {"person": names, "death": ("death.csv",)}
    assert tables.unread == ()


@pytest.mark.parametrize(
    ("table", "name"),
    [
        ("concept", "2b_concept.csv"),
        ("drug_exposure", "drugExposure1.csv"),
        ("drug_exposure", "drug_exposure_2019.parquet"),
        ("concept_ancestor", "2b_CONCEPT_ANCESTOR.csv"),
        ("observation_period", "omop_observation_period.parquet"),
        ("visit_occurrence", "cdm.VISIT_OCCURRENCE-000000000000.csv.gz"),
    ],
)
def test_a_name_is_that_of_the_longest_table_in_it(tmp_path, table, name):
    assert found(touch(tmp_path, name)) == {table: (name,)}


@pytest.mark.parametrize(
    "name",
    [
        "condition_occurrence_backup.csv", "drug_exposure_old.parquet", "drug_exposure.csv.bak", "person_v2.csv",
        "old_person.csv", "person_a.csv", "person.xlsx", "person.zip", "person.txt", "person.orc", "person.csv.xz",
        "omop_death.csv", "death_final/part.csv", "condition_occurrence/part.orc",
    ],
)  # fmt: skip
def test_what_resembles_a_table_and_is_not_read_is_named_and_counted(tmp_path, name, caplog):
    tables = find_tables(touch(tmp_path, "person.parquet", "death.parquet", name))
    assert tables.files == {"person": ("person.parquet",), "death": ("death.parquet",)}
    assert tables.unread == (name.replace("/part.csv", ""),)
    tables.warn_of_files("input.ehr")
    assert f"input.ehr: not read, though named like an OMOP table: {tables.unread[0]}; put parts" in caplog.text


def test_what_is_none_of_our_tables_is_not_named(tmp_path):
    names = [
        "concept_class.csv", "CONCEPT_SYNONYM.csv", "omop_concept_class.csv", "vocabulary.csv", "drug_strength.csv",
        "note.csv", "condition_era.csv", "person.sql", "death.md", "person/_SUCCESS", "person/.part-0.csv.crc",
        "person/part-0.csv", "person/_temporary/0/part-1.csv", "person/.part-2.csv", "person/._part-0.csv",
        "._death.csv", "__MACOSX/._death.csv", "source_to_concept_map.csv", "readme.txt",
    ]  # fmt: skip
    tables = find_tables(touch(tmp_path, *names))
    assert (tables.files, tables.unread, tables.ignored) == ({"person": ("person/part-0.csv",)}, (), 3)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("person.csv", "person_1.csv"),
            r"person is there twice \(person\.csv, person_1\.csv\).*into a folder person/",
        ),
        (("person.csv", "person (1).csv"), "person is there twice"),
        (("person.csv", "person.parquet"), "person is there twice"),
        (("person.csv", "person/part-0.csv"), "person is there twice"),
        (("person_1.csv", "person_1.parquet"), "person is there twice"),
        (("person_20230101.csv", "person_20240101.csv"), r"several dates \(.*\): versions or parts\?"),
    ],
)
def test_copies_and_versions_are_no_parts(tmp_path, names, message):
    with pytest.raises(ConfigError, match=message):
        find_tables(touch(tmp_path, *names))


def test_a_delta_table_is_refused_for_its_older_versions(tmp_path):
    touch(tmp_path, "person/part-0.parquet", "person/part-1.parquet", "person/_delta_log/00000000000000000000.json")
    with pytest.raises(ConfigError, match="person: is a Delta table, which keeps rows that were deleted since"):
        find_tables(tmp_path)


def test_a_linked_folder_among_parts_is_not_followed_and_named(tmp_path):
    touch(tmp_path, "omop/person/year=2019/part-0.csv", "archive/part-1.csv")
    (tmp_path / "omop" / "person" / "year=2020").symlink_to(tmp_path / "archive")
    tables = find_tables(tmp_path / "omop")
    assert (tables.files["person"], tables.unread) == (("person/year=2019/part-0.csv",), ("person/year=2020",))
    (tmp_path / "omop" / "death").symlink_to(tmp_path / "archive")  # a table's folder itself may be a link
    assert find_tables(tmp_path / "omop").files["death"] == ("death/part-1.csv",)


def test_of_two_prefixes_none_is_the_table(tmp_path):
    tables = find_tables(touch(tmp_path, "a_person.csv", "b_person.csv", "death.csv"))
    assert (tables.files, tables.unread) == ({"death": ("death.csv",)}, ("a_person.csv", "b_person.csv"))


# --- columns


PERSON = {"person_id": [1], "gender_concept_id": [8507], "year_of_birth": [1950]}
CONCEPT = {"concept_id": [8507], "vocabulary_id": ["Gender"], "concept_code": ["M"]}


def write(folder: Path, **tables) -> Path:
    for name, columns in tables.items():
        pl.DataFrame(columns).write_csv(folder / f"{name}.csv")
    return folder


def test_a_missing_column_is_told_with_those_that_are_there_in_their_order(tmp_path):
    columns = ("person_id", "gender_concept_id")
    write(tmp_path, person={"subject": [1], "Person_ID": [2], "age": [3]})
    with pytest.raises(ConfigError, match=r"person\.csv: no column gender_concept_id; it has subject, Person_ID, age$"):
        list(batches(tmp_path, "person.csv", columns, columns))
    write(tmp_path, person={f"c{n}": [1] for n in range(50)})
    with pytest.raises(
        ConfigError, match=r"no column person_id, gender_concept_id; it has c0, c1, .*, c39 and 10 more$"
    ):
        list(batches(tmp_path, "person.csv", columns, columns))
    pl.DataFrame({"a": [1], "B": [2]}).write_parquet(tmp_path / "person.parquet")
    with pytest.raises(ConfigError, match=r"person\.parquet: none of the columns of this OMOP table.* It has a, B$"):
        list(batches(tmp_path, "person.parquet", columns, columns))


@pytest.mark.parametrize("names", [["person_id", "person_id", "x"], ["person_id", "PERSON_ID", "x"]])
def test_a_column_that_is_there_twice_is_refused_where_it_is_read(tmp_path, names):
    import pyarrow as pa
    import pyarrow.parquet as parquet

    parquet.write_table(pa.Table.from_arrays([pa.array([1])] * 3, names), tmp_path / "person.parquet")
    (tmp_path / "person.csv").write_text(",".join(names) + "\n1,1,1\n")
    for name in ("person.parquet", "person.csv"):
        with pytest.raises(ConfigError, match=rf"{name}: columns {names[0]} and {names[1]} have the same name"):
            list(batches(tmp_path, name, ("person_id",), ("person_id",)))
        (rows, _), *_ = batches(tmp_path, name, ("x",), ("x",))  # others may be there twice
        assert rows.height == 1


# --- headers alone


def test_sound_headers_pass_and_a_meds_data_set_too(tmp_path):
    check_headers(write(tmp_path, person=PERSON, concept=CONCEPT), None)
    (tmp_path / "meds" / "data").mkdir(parents=True)
    check_headers(tmp_path / "meds", tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("concept.csv", None, r"no concept table; put CONCEPT beside .*not read.*: concept_old\.csv"),
        ("concept.csv", b"", "input.ehr: table concept is empty: concept.csv has no column names"),
        ("concept.csv", b"\r\n\n", "input.ehr: table concept is empty: concept.csv has no column names"),
        ("concept.csv", b"concept_id,concept_code\n", r"concept\.csv: no column vocabulary_id; it has concept_id, c"),
        ("death.csv", b"person_id,date\n", r"death\.csv: no column death_date; it has person_id, date"),
        ("death.parquet", b"person_id,date\n", r"death\.parquet is not parquet; if it is text, name it"),
        ("death.csv", "person_id,death_date\n".encode("utf-16"), r"death\.csv is UTF-16 text"),
        ("concept_ancestor.csv", b"<html>", r"concept_ancestor\.csv is a web page"),
        ("concept_relationship.csv", b"a,b\n", r"no column concept_id_1, concept_id_2, relationship_id; it has a, b"),
    ],
)
def test_headers_tell_before_a_row_is_read(tmp_path, name, content, message):
    write(tmp_path, person=PERSON, concept=CONCEPT, concept_old=CONCEPT)
    (tmp_path / name).unlink() if content is None else (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        check_headers(tmp_path, None)


def test_a_vocabulary_is_checked_where_it_is(tmp_path):
    for name in ("omop", "athena"):
        (tmp_path / name).mkdir()
    write(tmp_path / "omop", person=PERSON)
    write(tmp_path / "athena", concept=CONCEPT)
    check_headers(tmp_path / "omop", tmp_path / "athena")
    write(tmp_path / "athena", concept={"concept_id": [1]})
    with pytest.raises(ConfigError, match=re.escape("athena/concept.csv: no column vocabulary_id, concept_code")):
        check_headers(tmp_path / "omop", tmp_path / "athena")


def test_a_parquet_file_that_is_cut_short_is_damaged(tmp_path):
    pl.DataFrame(PERSON).write_parquet(tmp_path / "person.parquet")
    content = (tmp_path / "person.parquet").read_bytes()
    (tmp_path / "person.parquet").write_bytes(content[:-20])
    with pytest.raises(IntegrityError, match=r"person\.parquet: is damaged or cut short \(\w+\); copy it again"):
        check_headers(tmp_path, None)


# --- parts that are missing


@pytest.mark.parametrize(
    ("names", "gaps"),
    [
        (["person_1.csv", "person_2.csv", "person_4.csv"], ("person: 3",)),
        (["person_2019.csv", "person_2021.csv"], ("person: 2020",)),
        (["person-00000-of-00004.csv", "person-00001-of-00004.csv"], ("person: 2, 3",)),
        (["person_1_of_3.csv", "person_3_of_3.csv"], ("person: 2",)),
        (["person_1_of_3.csv", "person_2_of_3.csv", "person_3_of_3.csv"], ()),
        (["person-00000-of-00002.csv", "person-00001-of-00002.csv"], ()),
        (["person_007.csv", "person_008.csv"], ()),
        (["person_12.csv", "person_47.csv", "person_803.csv"], ()),  # numbers of sites do not count up
        (["person_2019_1.csv", "person_2020_1.csv", "person_2020_2.csv"], ()),
        (["person.csv"], ()),
        (["person/person_1.csv", "person/person_3.csv"], ("person: 2",)),
        (["person/part-00000.csv", "person/part-00002.csv"], ()),  # a writer skips parts without a row
    ],
)
def test_a_number_that_the_parts_leave_out_is_named(tmp_path, caplog, names, gaps):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("person_id\n1\n")
    tables = find_tables(tmp_path)
    assert tables.gaps == gaps
    tables.warn_of_files("input.ehr")
    assert (f"leave some out: {'; '.join(gaps)}; is a file missing?" in caplog.text) == bool(gaps)
