"""Hospital stays, ends and deaths of OMOP extracts whose dates and concepts are not clean, against plain loops."""

import logging
from collections import Counter
from datetime import date, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from data.testing import load_module
from ehr.codes.athena import within
from ehr.conversion import convert_omop
from ehr.omop_losses import judge_conversion
from ehr.sources.omop import Clock
from ehr.sources.tables import find_tables
from ttepretrain.errors import BadDataError

DAY = timedelta(days=1)
NOON, TODAY = datetime(2015, 3, 4, 12), date(2015, 3, 4)
FAR = (datetime(9999, 12, 31), datetime(3000, 1, 1), datetime(2099, 12, 31), datetime(2999, 12, 31, 23, 59, 59))
EARLY = (datetime(1900, 1, 1), datetime(1970, 1, 1), datetime(1, 1, 1))

slow_omop = load_module(Path(__file__).parents[1] / "slow_omop.py")

CONCEPTS = [(9201, "Visit", "IP"), (9202, "Visit", "OP"), (9203, "Visit", "ER"), (32037, "Visit", "ICU"),
            (201, "SNOMED", "1"), (2_000_000_001, "Local", "ward"), (2_000_000_002, "Local", "stay")]  # fmt: skip
KINDS = {"_id": pl.Int64, "_date": pl.Date, "_datetime": pl.Datetime("us"), "_of_birth": pl.Int64, "_1": pl.Int64,
         "_2": pl.Int64, "_separation": pl.Int64}  # fmt: skip


def person(subject=1, **cells) -> dict:
    return {"person_id": subject, "gender_concept_id": 8507, "year_of_birth": 1950, "birth_datetime": None} | cells


def visit(start, end, concept=9201, source=0, subject=1, stem="visit") -> dict:
    row = {"person_id": subject, f"{stem}_concept_id": concept, f"{stem}_source_concept_id": source}
    row |= {f"{stem}_start_date": start.date(), f"{stem}_start_datetime": start}
    return row | {f"{stem}_end_date": end and end.date(), f"{stem}_end_datetime": end}


def condition(day=TODAY, time=None, subject=1, concept=201) -> dict:
    row = {"person_id": subject, "condition_concept_id": concept, "condition_source_concept_id": 0}
    return row | {"condition_start_date": day, "condition_start_datetime": time}


def death(day, time=None, subject=1) -> dict:
    return {"person_id": subject, "death_date": day, "death_datetime": time}


def period(start, end, subject=1) -> dict:
    row = {"person_id": subject, "observation_period_start_date": start}
    return row | {"observation_period_end_date": end}


def write(folder: Path, **tables) -> Path:
    names = ("concept_id", "vocabulary_id", "concept_code")
    tables = {"person": [person()], "concept": [dict(zip(names, row)) for row in CONCEPTS]} | tables
    for name, rows in tables.items():
        text = {c for row in rows for c, cell in row.items() if isinstance(cell, str)}
        kinds = {c: next((t for end, t in KINDS.items() if c.endswith(end)), pl.String) for c in rows[0]}
        schema = {c: pl.String if c in text else kind for c, kind in kinds.items()}
        pl.DataFrame(rows, schema=schema, orient="row").write_parquet(folder / f"{name}.parquet")
    return folder


@pytest.fixture
def convert(tmp_path):
    """Function: tables of an extract -> (counts, [(time, code)], periods); equal to the plain loops."""

    def run(inpatient=(), oracle=True, **tables) -> tuple[dict, list, list]:
        found, out = find_tables(write(tmp_path, **tables)), tmp_path / "meds"
        out.mkdir()
        counts = convert_omop(found, [found], out, Clock(), lambda f, xs: [f(x) for x in xs], inpatient)
        events = pl.read_parquet(out / "data" / "*.parquet")
        if oracle:
            mine = events.select("subject_id", pl.col("time").cast(pl.Int64), "code").iter_rows()
            assert Counter(mine) == slow_omop.counted(slow_omop.slow_events(tmp_path, inpatient))
        path = out / "observation_periods.parquet"
        periods = pl.read_parquet(path).select("start", "end").rows() if path.exists() else []
        return counts, events.select("time", "code").rows(), periods

    return run


def moves(events: list) -> list[tuple]:
    """(time, +1 or -1) of admissions and discharges."""
    signs = {"HOSPITAL_ADMISSION": 1, "HOSPITAL_DISCHARGE": -1}
    return [(time, signs[code]) for time, code in events if code in signs]


@pytest.mark.parametrize("end", [*FAR, *EARLY, None, NOON - 9 * DAY, datetime(2100, 1, 1), datetime(2055, 1, 1)])
def test_a_stay_without_a_usable_end_swallows_no_readmission(convert, end):
    """Placeholders, none, before the start, and decades after the last record: admitted, and not discharged."""
    stays = [visit(NOON, end), visit(NOON + 21.75 * DAY, NOON + 24 * DAY)]
    counts, events, _ = convert(visit_occurrence=stays)
    assert moves(events) == [(NOON, 1), (NOON + 21.75 * DAY, 1), (NOON + 24 * DAY, -1)]
    count = counts["tables"]["visit_occurrence"]
    assert (count["stays"], count["open_stays"], count["no_discharge"]) == (1, 1, 1)
    assert count["late_ends"] == (end in (datetime(2100, 1, 1), datetime(2055, 1, 1)))


def test_a_stay_without_an_end_inside_another_is_part_of_it(convert):
    """The outer one keeps its discharge: an admission within it would otherwise unmake it."""
    stays = [visit(NOON, NOON + 9 * DAY), visit(NOON + 3 * DAY, None), visit(NOON + 20 * DAY, None)]
    counts, events, _ = convert(visit_occurrence=stays)
    assert moves(events) == [(NOON, 1), (NOON + 9 * DAY, -1), (NOON + 20 * DAY, 1)]
    assert counts["tables"]["visit_occurrence"]["joined_stays"] == 1


def test_a_stay_of_years_is_one_and_is_told(convert, caplog):
    """Long-term wards exist: the records go on, so the end is taken at its word."""
    stays = [visit(NOON, NOON + 4000 * DAY)]
    counts, events, _ = convert(visit_occurrence=stays, condition_occurrence=[condition(TODAY + 3900 * DAY)])
    assert moves(events) == [(NOON, 1), (NOON + 4000 * DAY, -1)]
    assert counts["tables"]["visit_occurrence"]["long_stays"] == 1
    judge_conversion(counts, 0.5)
    assert "1 hospital stays last longer than a year" in caplog.text


RELATION = ("concept_id_1", "concept_id_2", "relationship_id", "invalid_reason")
LEVEL = ("ancestor_concept_id", "descendant_concept_id", "min_levels_of_separation")


def related(*rows: tuple) -> list[dict]:
    return [dict(zip(RELATION, (*row, None))) for row in rows]


@pytest.mark.parametrize(
    ("stay", "vocabulary"),
    [
        ({"concept": 32037}, {"concept_ancestor": [dict(zip(LEVEL, (9201, 32037, 2)))]}),
        ({"concept": 32037}, {"concept_relationship": related((32037, 8717, "Is a"))}),
        ({"concept": 0, "source": 9201}, {}),
        ({"concept": None, "source": 262}, {}),
        ({"concept": 0, "source": 2_000_000_001}, {"concept_relationship": related((2_000_000_001, 9201, "Maps to"))}),
        ({"concept": 404, "source": 2_000_000_001},  # a concept that CONCEPT lacks is as good as none
         {"concept_relationship": related((2_000_000_001, 2_000_000_002, "Maps to"), (2_000_000_002, 32037, "Maps to")),
          "concept_ancestor": [dict(zip(LEVEL, (8717, 32037, 1)))]}),
    ],
)  # fmt: skip
def test_a_visit_is_a_stay_by_what_lies_above_its_concept_or_its_source(convert, stay, vocabulary):
    counts, events, _ = convert(visit_occurrence=[visit(NOON, NOON + 2 * DAY, **stay)], **vocabulary)
    assert moves(events) == [(NOON, 1), (NOON + 2 * DAY, -1)]
    assert counts["tables"]["visit_occurrence"]["events"] == 2  # no code of the visit beside them


def test_a_concept_that_is_known_decides_alone(convert):
    rows = [visit(NOON, NOON + 2 * DAY, 9202, 9201)]
    assert moves(convert(visit_occurrence=rows)[1]) == []


def test_the_key_makes_stays_of_other_visits_whose_codes_are_gone(convert):
    """By concept and by the source's; a visit of the same day stays one, so that it is no admission."""
    rows = [visit(NOON, NOON + 2 * DAY, 9203), visit(NOON + 9 * DAY, NOON + 12 * DAY, 9202, 2_000_000_002)]
    rows += [visit(NOON.replace(hour=0) + 30 * DAY, NOON.replace(hour=0) + 30 * DAY, 9203)]
    _, events, _ = convert((9203, 2_000_000_002), visit_occurrence=rows)
    expected = [(NOON, 1), (NOON + 2 * DAY, -1), (NOON + 9 * DAY, 1), (NOON + 12 * DAY, -1)]
    assert moves(events) == expected
    assert [code for _, code in events if code.startswith(("Visit", "Local"))] == ["Visit/ER"]


def test_below_the_keys_concepts_lie_stays_too(convert):
    vocabulary = {"concept_ancestor": [dict(zip(LEVEL, (9203, 32037, 1)))]}
    _, events, _ = convert((9203,), visit_occurrence=[visit(NOON, NOON + 2 * DAY, 32037)], **vocabulary)
    assert moves(events) == [(NOON, 1), (NOON + 2 * DAY, -1)]


def test_an_inpatient_detail_makes_a_stay_of_its_own_span(convert):
    """The emergency visit keeps its code; a ward that is not inpatient is nothing; a detail in a stay is part of it."""
    visits = [visit(NOON, NOON + 5 * DAY, 9203), visit(NOON + 50 * DAY, NOON + 55 * DAY)]
    details = [(NOON + DAY, NOON + 5 * DAY, 9201), (NOON, NOON + DAY, 9203), (NOON + 51 * DAY, NOON + 52 * DAY, 8717)]
    details = [visit(*row, stem="visit_detail") for row in details]
    counts, events, _ = convert(visit_occurrence=visits, visit_detail=details)
    expected = [(NOON + DAY, 1), (NOON + 5 * DAY, -1), (NOON + 50 * DAY, 1), (NOON + 55 * DAY, -1)]
    assert moves(events) == expected
    assert [code for _, code in events if code.startswith("Visit")] == ["Visit/ER"]
    assert (counts["tables"]["visit_detail"]["stays"], counts["long_visits"]) == (2, [])


def test_long_visits_that_are_no_stays_are_told_by_name(convert, caplog):
    rows = [visit(NOON, NOON + 2 * DAY, 9203)] * 2 + [visit(NOON + 9 * DAY, NOON + 12 * DAY, 0, 2_000_000_001)]
    rows += [visit(NOON + 30 * DAY, NOON + 30.5 * DAY, 9202), visit(NOON + 99 * DAY, NOON + 100 * DAY)]
    counts, _, _ = convert(visit_occurrence=rows, oracle=False)
    assert counts["long_visits"] == [
        {"concept": 9203, "name": "Visit/ER", "visits": 2},
        {"concept": 2_000_000_001, "name": "Local/ward", "visits": 1},
    ]
    judge_conversion(counts, 0.5)
    assert "3 visits last longer than a day and are no hospital stays (1 are)" in caplog.text
    assert "9203 (Visit/ER): 2, 2000000001 (Local/ward): 1; if they are stays, name their" in caplog.text


def test_concepts_within_others_go_through_cycles_and_levels(tmp_path):
    found = find_tables(write(tmp_path, concept_relationship=related(
        (1, 2, "Maps to"), (2, 1, "Maps to"), (3, 4, "Is a"), (4, 9201, "Is a"), (5, 9202, "Is a"), (6, 3, "Maps to")
    )))  # fmt: skip
    assert within([found], pl.Series([0, 1, 3, 5, 6, 9201]), (9201,)).to_list() == [3, 6, 9201]


@pytest.mark.parametrize("odd", [*EARLY, *FAR])
def test_a_placeholder_beside_a_right_date_or_datetime_costs_nothing(convert, odd):
    """Of a record, of a death, of a stay's end; and the other way round."""
    rows = [condition(TODAY, odd), condition(odd.date(), NOON + DAY)]
    stay = visit(NOON, NOON + 3 * DAY) | {"visit_end_datetime": odd}
    counts, events, _ = convert(
        condition_occurrence=rows, death=[death(TODAY + 9 * DAY, odd)], visit_occurrence=[stay]
    )  # fmt: skip
    day = datetime(2015, 3, 4)
    assert [row for row in events if row[1] == "SNOMED/1"] == [(day, "SNOMED/1"), (NOON + DAY, "SNOMED/1")]
    assert (day + 9 * DAY, "MEDS_DEATH") in events
    assert moves(events) == [(NOON, 1), (day + 3 * DAY, -1)]
    tables = counts["tables"]
    assert (tables["condition_occurrence"]["placeholder_dates"], tables["condition_occurrence"]["no_time"]) == (2, 0)
    assert tables["death"]["placeholder_dates"] == 1


def test_a_record_with_placeholders_alone_is_left_out(convert):
    rows = [condition(date(1970, 1, 1), datetime(1970, 1, 1)), condition(date(1900, 1, 1)), condition()]
    counts, events, _ = convert(condition_occurrence=rows)
    assert len([row for row in events if row[1] == "SNOMED/1"]) == 1
    assert counts["tables"]["condition_occurrence"]["no_time"] == 2


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        (NOON, NOON), (NOON + DAY, NOON + DAY), (NOON - DAY, NOON - DAY),  # another zone
        (NOON + 2 * DAY, datetime(2015, 3, 4)), (datetime(1970, 1, 1, 5), datetime(2015, 3, 4)),
        (datetime(2015, 3, 4), datetime(2015, 3, 4)),
    ],
)  # fmt: skip
def test_the_date_counts_where_the_datetime_lies_more_than_a_day_off(convert, time, expected):
    counts, events, _ = convert(condition_occurrence=[condition(TODAY, time)])
    assert (expected, "SNOMED/1") in events
    assert counts["tables"]["condition_occurrence"]["time_disagrees"] == (abs(time - NOON) >= 2 * DAY)


def test_a_datetime_as_text_that_is_none_leaves_the_date(convert):
    row = condition("2015-03-04", "soon")
    counts, events, _ = convert(condition_occurrence=[row], oracle=False)
    assert (datetime(2015, 3, 4), "SNOMED/1") in events
    count = counts["tables"]["condition_occurrence"]
    assert (count["unreadable_times"], count["no_time"]) == (1, 0)


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ({"birth_datetime": datetime(1900, 1, 1)}, datetime(1950, 7, 1)),
        ({"birth_datetime": datetime(1970, 1, 1)}, datetime(1950, 7, 1)),
        ({"birth_datetime": datetime(9999, 12, 31)}, datetime(1950, 7, 1)),
        ({"birth_datetime": datetime(1970, 1, 1), "year_of_birth": 1970}, datetime(1970, 1, 1)),
        ({"birth_datetime": datetime(1970, 1, 1), "year_of_birth": None}, datetime(1970, 1, 1)),
        ({"birth_datetime": datetime(1951, 2, 3), "year_of_birth": 9999}, datetime(1951, 2, 3)),
        ({"birth_datetime": None, "year_of_birth": 9999}, None),
    ],
)
def test_a_birth_is_not_a_placeholder(convert, cells, expected):
    counts, events, _ = convert(person=[person(**cells)], condition_occurrence=[condition()])
    assert [time for time, code in events if code == "MEDS_BIRTH"] == [expected] * (expected is not None)
    assert counts["tables"]["person"]["no_birth"] == (expected is None)


def test_deaths_of_cdm_6_stand_in_person(convert):
    """Read beside table death too; a placeholder there means alive, text that is no time an undated death."""
    people = [person(1, death_datetime=NOON), person(2, death_datetime=None), person(3, death_datetime=FAR[0])]
    people += [person(4, death_datetime=NOON + DAY)]
    rows = [death(None, subject=1), death(TODAY + 5 * DAY, subject=4)]
    counts, events, _ = convert(person=people, death=rows)
    assert [row for row in events if row[1] == "MEDS_DEATH"] == [
        (NOON, "MEDS_DEATH"), (NOON + DAY, "MEDS_DEATH"), (datetime(2015, 3, 9), "MEDS_DEATH"),
    ]  # fmt: skip
    assert (counts["tables"]["person"]["deaths"], counts["tables"]["person"]["placeholder_deaths"]) == (2, 1)
    assert counts["undated_deaths"] == 0


@pytest.mark.parametrize("day", [None, "2015-03", "1900-01-01", "9999-12-31", "unknown"])
def test_a_death_without_a_usable_date_is_a_static_row(convert, day, caplog):
    rows = [death(day), death("2015-03-04", subject=2), death(day, subject=2)]
    counts, events, _ = convert(person=[person(1), person(2)], death=rows, oracle=False)
    assert [row for row in events if row[1] == "MEDS_DEATH"] == [
        (None, "MEDS_DEATH"), (datetime(2015, 3, 4), "MEDS_DEATH"),
    ]  # fmt: skip
    assert counts["undated_deaths"] == 1
    judge_conversion(counts, 0.5)
    assert "died" not in caplog.text  # the labels' own warning tells of those with a study


def test_text_for_no_time_in_persons_death_is_an_undated_death(convert):
    people = [person(1, death_datetime="2015-03"), person(2, death_datetime="2015-03-04")]
    counts, events, _ = convert(person=people, oracle=False)
    assert sorted(str(time) for time, code in events if code == "MEDS_DEATH") == ["2015-03-04 00:00:00", "None"]
    assert counts["undated_deaths"] == 1


@pytest.mark.parametrize("end", [None, *FAR])
def test_a_period_without_a_usable_end_lasts_until_the_last_record(convert, end):
    rows = [period(date(2014, 1, 1), end and end.date()), period(date(2015, 9, 1), None)]  # nothing in the second
    counts, _, periods = convert(condition_occurrence=[condition(time=NOON + 30 * DAY)], observation_period=rows)
    last = datetime(2015, 3, 5)  # the date, as it lies more than a day off
    assert periods == [(datetime(2014, 1, 1), last)]
    assert counts["tables"]["observation_period"]["no_end"] == 2


def test_a_period_from_1900_on_is_one_from_the_beginning(convert):
    rows = [period(date(1900, 1, 1), date(2016, 1, 1))]
    counts, _, periods = convert(condition_occurrence=[condition()], observation_period=rows)
    assert periods == [(datetime(1900, 1, 1), datetime(2016, 1, 2))]
    assert counts["tables"]["observation_period"]["no_time"] == 0


def test_periods_equal_plain_loops(convert, tmp_path):
    rows = [period(date(2014, 1, 1), date(2015, 3, 4)), period(date(1900, 1, 1), date(2001, 1, 1)),
            period(date(2015, 3, 1), None)]  # fmt: skip
    _, _, periods = convert(condition_occurrence=[condition(TODAY + 3 * DAY)], observation_period=rows)
    inside = {day for start, end in periods for day in range(int((end - start).days)) for day in [start + day * DAY]}
    slow = {micro for start, end in slow_omop.slow_periods(tmp_path)[1] for micro in range(start, end, 86_400_000_000)}
    assert {slow_omop.micro(day) for day in inside} == slow


def counts_of(table="drug_exposure", long_visits=(), **count) -> dict:
    whole = {"rows": 1000, "unreadable_times": 0, "placeholder_dates": 0, "time_disagrees": 0, "no_time": 0,
             "no_person": 0, "repeated_rows": 0, "no_concept": 0, "unknown_concept": 0}  # fmt: skip
    return {"undated_deaths": 0, "long_visits": list(long_visits), "tables": {table: whole | count}}


@pytest.mark.parametrize(
    ("count", "told"),
    [
        ({"unknown_concept": 870}, r"870 of 1000 rows of drug_exposure are left out: no code \(870 have a concept"),
        ({"no_concept": 300, "unknown_concept": 250}, r"550 of 1000 .*; map them to concepts"),
        ({"no_time": 510, "unreadable_times": 510}, r"510 of 1000 .* no usable time \(510 hold text that is no time"),
        ({"no_person": 600}, r"600 of 1000 rows of drug_exposure .* person is not in table person"),
        ({"time_disagrees": 501}, r"501 of 1000 .* a datetime and a date that disagree"),
        ({"rows": 511, "unknown_concept": 500}, r"500 of 511"),
    ],
)
def test_a_table_that_lost_most_stops_and_the_key_permits_it(count, told, caplog):
    with pytest.raises(BadDataError, match=told):
        judge_conversion(counts_of(**count), 0.5)
    judge_conversion(counts_of(**count), 1.0)
    assert len(caplog.records) == 1
    assert "ehr.max_lost_fraction" not in caplog.text


@pytest.mark.parametrize(
    "count",
    [{"unknown_concept": 60}, {"no_time": 333}, {"no_person": 499}, {"unreadable_times": 900}, {"no_end": 900},
     {"rows": 12, "unknown_concept": 10}, {"table": "visit_detail", "no_time": 1000, "stays": 0}],
)  # fmt: skip
def test_a_part_of_a_table_or_a_few_rows_warn(count, caplog):
    judge_conversion(counts_of(**count), 0.5)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


@pytest.mark.parametrize("count", [{"unknown_concept": 50}, {"rows": 0}, {"table": "person", "no_concept": 2000}])
def test_little_and_nothing_are_silent(count, caplog):
    judge_conversion(counts_of(**count), 0.5)
    assert not caplog.records
