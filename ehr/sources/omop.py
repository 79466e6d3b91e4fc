"""OMOP rows as MEDS rows: which columns of CDM 5.3 and 5.4 mean what. Both versions name what we read alike.

Codes are still concept ids here; rows of one schema (ROWS), so that all tables travel the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import polars as pl

from ehr.schema import ADMISSION, BIRTH, DEATH
from ehr.sources.columns import moments, number_cells, whole_numbers

# Inpatient Visit, Emergency Room and Inpatient Visit, Inpatient Hospital (place of service)
INPATIENT = (9201, 262, 8717)
SEXES = {8507: "GENDER//M", 8532: "GENDER//F"}

ROWS = pl.Schema(
    {
        "subject_id": pl.Int64(),
        "key": pl.UInt64(),  # hash of the primary key; null where the table has none
        "time": pl.Datetime("us"),  # null: static
        "end": pl.Datetime("us"),  # of stays; of observation periods (then the first moment after the last day)
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


def _times(frame: pl.DataFrame, table: Table, stem: str, clock: Clock) -> tuple[pl.DataFrame, int]:
    """time, bare (a date): the datetime, or else the date; and how many rows had text that is neither."""
    exact, day = (
        moments(frame[f"{stem}_{kind}"], f"{table.name}.{stem}_{kind}", clock.timezone) for kind in ("datetime", "date")
    )
    given = exact.time.is_not_null()
    time = exact.time.zip_with(given, day.time).alias("time")
    bare = (exact.bare & given) | ~given
    if clock.date_only == "midnight":  # as the label stage will read it
        bare |= (time == time.dt.truncate("1d")).fill_null(False)
    return pl.DataFrame([time, bare.alias("bare")]), max(int(exact.unreadable.sum()), int(day.unreadable.sum()))


def _events(frame: pl.DataFrame, table: Table, clock: Clock) -> tuple[pl.DataFrame, dict]:
    """One row per record, at its start."""
    times, unreadable = _times(frame, table, table.start, clock)
    columns = {"subject_id": table.whole(frame, table.columns[0]), "time": times["time"], "bare": times["bare"]}
    if table.concept and table.source:
        columns |= {"concept": table.whole(frame, table.concept), "source": table.whole(frame, table.source)}
    else:
        columns["code"] = pl.repeat(DEATH, len(frame), eager=True)
    if table.key:
        columns["key"] = frame[table.key].cast(pl.String).hash()
        columns["key"] = columns["key"].set(frame[table.key].is_null(), None)
    if table.value:
        columns["numeric_value"] = number_cells(frame[table.value], pl.Float32).value
    if table.end:
        ends, _ = _times(frame, table, table.end, clock)
        columns |= {"stop": ends["time"], "stop_bare": ends["bare"]}
    rows = pl.DataFrame(columns)
    timed = rows.filter(pl.col("time").is_not_null())
    counts = {
        "unreadable_times": unreadable,
        "no_time": len(rows) - len(timed),
        "date_only": int(timed["bare"].sum()),
        "end_before_start": timed.filter(_backwards()).height if table.end else 0,
    }
    return timed, counts


def _backwards() -> pl.Expr:
    """A record that ends before it starts; where either is a date, on an earlier day."""
    exact = (pl.col("stop") < pl.col("time")) & ~pl.col("bare") & ~pl.col("stop_bare")
    return exact | (pl.col("stop").dt.truncate("1d") < pl.col("time").dt.truncate("1d"))


def _visits(frame: pl.DataFrame, table: Table, clock: Clock) -> tuple[pl.DataFrame, dict]:
    """Stays (inpatient with a later end) as admissions with their end, other visits as events."""
    rows, counts = _events(frame, table, clock)
    stay = (pl.col("concept").is_in(INPATIENT) & (pl.col("stop") > pl.col("time"))).fill_null(False)
    rows = rows.with_columns(code=pl.when(stay).then(pl.lit(ADMISSION)), end=pl.when(stay).then("stop"))
    return rows, counts | {"stays": rows["code"].count()}


def _periods(frame: pl.DataFrame, table: Table, clock: Clock) -> tuple[pl.DataFrame, dict]:
    """Observation periods [time, end); a date as an end means the end of that day."""
    rows, counts = _events(frame, table, clock)
    day = pl.duration(days=pl.col("stop_bare").cast(pl.Int64))
    rows = rows.with_columns(end=pl.col("stop") + day, concept=None, source=None, code=None)
    kept = rows.filter(pl.col("end") > pl.col("time"))
    return kept, counts | {"no_end": len(rows) - len(kept) - counts["end_before_start"], "date_only": 0}


def _persons(frame: pl.DataFrame, table: Table, clock: Clock) -> tuple[pl.DataFrame, dict]:
    """Birth, and as static rows sex, race and ethnicity."""
    subject = table.whole(frame, "person_id")
    numbers_of = {c: table.whole(frame, c) for c in frame.columns if c.startswith(("gender", "race", "ethnicity"))}
    born = moments(frame["birth_datetime"], "person.birth_datetime", clock.timezone)
    parts = pl.DataFrame([table.whole(frame, f"{part}_of_birth") for part in ("year", "month", "day")])
    month = pl.col("month_of_birth")
    # the middle of what is unknown
    day = pl.coalesce("day_of_birth", pl.when(month.is_null()).then(1).otherwise(15))
    text = pl.format("{}-{}-{}", "year_of_birth", month.fill_null(7), day)
    stated = parts.select(text.str.to_datetime("%Y-%m-%d", time_unit="us", strict=False)).to_series()
    exact = born.time.is_not_null()
    birth = pl.DataFrame({"subject_id": subject, "time": born.time.zip_with(exact, stated)})
    static = [pl.DataFrame({"subject_id": subject, "concept": concept, "source": source}) for concept, source in (
        (numbers_of[f"{kind}_concept_id"], numbers_of[f"{kind}_source_concept_id"])
        for kind in ("gender", "race", "ethnicity")
    )]  # fmt: skip
    sex = pl.col("concept").replace_strict(SEXES, default=None, return_dtype=pl.String)
    static[0] = static[0].with_columns(code=sex)
    births = birth.drop_nulls("time").with_columns(code=pl.lit(BIRTH))
    counts = {"no_birth": len(birth) - len(births), "unreadable_times": int(born.unreadable.sum())}
    return pl.concat([births, *static], how="diagonal"), counts


def _record(
    name: str, prefix: str, start: str, end: str = "", value: str | None = None, rows: RowsOf = _events
) -> Table:
    """A table whose columns follow OMOP's pattern."""
    key, concept, source = f"{name}_id", f"{prefix}_concept_id", f"{prefix}_source_concept_id"
    times = [f"{stem}_{kind}" for stem in (start, end) if stem for kind in ("date", "datetime")]
    columns = ("person_id", key, concept, source, *times, *([value] if value else []))
    required = ("person_id", concept, f"{start}_date")
    return Table(name, rows, columns, required, key, concept, source, start, end, value)


_PERSON = (
    "person_id", "year_of_birth", "month_of_birth", "day_of_birth", "birth_datetime", "gender_concept_id",
    "gender_source_concept_id", "race_concept_id", "race_source_concept_id", "ethnicity_concept_id",
    "ethnicity_source_concept_id",
)  # fmt: skip
_PERIOD = tuple(f"observation_period_{stem}_{kind}" for stem in ("start", "end") for kind in ("date", "datetime"))

TABLES = {
    table.name: table
    for table in (
        Table("person", _persons, _PERSON, ("person_id", "gender_concept_id", "year_of_birth")),
        _record("visit_occurrence", "visit", "visit_start", "visit_end", rows=_visits),
        _record("condition_occurrence", "condition", "condition_start", "condition_end"),
        _record("drug_exposure", "drug", "drug_exposure_start", "drug_exposure_end"),
        _record("procedure_occurrence", "procedure", "procedure", "procedure_end"),
        _record("measurement", "measurement", "measurement", value="value_as_number"),
        _record("observation", "observation", "observation", value="value_as_number"),
        _record("device_exposure", "device", "device_exposure_start", "device_exposure_end"),
        Table("death", _events, ("person_id", "death_date", "death_datetime"), ("person_id", "death_date"),
              start="death"),
        Table("observation_period", _periods, ("person_id", *_PERIOD), ("person_id", _PERIOD[0], _PERIOD[2]),
              start="observation_period_start", end="observation_period_end"),
    )
}  # fmt: skip
