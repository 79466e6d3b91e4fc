"""Zoned times become local ones; placeholders and the midnights of date columns stay what they are."""

from datetime import UTC, date, datetime, timedelta

import polars as pl
import pytest

from ehr.sources.columns import moment_cells
from ehr.sources.omop import TABLES, Clock, rows_of

BERLIN, NEW_YORK, TOKYO = "Europe/Berlin", "America/New_York", "Asia/Tokyo"


def stored(times: list[datetime], zone: str, form: str) -> pl.Series:
    column = pl.Series("t", times, pl.Datetime("us")).dt.replace_time_zone("UTC").dt.convert_time_zone(zone)
    if form == "text":
        return column.dt.to_string("%Y-%m-%dT%H:%M:%S%:z")
    return column.dt.cast_time_unit(form)


@pytest.mark.parametrize("form", ["us", "ms", "text"])
@pytest.mark.parametrize(("zone", "hours"), [(BERLIN, 1), (NEW_YORK, -5), (TOKYO, 9)])
def test_a_moment_becomes_local_and_a_placeholder_stays_one(form, zone, hours):
    real = datetime(2020, 1, 4, 12, 30)
    odd = [datetime(1970, 1, 1), datetime(2099, 12, 31), datetime(9999, 12, 31, 23, 59), datetime(1900, 1, 1)]
    read = moment_cells(stored([real, *odd], "UTC", form), "t", zone).time.to_list()
    assert read == [real + timedelta(hours=hours), *odd]


@pytest.mark.parametrize("form", ["us", "ms", "text"])
@pytest.mark.parametrize("zone", [BERLIN, NEW_YORK, TOKYO])
def test_midnight_in_a_column_of_dates_is_that_date(form, zone):
    """2020-01-04T00:00Z became the evening of 3 January in New York: another day, and no date."""
    column = stored([datetime(2020, 1, 4)], "UTC", form)
    assert moment_cells(column, "t", zone, dates=True).time.to_list() == [datetime(2020, 1, 4)]
    assert moment_cells(column, "t", zone).time.to_list() != [datetime(2020, 1, 4)]  # elsewhere it is a moment


def test_midnight_of_the_zone_that_the_dates_were_stored_in_is_a_date_too():
    column = stored([datetime(2020, 1, 4, 5)], NEW_YORK, "us")
    assert moment_cells(column, "t", BERLIN, dates=True).time.to_list() == [datetime(2020, 1, 4)]


def test_the_hour_that_a_change_of_clocks_leaves_out_and_the_one_it_repeats():
    """01:30Z and 00:30Z of the last Sundays of March and October 2020; the repeated hour is there twice."""
    times = [datetime(2020, 3, 29, 1, 30), datetime(2020, 10, 25, 0, 30), datetime(2020, 10, 25, 1, 30)]
    local = [datetime(2020, 3, 29, 3, 30), datetime(2020, 10, 25, 2, 30), datetime(2020, 10, 25, 2, 30)]
    for form in ("us", "text"):
        assert moment_cells(stored(times, "UTC", form), "t", BERLIN).time.to_list() == local


def test_a_records_zoned_date_is_its_day():
    """A placeholder as the datetime, and the date as midnight UTC: the record is on 4 January, as a date."""
    utc = UTC
    frame = pl.DataFrame(
        {name: pl.Series(name, [None]) for name in TABLES["condition_occurrence"].columns}
        | {
            "person_id": [1],
            "condition_start_date": [datetime(2020, 1, 4, tzinfo=utc)],
            "condition_start_datetime": [datetime(1970, 1, 1, tzinfo=utc)],
        }
    )
    rows, counts = rows_of(TABLES["condition_occurrence"], frame, Clock(NEW_YORK))
    assert rows["time"].to_list() == [datetime(2020, 1, 4)]
    assert (counts["date_only"], counts["placeholder_dates"], counts["time_disagrees"]) == (1, 1, 0)


@pytest.mark.parametrize(
    ("written", "day", "time"),
    [
        (datetime(2020, 1, 4), datetime(2020, 1, 4), datetime(2020, 1, 4)),  # the datetime says no more than the date
        (
            datetime(2020, 1, 4),
            datetime(2020, 1, 3),
            datetime(2020, 1, 3, 19),
        ),  # 7 p.m., as its date says
        (datetime(2020, 1, 4, 12), datetime(2020, 1, 4), datetime(2020, 1, 4, 7)),
    ],
)
@pytest.mark.parametrize("form", ["us", "text"])
def test_a_zoned_midnight_on_the_day_of_the_date_beside_it_is_that_date(form, written, day, time):
    frame = pl.DataFrame(
        {name: pl.Series(name, [None]) for name in TABLES["condition_occurrence"].columns}
        | {
            "person_id": [1],
            "condition_start_date": [day],
            "condition_start_datetime": stored([written], "UTC", form),
        }
    )
    rows, counts = rows_of(TABLES["condition_occurrence"], frame, Clock(NEW_YORK))
    assert rows["time"].to_list() == [time]
    assert counts["date_only"] == (time == day)


def test_a_local_midnight_stays_a_moment_under_date_only_never():
    frame = pl.DataFrame(
        {name: pl.Series(name, [None]) for name in TABLES["condition_occurrence"].columns}
        | {"person_id": [1], "condition_start_date": [date(2020, 1, 4)]}
        | {"condition_start_datetime": [datetime(2020, 1, 4)]}
    )
    _, counts = rows_of(TABLES["condition_occurrence"], frame, Clock(NEW_YORK, "never"))
    assert counts["date_only"] == 0


def test_a_birth_at_midnight_is_a_birthday():
    person = pl.DataFrame(
        {name: pl.Series(name, [None]) for name in TABLES["person"].columns}
        | {"person_id": [1], "year_of_birth": [1950], "birth_datetime": [datetime(1950, 1, 1, tzinfo=UTC)]}
    )
    rows, counts = rows_of(TABLES["person"], person, Clock(NEW_YORK))
    births = rows.filter(pl.col("code") == "MEDS_BIRTH")["time"].dt.date().to_list()
    assert (births, counts["time_disagrees"]) == ([date(1950, 1, 1)], 0)
