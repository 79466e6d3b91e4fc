"""OMOP extracts as they come: converted row by row as plain loops say, whatever they are stored as; dirt is counted."""

import csv
import gzip
import itertools
import random
import re
from collections import Counter
from datetime import date, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from data.testing import load_module
from ehr import conversion
from ehr.conversion import convert_omop, merged
from ehr.schema import PERIODS
from ehr.sources.omop import Clock
from ehr.sources.table_rows import batches
from ehr.sources.tables import find_tables
from ttepretrain.errors import BadDataError, ConfigError, IntegrityError, ResourceError

DAY = timedelta(days=1)
LOW, HIGH = -(2**63) + 5, 2**53 + 1  # ids that no float holds
NOON, TODAY = datetime(2015, 3, 4, 12), date(2015, 3, 4)

CONCEPTS = [
    (8507, "Gender", "M", "S", None), (8532, "Gender", "F", "S", None), (8521, "Gender", "O", None, "D"),
    (8527, "Race", "5", "S", None), (38003564, "Ethnicity", "Not Hispanic", "S", None),
    (9201, "Visit", "IP", "S", None), (9202, "Visit", "OP", "S", None), (0, "None", "No matching concept", None, None),
    (201, "SNOMED", "111", "S", None), (202, "ICD10CM", "I27.20", None, None), (203, "RxNorm", "7", "S", None),
    (204, "LOINC", "1-8", "S", None), (2_000_000_001, "Local", 'odd "code", here', None, None),
]  # fmt: skip
CONCEPT_COLUMNS = ("concept_id", "vocabulary_id", "concept_code", "standard_concept", "invalid_reason")

slow_omop = load_module(Path(__file__).parents[1] / "slow_omop.py")


def person(subject, gender=8507, year=1950, month=6, day=7, born=None, race=8527) -> dict:
    row = {"person_id": subject, "gender_concept_id": gender, "year_of_birth": year, "month_of_birth": month}
    row |= {"day_of_birth": day, "birth_datetime": born, "race_concept_id": race, "ethnicity_concept_id": 38003564}
    return row | {"race_source_concept_id": 0, "ethnicity_source_concept_id": 0, "gender_source_concept_id": 0}


def condition(key, subject, concept=201, source=0, day=TODAY, time=None, end=None) -> dict:
    row = {"condition_occurrence_id": key, "person_id": subject, "condition_concept_id": concept}
    row |= {"condition_start_date": day, "condition_start_datetime": time, "condition_end_date": end}
    return row | {"condition_source_concept_id": source, "stop_reason": 'two\nlines, "quoted"'}


def visit(key, subject, concept, start, end) -> dict:
    row = {"visit_occurrence_id": key, "person_id": subject, "visit_concept_id": concept, "visit_source_concept_id": 0}
    row |= {"visit_start_date": start.date(), "visit_start_datetime": start}
    return row | {"visit_end_date": end and end.date(), "visit_end_datetime": end}


def period(key, subject, start, end) -> dict:
    row = {"observation_period_id": key, "person_id": subject, "observation_period_start_date": start}
    return row | {"observation_period_end_date": end}


def extract() -> dict[str, list[dict]]:
    """Three persons, and every fault that is not about the files."""
    return {
        "person": [person(LOW), person(HIGH, 8532, month=None, day=None), person(3, 8521, born=NOON - 9000 * DAY)],
        "condition_occurrence": [
            condition(1, LOW, time=NOON),
            condition(2, LOW),  # a date
            condition(3, HIGH, concept=0, source=202),  # by the source
            condition(4, HIGH, concept=999, source=202),  # unknown, by the source
            condition(5, 3, concept=2_000_000_001),  # local
            condition(6, 3, concept=2_000_000_009),  # local and unknown
            condition(7, 3, concept=0),  # neither
            condition(8, 3, end=NOON.date() - DAY),  # ends before it starts
            condition(9, 77),  # nobody
            condition(10, 3, day=None),  # no time
            condition(1, 3, concept=201),  # the key of another row
            condition(2, LOW),  # a row twice
        ],
        "visit_occurrence": [
            visit(1, LOW, 9201, NOON, NOON + 3 * DAY),
            visit(2, LOW, 9201, NOON + 9 * DAY, NOON + 9 * DAY),  # no stay: ends as it starts
            visit(3, HIGH, 9202, NOON, NOON + DAY),
            visit(4, HIGH, 9201, NOON, None),  # an admission without a discharge
        ],
        "measurement": [
            {"measurement_id": 1, "person_id": LOW, "measurement_concept_id": 204, "measurement_date": NOON.date(),
             "measurement_datetime": NOON, "value_as_number": 7.25, "measurement_source_concept_id": 0},
        ],
        "drug_exposure": [],
        "death": [
            {"person_id": 3, "death_date": date(2016, 1, 2), "death_datetime": None},
            {"person_id": 3, "death_date": date(2016, 1, 1), "death_datetime": datetime(2016, 1, 1, 5)},
        ],
        "observation_period": [
            period(1, LOW, date(2014, 1, 1), date(2015, 1, 31)),
            period(2, LOW, date(2015, 1, 15), date(2015, 6, 30)),  # overlaps
            period(3, LOW, date(2015, 7, 1), date(2015, 7, 2)),  # goes on the next day
            period(4, LOW, date(2015, 9, 1), date(2015, 9, 1)),
            period(5, 88, date(2015, 9, 1), date(2015, 9, 2)),  # nobody
        ],
        "concept": [dict(zip(CONCEPT_COLUMNS, row)) | {"concept_name": "a name"} for row in CONCEPTS],
        "cdm_source": [{"cdm_source_name": "made up", "cdm_version": "v5.4.0", "vocabulary_version": "v5.0"}],
    }  # fmt: skip


TYPES = {
    "concept_id": pl.Int64, "key": pl.Int64, "date": pl.Date, "datetime": pl.Datetime("us"), "number": pl.Float64,
    "_id": pl.Int64, "of_birth": pl.Int32,
}  # fmt: skip
TEXTS = ("vocabulary_id", "stop_reason")


def frame(rows: list[dict]) -> pl.DataFrame:
    names = list(rows[0]) if rows else ["drug_exposure_id", "person_id", "drug_concept_id", "drug_exposure_start_date"]
    kinds = {n: next((t for end, t in TYPES.items() if n.endswith(end)), pl.String) for n in names if n not in TEXTS}
    return pl.DataFrame(rows, schema={name: kinds.get(name, pl.String) for name in names}, orient="row")


def write_parquet(folder: Path, tables: dict) -> None:
    for name, rows in tables.items():
        frame(rows).write_parquet(folder / f"{name}.parquet")


def write_upper_case_parts(folder: Path, tables: dict) -> None:
    for name, rows in tables.items():
        (folder / name.upper()).mkdir()
        table = frame(rows).rename(str.upper)
        for number in range(2):
            table[number::2].write_parquet(folder / name.upper() / f"part-{number:05d}.snappy.parquet")
        (folder / name.upper() / "_SUCCESS").touch()


def text_of(rows: list[dict]) -> str:
    from io import StringIO

    table, out = frame(rows), StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows(["" if cell is None else str(cell) for cell in row] for row in table.iter_rows())
    return out.getvalue()


def write_csv(folder: Path, tables: dict) -> None:
    """camelCase names, a byte order mark, the whole below one more folder; the header once more in the middle."""
    (folder / "cdm").mkdir()
    for name, rows in tables.items():
        first, *rest = name.split("_")
        halves = [text_of(rows[: len(rows) // 2] or rows), text_of(rows[len(rows) // 2 :]) if len(rows) > 1 else ""]
        path = folder / "cdm" / f"{first}{''.join(word.title() for word in rest)}.csv"
        path.write_text("".join(halves), encoding="utf-8-sig")


def write_gzip_parts(folder: Path, tables: dict) -> None:
    for name, rows in tables.items():
        (folder / name).mkdir()
        for number in range(2):
            part = rows[number::2]
            text = text_of(part or rows) if part else text_of(rows).split("\n")[0] + "\n"
            (folder / name / f"{number}.csv.gz").write_bytes(gzip.compress(text.encode()))


def write_numbered(folder: Path, tables: dict) -> None:
    """Two files per table beside each other, as BigQuery exports them; a prefix; what is named like a table."""
    for name, rows in tables.items():
        parts = [rows[number::2] for number in range(2)] if len(rows) > 1 else [rows]
        for number, part in enumerate(parts):
            name_of = f"2b_{name}" if name == "concept" else name
            (folder / f"{name_of}-{number:012d}.csv").write_text(text_of(part))
    (folder / "person_old.csv").write_text(text_of(tables["person"]))


def converted(folder: Path, destination: Path, **options) -> tuple[dict, pl.DataFrame]:
    """(counts, events) of the conversion on this process alone."""
    destination.mkdir()
    tables = find_tables(folder)
    counts = convert_omop(tables, [tables], destination, Clock(**options), lambda f, xs: [f(x) for x in xs])
    return counts, pl.read_parquet(destination / "data" / "*.parquet")


def as_counter(events: pl.DataFrame) -> Counter:
    return Counter(events.select("subject_id", pl.col("time").cast(pl.Int64), "code").iter_rows())


@pytest.fixture
def parquet(tmp_path):
    folder = tmp_path / "parquet"
    folder.mkdir()
    write_parquet(folder, extract())
    return folder


def test_a_full_disk_is_declared_whichever_file_meets_it(parquet, tmp_path, full_disk):
    size, told = 16, []
    while True:
        full_disk(size)
        try:
            converted(parquet, tmp_path / f"meds-{size}")
            break
        except ResourceError as error:
            size = size * 4
            told.append(str(error))
    assert len(told) > 2
    assert all(re.fullmatch(r"disk full \(\d+ MiB free\) while writing the MEDS files that .*", text) for text in told)


def test_events_are_those_of_plain_loops(parquet, tmp_path):
    _, events = converted(parquet, tmp_path / "meds")
    assert as_counter(events) == slow_omop.counted(slow_omop.slow_events(parquet))
    by_hand = events.filter(pl.col("subject_id") == LOW).select("time", "code", "numeric_value").rows()
    day = datetime(2015, 3, 4)
    assert by_hand == [
        (None, "Ethnicity/Not Hispanic", None), (None, "GENDER//M", None), (None, "Race/5", None),
        (datetime(1950, 6, 7), "MEDS_BIRTH", None), (day, "SNOMED/111", None),
        (NOON, "HOSPITAL_ADMISSION", None), (NOON, "LOINC/1-8", 7.25), (NOON, "SNOMED/111", None),
        (NOON + 3 * DAY, "HOSPITAL_DISCHARGE", None), (NOON + 9 * DAY, "Visit/IP", None),
    ]  # fmt: skip


def test_what_was_repaired_or_dropped_is_counted(parquet, tmp_path):
    counts, _ = converted(parquet, tmp_path / "meds")
    tables = counts["tables"]
    expected = {
        "rows": 12, "header_rows": 0, "unreadable_times": 0, "placeholder_dates": 0, "time_disagrees": 0,
        "no_time": 1, "date_only": 10, "end_before_start": 1, "no_person": 1,
        "repeated_rows": 1, "repeated_keys": 2, "no_concept": 1, "unknown_concept": 1, "by_source": 2,
        "with_source": 0, "events": 7,
    }  # fmt: skip
    assert tables["condition_occurrence"] == expected
    assert (
        tables["visit_occurrence"] | {"stays": 1, "open_stays": 1, "joined_stays": 0, "events": 5, "date_only": 0}
        == tables["visit_occurrence"]
    )
    assert tables["person"]["no_birth"] == tables["drug_exposure"]["rows"] == 0
    assert tables["observation_period"]["no_person"] == 1
    assert tables["death"]["events"] == 2  # both: follow-up takes the earliest
    assert (counts["cdm_version"], counts["vocabulary_version"]) == ("v5.4.0", "v5.0")


@pytest.mark.parametrize("write", [write_upper_case_parts, write_csv, write_gzip_parts, write_numbered])
def test_every_storage_gives_the_same_bytes(parquet, tmp_path, write):
    """Letter case, parts, csv with quoted newlines and headers in its middle, and what an archiver left."""
    folder = tmp_path / "other"
    folder.mkdir()
    write(folder, extract())
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / "person.parquet").write_bytes(b"Mac OS X")
    (folder / "._person.csv").write_bytes(b"\0\5\x16\7")
    base, _ = converted(parquet, tmp_path / "base")
    counts, _ = converted(folder, tmp_path / "meds")
    assert (counts["ignored_files"], counts["unread_files"]) == (2, 1 if write is write_numbered else 0)
    for name in ("data/0.parquet", "observation_periods.parquet", "metadata/codes.parquet", "metadata/dataset.json"):
        assert (tmp_path / "meds" / name).read_bytes() == (tmp_path / "base" / name).read_bytes(), name
    kept = {table: {k: v for k, v in count.items() if k != "header_rows"} for table, count in counts["tables"].items()}
    assert kept == {t: {k: v for k, v in count.items() if k != "header_rows"} for t, count in base["tables"].items()}
    assert counts["tables"]["condition_occurrence"]["header_rows"] == (1 if write is write_csv else 0)


@pytest.mark.parametrize("names", [("admitting_source_concept_id", "discharge_to_concept_id"),
                                   ("admitted_from_concept_id", "discharged_to_concept_id")])  # fmt: skip
def test_what_5_3_and_5_4_name_differently_is_not_read(parquet, tmp_path, names):
    _, base = converted(parquet, tmp_path / "base")
    visits = pl.read_parquet(parquet / "visit_occurrence.parquet").with_columns(pl.lit(9203).alias(n) for n in names)
    visits.write_parquet(parquet / "visit_occurrence.parquet")
    assert converted(parquet, tmp_path / "meds")[1].equals(base)


def test_a_record_has_the_code_of_its_source_too(tmp_path):
    """Where it is known and another one; sex, race and ethnicity stay single, and stays have their own codes."""
    rows = [condition(1, LOW, source=202), condition(2, LOW, source=201), condition(3, LOW, source=999)]
    stays = [visit(1, LOW, 9201, NOON, NOON + DAY) | {"visit_source_concept_id": 2_000_000_001}]
    people = [person(LOW) | {"gender_source_concept_id": 8532, "race_source_concept_id": 38003564}]
    write_parquet(tmp_path, extract() | {"condition_occurrence": rows, "visit_occurrence": stays, "person": people})
    counts, events = converted(tmp_path, tmp_path / "meds")
    assert events.filter(pl.col("time") == datetime(2015, 3, 4))["code"].to_list() == [
        "ICD10CM/I27.20", "SNOMED/111", "SNOMED/111", "SNOMED/111",
    ]  # fmt: skip
    assert as_counter(events) == slow_omop.counted(slow_omop.slow_events(tmp_path))
    assert counts["tables"]["condition_occurrence"]["with_source"] == 1
    assert counts["tables"]["visit_occurrence"]["with_source"] == counts["tables"]["person"]["with_source"] == 0


def as_date(row: dict) -> dict:
    return row | {"visit_start_datetime": None, "visit_end_datetime": None}


FIRST = datetime(2015, 3, 4)


@pytest.mark.parametrize(
    ("stays", "expected"),
    [
        ([(NOON, NOON + 4 * DAY), (NOON + 4 * DAY, NOON + 8 * DAY)], [(NOON, NOON + 8 * DAY)]),  # transfer
        ([(NOON, NOON + 9 * DAY), (NOON + 4 * DAY, NOON + 6 * DAY)], [(NOON, NOON + 9 * DAY)]),  # nested
        ([(NOON, NOON + DAY), (NOON + 1.5 * DAY, NOON + 2 * DAY)],
         [(NOON, NOON + DAY), (NOON + 1.5 * DAY, NOON + 2 * DAY)]),
        ([(FIRST, FIRST + 4 * DAY), (FIRST + 4 * DAY, FIRST + 8 * DAY)], [(FIRST, FIRST + 8 * DAY)]),  # dates
        ([(FIRST, FIRST + DAY), (FIRST + 2 * DAY, FIRST + 3 * DAY)],
         [(FIRST, FIRST + DAY), (FIRST + 2 * DAY, FIRST + 3 * DAY)]),  # home for a night
        # the date lasts beyond noon of its day
        ([(NOON, FIRST + 2 * DAY), (NOON + 2 * DAY, NOON + 3 * DAY)], [(NOON, NOON + 3 * DAY)]),
        ([(NOON, FIRST + 2 * DAY), (NOON + DAY, NOON + 2 * DAY)], [(NOON, FIRST + 2 * DAY)]),
    ],
)  # fmt: skip
def test_stays_that_overlap_or_touch_are_one_stay(tmp_path, stays, expected):
    rows = [visit(n, LOW, (9201, 262)[n % 2], *stay) for n, stay in enumerate(reversed(stays))]
    rows += [visit(9, HIGH, 9201, NOON + DAY, NOON + 3 * DAY)]  # another's
    write_parquet(tmp_path, extract() | {"visit_occurrence": rows})
    counts, events = converted(tmp_path, tmp_path / "meds")
    assert as_counter(events) == slow_omop.counted(slow_omop.slow_events(tmp_path))
    mine = events.filter(pl.col("subject_id") == LOW)
    ends = [mine.filter(code=code)["time"].to_list() for code in ("HOSPITAL_ADMISSION", "HOSPITAL_DISCHARGE")]
    assert list(zip(*ends)) == expected
    assert counts["tables"]["visit_occurrence"]["joined_stays"] == len(stays) - len(expected)


def test_without_bare_dates_a_stay_ends_at_midnight_sharp(tmp_path):
    stays = [(NOON, FIRST + 2 * DAY), (NOON + 2 * DAY, NOON + 3 * DAY)]
    write_parquet(tmp_path, extract() | {"visit_occurrence": [visit(n, LOW, 9201, *s) for n, s in enumerate(stays)]})
    counts, _ = converted(tmp_path, tmp_path / "meds", date_only="never")
    assert counts["tables"]["visit_occurrence"]["joined_stays"] == 0


@pytest.mark.parametrize(("rule", "last"), [("midnight", datetime(2015, 7, 1)), ("never", datetime(2015, 6, 30))])
def test_an_observation_period_that_ends_at_midnight_lasts_that_day_if_midnight_means_a_date(tmp_path, rule, last):
    end = {"observation_period_end_datetime": datetime(2015, 6, 30)}
    write_parquet(tmp_path, extract() | {"observation_period": [period(1, LOW, TODAY, date(2015, 6, 30)) | end]})
    converted(tmp_path, tmp_path / "meds", date_only=rule)
    periods = pl.read_parquet(tmp_path / "meds" / "observation_periods.parquet")
    assert periods.rows() == [(LOW, datetime(2015, 3, 4), last)]


def test_a_record_that_ends_at_the_midnight_of_its_day_does_not_end_before_it_starts(tmp_path):
    rows = [condition(1, LOW, time=NOON) | {"condition_end_datetime": FIRST}]
    write_parquet(tmp_path, extract() | {"condition_occurrence": rows})
    for rule, count in (("midnight", 0), ("never", 1)):
        counts, _ = converted(tmp_path, tmp_path / rule, date_only=rule)
        assert counts["tables"]["condition_occurrence"]["end_before_start"] == count


def test_compressed_csv_is_known_in_either_letter_case(parquet, tmp_path):
    folder = tmp_path / "shouting"
    folder.mkdir()
    for name, rows in extract().items():
        (folder / f"{name.upper()}.CSV.GZ").write_bytes(gzip.compress(text_of(rows).encode()))
    base, _ = converted(parquet, tmp_path / "base")
    assert converted(folder, tmp_path / "meds")[0] == base
    for name in ("data/0.parquet", "metadata/codes.parquet"):
        assert (tmp_path / "meds" / name).read_bytes() == (tmp_path / "base" / name).read_bytes()


def test_a_quoted_nothing_is_null_and_a_quoted_null_is_text(tmp_path):
    (tmp_path / "concept.csv").write_text('concept_id,concept_code,standard_concept\n1,"NA",""\n2,NA,\n')
    (rows, _), *_ = batches(tmp_path, "concept.csv", ("concept_id", "concept_code", "standard_concept"))
    assert rows.rows() == [("1", "NA", None), ("2", None, None)]


def test_shards_split_the_subjects_and_change_nothing_else(parquet, tmp_path, monkeypatch):
    """Five shards instead of one; the scratch folder is gone."""
    _, one = converted(parquet, tmp_path / "one")
    monkeypatch.setattr(conversion, "_num_shards", lambda _: 5)
    counts, many = converted(parquet, tmp_path / "many")
    assert sorted(path.name for path in (tmp_path / "many" / "data").iterdir()) == [f"{n}.parquet" for n in range(5)]
    assert as_counter(many) == as_counter(one)
    assert counts["tables"]["condition_occurrence"]["repeated_keys"] == 2
    assert not (tmp_path / "many" / "scratch").exists()
    homes = [set(pl.read_parquet(path)["subject_id"]) for path in (tmp_path / "many" / "data").iterdir()]
    assert sum(map(len, homes)) == len(set.union(*homes)) == 3


def test_births_without_a_day_lie_in_the_middle_of_what_is_known(tmp_path):
    people = [person(1, month=None, day=None), person(2, day=None), person(3, born=datetime(1951, 2, 3, 4))]
    people += [person(4, month=2, day=30), person(5, year=None)]
    write_parquet(tmp_path, extract() | {"person": people})
    counts, events = converted(tmp_path, tmp_path / "meds")
    births = dict(events.filter(pl.col("code") == "MEDS_BIRTH").select("subject_id", "time").rows())
    assert births == {1: datetime(1950, 7, 1), 2: datetime(1950, 6, 15), 3: datetime(1951, 2, 3, 4)}
    assert counts["tables"]["person"]["no_birth"] == 2


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"person_id": 2.0**53}, ConfigError, r"condition_occurrence\.person_id holds 1 cells that are not exact ids"),
        ({"person_id": 1.5}, ConfigError, r"condition_occurrence\.person_id"),
        ({"condition_concept_id": "abc"}, ConfigError, r"condition_occurrence\.condition_concept_id"),
        *(
            ({"condition_start_datetime": f"2015-03-04{time}"}, ConfigError, "times with a zone")
            for time in (
                " 12:00:00+01:00",
                "T12:00Z",
                " 12:00:00.5-05",
                " 12:00:00 UTC",
                " 12:00 CEST",
                " 12:00:00 Europe/Berlin",
                "T12:00:00+01:00[Europe/Berlin]",
            )
        ),
        ({"condition_start_date": 20150304}, ConfigError, r"condition_start_date is Int32"),
        ({"condition_concept_id": None}, ConfigError, r"condition_occurrence\.parquet: no column condition_concept_id"),
    ],
)
def test_what_cannot_be_read_exactly_is_refused_by_table_and_column(tmp_path, change, error, message):
    write_parquet(tmp_path, extract())
    table = pl.DataFrame([condition(1, 3)])
    for name, value in change.items():
        table = table.with_columns(pl.lit(value).alias(name)) if value is not None else table.drop(name)
    table.write_parquet(tmp_path / "condition_occurrence.parquet")
    with pytest.raises(error, match=message):
        converted(tmp_path, tmp_path / "meds")


def test_whole_floats_are_ids_and_zoned_times_become_local(tmp_path):
    """pandas turns integers with gaps into floats; 11:00 UTC is 12:00 in Berlin in March."""
    tables = extract()
    write_parquet(tmp_path, tables)
    utc = pl.lit(NOON - DAY / 24).dt.replace_time_zone("UTC")
    table = frame([condition(1, 3)]).with_columns(pl.col("person_id").cast(pl.Float64), condition_start_datetime=utc)
    table.write_parquet(tmp_path / "condition_occurrence.parquet")
    with pytest.raises(ConfigError, match=r"condition_start_datetime has zone UTC; set ehr\.timezone"):
        converted(tmp_path, tmp_path / "refused")
    _, events = converted(tmp_path, tmp_path / "meds", timezone="Europe/Berlin")
    assert (3, NOON, "SNOMED/111") in events.select("subject_id", "time", "code").rows()


def test_one_unreadable_time_among_many_is_counted_and_its_row_dropped(tmp_path):
    write_parquet(tmp_path, extract())
    table = pl.DataFrame([condition(n, 3, day=day) for n, day in enumerate(["2015-03-04", "20150305", "soon"])])
    table.write_parquet(tmp_path / "condition_occurrence.parquet")
    count = converted(tmp_path, tmp_path / "meds")[0]["tables"]["condition_occurrence"]
    assert (count["unreadable_times"], count["no_time"], count["events"]) == (1, 1, 2)


@pytest.mark.parametrize("name", ["person.parquet", "concept.parquet", "visit_occurrence.csv.gz"])
def test_a_truncated_table_stops_the_run_by_name(tmp_path, name):
    tables = extract()
    if name.endswith(".gz"):
        (tmp_path / name).write_bytes(gzip.compress(text_of(tables.pop("visit_occurrence") * 400).encode()))
    write_parquet(tmp_path, tables)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(IntegrityError, match=name.replace(".", r"\.")):
        converted(tmp_path, tmp_path / "meds")


def test_a_table_that_is_there_twice_is_refused(tmp_path):
    write_parquet(tmp_path, extract())
    (tmp_path / "PERSON.csv").write_text("person_id\n1\n")
    with pytest.raises(ConfigError, match="table person is there twice"):
        find_tables(tmp_path)


def test_without_a_concept_table_or_a_usable_record_the_run_stops(tmp_path):
    tables = extract()
    write_parquet(tmp_path, tables)
    (tmp_path / "concept.parquet").unlink()
    with pytest.raises(ConfigError, match="no concept table"):
        converted(tmp_path, tmp_path / "meds")
    write_parquet(tmp_path, {name: [] if name == "person" else rows for name, rows in tables.items()} | {
        "person": [person(12345, born=NOON) | {"person_id": None}]
    })  # fmt: skip
    with pytest.raises(BadDataError, match="no usable record") as error:
        converted(tmp_path, tmp_path / "again")
    assert "12345" not in str(error.value)


def test_periods_that_overlap_or_touch_are_one(parquet, tmp_path):
    converted(parquet, tmp_path / "meds")
    periods = pl.read_parquet(tmp_path / "meds" / "observation_periods.parquet")
    assert periods.schema == PERIODS
    assert periods.rows() == [
        (LOW, datetime(2014, 1, 1), datetime(2015, 7, 3)), (LOW, datetime(2015, 9, 1), datetime(2015, 9, 2)),
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_merged_periods_hold_the_same_moments_and_are_apart(seed):
    rng = random.Random(seed)
    rows = [(rng.randrange(3), start := rng.randrange(40), start + rng.randrange(1, 6)) for _ in range(12)]
    schema = {"subject_id": pl.Int64, "start": pl.Int64, "end": pl.Int64}
    frame = pl.DataFrame(rows, schema=schema, orient="row").cast(dict(PERIODS))
    out = merged(frame).cast(schema).rows()

    def moments(periods: list) -> set:
        return {(subject, t) for subject, start, end in periods for t in range(start, end)}

    assert moments(out) == moments(rows)
    assert all(one[0] != two[0] or one[2] < two[1] for one, two in itertools.pairwise(out))
