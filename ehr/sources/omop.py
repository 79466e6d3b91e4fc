"""OMOP rows as MEDS rows: which columns of CDM 5.3, 5.4 and 6.0 mean what. They name what we read alike.

Codes are still concept ids here; rows of one schema (ROWS), so that all tables travel the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple

import polars as pl

from ehr.schema import BIRTH, DEATH
from ehr.sources.columns import moments, number_cells, whole_numbers
from ehr.sources.sentinels import is_sentinel
from ehr.timeline import is_date

SEXES = {8507: "GENDER//M", 8532: "GENDER//F"}

ROWS = pl.Schema(
    {
        "subject_id": pl.Int64(),
        "key": pl.UInt64(),  # hash of the primary key; null where the table has none
        "time": pl.Datetime("us"),  # null: static
        # of visits: null without a usable end, `time` where it is no later; of observation periods: the first moment
        # after the last day
        "end": pl.Datetime("us"),
        "concept": pl.Int64(),
        "source": pl.Int64(),  # concept of the source code
        "code": pl.String(),  # where the code does not come from a concept
        "numeric_value": pl.Float32(),
    }
)


@dataclass(frozen=True)
class Clock:
    """How times are read. Plain data: travels to workers."""

    timezone: str | None = None  # ehr.timezone
    date_only: str = "midnight"  # ehr.date_only


RowsOf = Callable[[pl.DataFrame, "Table", Clock], tuple[pl.DataFrame, dict]]


@dataclass(frozen=True)
class Table:
    """Columns of one OMOP table; the first of `columns` is the subject."""

    name: str
    rows: RowsOf
    columns: tuple[str, ...]
    required: tuple[str, ...]
    key: str | None = None
    concept: str | None = None
    source: str | None = None
    start: str = ""  # stem: <start>_date and <start>_datetime
    end: str = ""
    value: str | None = None

    def whole(self, frame: pl.DataFrame, column: str) -> pl.Series:
        return whole_numbers(frame[column], f"{self.name}.{column}")


def rows_of(table: Table, frame: pl.DataFrame, clock: Clock) -> tuple[pl.DataFrame, dict]:
    """Rows (schema ROWS) of a batch of a table, and what was counted on the way. ConfigError for inexact columns."""
    rows, counts = table.rows(frame, table, clock)
    absent = [pl.lit(None, dtype).alias(name) for name, dtype in ROWS.items() if name not in rows.columns]
    return rows.with_columns(absent).select(pl.col(name).cast(dtype) for name, dtype in ROWS.items()), counts


class Times(NamedTuple):
    """Of the rows of a table: a datetime and a date beside it, as one time."""

    time: pl.Series  # null where neither is usable
    bare: pl.Series  # a date without a time of day
    sentinel: pl.Series  # datetime: what stands there for no date, where `time` is null
    counts: dict  # rows with text that is no time, with a date that stands for none, with two that disagree


def _times(frame: pl.DataFrame, table: Table, stem: str, clock: Clock) -> Times:
    """The datetime, or else the date. Where both are usable and lie more than a day apart, the date."""
    where, zone = f"{table.name}.{stem}", clock.timezone
    exact = moments(frame[f"{stem}_datetime"], f"{where}_datetime", zone)
    day = moments(frame[f"{stem}_date"], f"{where}_date", zone, dates=True)
    odd = is_sentinel(exact.time), is_sentinel(day.time)
    at, on = exact.time.set(odd[0], None), day.time.set(odd[1], None)
    if zone is not None:  # a midnight that the zone moved away from the day that the date says: written from the date
        midnight = moments(frame[f"{stem}_datetime"], f"{where}_datetime", zone, dates=True).time
        at = at.set(((midnight == on) & (midnight != at)).fill_null(False), None)
    # a day: one of the two may be in another zone
    apart = ((at.dt.truncate("1d") - on.dt.truncate("1d")).abs() > timedelta(days=1)).fill_null(False)
    given = at.is_not_null() & ~apart
    time = at.zip_with(given, on).alias("time")
    bare = (exact.bare & given) | ~given
    if clock.date_only != "never":  # as the label stage will read it
        is_bare = is_date(pl.col("time").cast(pl.Int64), clock.date_only).fill_null(False)
        bare |= time.to_frame().select(is_bare).to_series()
    sentinel = exact.time.zip_with(odd[0], day.time.set(~odd[1], None)).set(time.is_not_null(), None)
    counts = {
        "unreadable_times": int((exact.unreadable | day.unreadable).sum()),
        "placeholder_dates": int((odd[0] | odd[1]).sum()),
        "time_disagrees": int(apart.sum()),
    }
    return Times(time, bare.alias("bare"), sentinel, counts)


def _events(frame: pl.DataFrame, table: Table, clock: Clock) -> tuple[pl.DataFrame, dict]:
    """One row per record, at its start."""
    times = _times(frame, table, table.start, clock)
    rows = _records(frame, table, times, clock)
    timed = rows.filter(pl.col("time").is_not_null())
    counts = times.counts | {
        "no_time": len(rows) - len(timed),
        "date_only": int(timed["bare"].sum()),
        "end_before_start": timed.filter(_backwards()).height if table.end else 0,
    }
    return timed, counts


def _records(frame: pl.DataFrame, table: Table, times: Times, clock: Clock) -> pl.DataFrame:
    """Every row, with `bare` beside its time; with `stop` and `stop_bare` where the table has an end."""
    columns = {"subject_id": table.whole(frame, table.columns[0]), "time": times.time, "bare": times.bare}
    if table.concept and table.source:
        columns |= {"concept": table.whole(frame, table.concept), "source": table.whole(frame, table.source)}
    if table.key:
        columns["key"] = frame[table.key].cast(pl.String).hash()
        columns["key"] = columns["key"].set(frame[table.key].is_null(), None)
    if table.value:
        columns["numeric_value"] = number_cells(frame[table.value], pl.Float32).value
    if table.end:
        ends = _times(frame, table, table.end, clock)
        columns |= {"stop": ends.time, "stop_bare": ends.bare}
    return pl.DataFrame(columns)


def _backwards() -> pl.Expr:
    """A record that ends before it starts; where either is a date, on an earlier day."""
    exact = (pl.col("stop") < pl.col("time")) & ~pl.col("bare") & ~pl.col("stop_bare")
    return exact | (pl.col("stop").dt.truncate("1d") < pl.col("time").dt.truncate("1d"))


def _visits(frame: pl.DataFrame, table: Table, clock: Clock) -> tuple[pl.DataFrame, dict]:
    """Visits with their ends; which of them are stays is decided when all concepts are known."""
    rows, counts = _events(frame, table, clock)
    usable = pl.col("stop").is_not_null() & ~_backwards()
    return rows.with_columns(end=pl.when(usable).then(pl.max_horizontal("time", "stop"))), counts


def _periods(frame: pl.DataFrame, table: Table, clock: Clock) -> tuple[pl.DataFrame, dict]:
    """Observation periods [time, end); a date as an end means the end of that day. A start such as 1900-01-01 is one:
    observed from the beginning.
    """
    times = _times(frame, table, table.start, clock)
    early = times.sentinel.set((times.sentinel.dt.year() > 2000).fill_null(False), None)
    rows = _records(frame, table, times._replace(time=times.time.fill_null(early)), clock)
    timed = rows.filter(pl.col("time").is_not_null())
    after = pl.col("stop").dt.truncate("1d") + timedelta(days=1)
    timed = timed.with_columns(end=pl.when("stop_bare").then(after).otherwise("stop"))
    kept = timed.filter((pl.col("end") > pl.col("time")).fill_null(True))
    counts = times.counts | {
        "no_time": len(rows) - len(timed),
        "no_end": kept["end"].null_count(),
        "end_before_start": len(timed) - len(kept),
    }
    return kept, counts


def _deaths(frame: pl.DataFrame, table: Table, clock: Clock) -> tuple[pl.DataFrame, dict]:
    """Every row is a death, static where its date is not known."""
    times = _times(frame, table, table.start, clock)
    rows = _records(frame, table, times, clock).with_columns(code=pl.lit(DEATH))
    return rows, times.counts | {"no_time": 0, "date_only": rows.filter(pl.col("time").is_not_null())["bare"].sum()}


def _persons(frame: pl.DataFrame, table: Table, clock: Clock) -> tuple[pl.DataFrame, dict]:
    """Birth, and as static rows sex, race and ethnicity; CDM 6.0's death."""
    subject = table.whole(frame, "person_id")
    numbers_of = {c: table.whole(frame, c) for c in frame.columns if c.startswith(("gender", "race", "ethnicity"))}
    birth, counts = _births(frame, table, subject, clock)
    static = [pl.DataFrame({"subject_id": subject, "concept": concept, "source": source}) for concept, source in (
        (numbers_of[f"{kind}_concept_id"], numbers_of[f"{kind}_source_concept_id"])
        for kind in ("gender", "race", "ethnicity")
    )]  # fmt: skip
    sex = pl.col("concept").replace_strict(SEXES, default=None, return_dtype=pl.String)
    static[0] = static[0].with_columns(code=sex)
    births = birth.drop_nulls("time").with_columns(code=pl.lit(BIRTH))
    died = moments(frame["death_datetime"], "person.death_datetime", clock.timezone, dates=True)
    alive = is_sentinel(died.time)  # 9999-12-31 or 1900-01-01: databases write them for no date
    dead = (died.time.is_not_null() & ~alive) | died.unreadable
    deaths = pl.DataFrame({"subject_id": subject, "time": died.time}).filter(dead).with_columns(code=pl.lit(DEATH))
    counts |= {"no_birth": len(birth) - len(births), "deaths": len(deaths), "placeholder_deaths": int(alive.sum())}
    return pl.concat([births, deaths, *static], how="diagonal"), counts


def _births(frame: pl.DataFrame, table: Table, subject: pl.Series, clock: Clock) -> tuple[pl.DataFrame, dict]:
    """subject_id, time: birth_datetime, or else year, month and day; the middle of what is unknown."""
    born = moments(frame["birth_datetime"], "person.birth_datetime", clock.timezone, dates=True)
    parts = pl.DataFrame([table.whole(frame, f"{part}_of_birth") for part in ("year", "month", "day")])
    month = pl.col("month_of_birth")
    day = pl.coalesce("day_of_birth", pl.when(month.is_null()).then(1).otherwise(15))
    text = pl.format("{}-{}-{}", "year_of_birth", month.fill_null(7), day)
    stated = parts.select(text.str.to_datetime("%Y-%m-%d", time_unit="us", strict=False)).to_series()
    stated = stated.set(is_sentinel(stated, births=True), None)
    other_year = (born.time.dt.year() != stated.dt.year()).fill_null(False)
    odd = is_sentinel(born.time, births=True) | (is_sentinel(born.time) & other_year)
    given = born.time.is_not_null() & ~odd
    birth = pl.DataFrame({"subject_id": subject, "time": born.time.zip_with(given, stated)})
    return birth, {
        "unreadable_times": int(born.unreadable.sum()),
        "placeholder_dates": int(odd.sum()),
        "time_disagrees": int((other_year & given).sum()),
    }


def _record(
    name: str, prefix: str, start: str, end: str = "", value: str | None = None, rows: RowsOf = _events,
    required: bool = True,
) -> Table:  # fmt: skip
    """A table whose columns follow OMOP's pattern. required: its concept and date must be there."""
    key, concept, source = f"{name}_id", f"{prefix}_concept_id", f"{prefix}_source_concept_id"
    times = [f"{stem}_{kind}" for stem in (start, end) if stem for kind in ("date", "datetime")]
    columns = ("person_id", key, concept, source, *times, *([value] if value else []))
    needed = ("person_id", concept, f"{start}_date") if required else ("person_id",)
    return Table(name, rows, columns, needed, key, concept, source, start, end, value)


_PERSON = (
    "person_id", "year_of_birth", "month_of_birth", "day_of_birth", "birth_datetime", "gender_concept_id",
    "gender_source_concept_id", "race_concept_id", "race_source_concept_id", "ethnicity_concept_id",
    "ethnicity_source_concept_id", "death_datetime",
)  # fmt: skip
_PERIOD = tuple(f"observation_period_{stem}_{kind}" for stem in ("start", "end") for kind in ("date", "datetime"))

TABLES = {
    table.name: table
    for table in (
        Table("person", _persons, _PERSON, ("person_id", "gender_concept_id", "year_of_birth")),
        _record("visit_occurrence", "visit", "visit_start", "visit_end", rows=_visits),
        _record("visit_detail", "visit_detail", "visit_detail_start", "visit_detail_end", rows=_visits, required=False),
        _record("condition_occurrence", "condition", "condition_start", "condition_end"),
        _record("drug_exposure", "drug", "drug_exposure_start", "drug_exposure_end"),
        _record("procedure_occurrence", "procedure", "procedure", "procedure_end"),
        _record("measurement", "measurement", "measurement", value="value_as_number"),
        _record("observation", "observation", "observation", value="value_as_number"),
        _record("device_exposure", "device", "device_exposure_start", "device_exposure_end"),
        Table("death", _deaths, ("person_id", "death_date", "death_datetime"), ("person_id", "death_date"),
              start="death"),
        Table("observation_period", _periods, ("person_id", *_PERIOD), ("person_id", _PERIOD[0], _PERIOD[2]),
              start="observation_period_start", end="observation_period_end"),
    )
}  # fmt: skip
