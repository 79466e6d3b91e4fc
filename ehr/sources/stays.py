"""Which OMOP visits are hospital stays, and the admissions and discharges that they become.

inpatient visit   end later than its start          a stay: HOSPITAL_ADMISSION, HOSPITAL_DISCHARGE
                  no usable end                     HOSPITAL_ADMISSION alone, unless it lies in a stay
                  end on its start, or on its day   an event of the visit's code, as all other visits
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import polars as pl

from ehr.schema import ADMISSION, DAY_US, DISCHARGE
from ehr.sources.omop import ROWS
from ehr.timeline import is_date

# Inpatient Visit, Emergency Room and Inpatient Visit, Inpatient Hospital (place of service)
INPATIENT = (9201, 262, 8717)
VISITS = ("visit_occurrence", "visit_detail")
YEAR = timedelta(days=365)

LONG_VISITS = pl.Schema({"concept": pl.Int64(), "source": pl.Int64(), "visits": pl.Int64()})


@dataclass(frozen=True)
class Admitted:
    """Which visits are stays. Plain data: travels to workers."""

    inpatient: pl.Series  # concepts that are
    listed: Sequence[int]  # those that the configuration adds: in the source's column too
    known: pl.Series  # concepts that CONCEPT has; where it lacks the visit's, the source's decides
    latest: datetime | None  # the last start of a record in the whole extract
    date_only: str


def split_visits(
    visits: dict[str, pl.DataFrame], rule: Admitted
) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, dict[str, int]]]:
    """Admissions and discharges; the visits that are none; and what was counted, per table.

    visits: ROWS of the tables of VISITS that exist. A visit_detail is a stay or nothing: its visit has the code.
    """
    stays, others, counts = [pl.DataFrame(schema=ROWS)], pl.DataFrame(schema=ROWS), {}
    for name, rows in visits.items():
        late = pl.col("end") > pl.lit(rule.latest, pl.Datetime("us")) + YEAR
        rows = rows.with_columns(late=late.fill_null(False)).with_columns(end=pl.when(~pl.col("late")).then("end"))
        unknown = ~pl.col("concept").is_in(rule.known.implode()).fill_null(False)
        inpatient = pl.col("concept").is_in(rule.inpatient.implode()).fill_null(False)
        inpatient |= unknown & pl.col("source").is_in(rule.inpatient.implode()).fill_null(False)
        inpatient |= pl.col("source").is_in(list(rule.listed)).fill_null(False)
        stay = inpatient & (pl.col("end").is_null() | (pl.col("end") > pl.col("time")))
        mine = rows.filter(stay)
        counts[name] = {
            "stays": mine["end"].count(),
            "open_stays": mine["end"].null_count(),
            "late_ends": int(mine["late"].sum()),
            "events": 0,
        }
        stays.append(mine.select(list(ROWS)))
        if name == VISITS[0]:
            others = rows.filter(~stay).select(list(ROWS))
    joined, events = _discharged(pl.concat(stays), rule.date_only)
    if visits:
        counts[next(iter(visits))] |= {
            "joined_stays": sum(map(len, stays)) - len(joined),
            "long_stays": joined.filter(pl.col("end") - pl.col("time") > YEAR).height,
            "no_discharge": joined["end"].null_count(),
            "events": len(events),
        }
    return events, others, counts


def _discharged(stays: pl.DataFrame, date_only: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Stays, those that overlap or touch as one; and their admissions and discharges (ROWS).

    A stay that ends on a date lasts until the end of that day, as it does around a scan. One without an end is a
    moment, or the day of its start.
    """
    first, until = _first("time", date_only), pl.coalesce("end", "time")
    last = pl.when(_is_date(until, date_only)).then(until.dt.truncate("1d") + timedelta(microseconds=DAY_US - 1))
    stays = stays.with_columns(first=first, last=last.otherwise(until)).sort("subject_id", "first", "last", "time")
    ends = pl.col("end").filter(pl.col("end").is_not_null())
    joined = stays.group_by(runs("first", "last").alias("run")).agg(
        pl.col(*ROWS).exclude("end").first(),
        ends.sort_by(pl.col("last").filter(pl.col("end").is_not_null())).last(),
    )
    joined = joined.with_columns(code=pl.lit(ADMISSION), concept=None, source=None).select(
        pl.col(name).cast(dtype) for name, dtype in ROWS.items()
    )
    leaving = joined.filter(pl.col("end").is_not_null()).with_columns(code=pl.lit(DISCHARGE), time="end", end=None)
    return joined, pl.concat([joined, leaving.select(pl.col(name).cast(dtype) for name, dtype in ROWS.items())])


def _is_date(time: pl.Expr, date_only: str) -> pl.Expr:
    return is_date(time.cast(pl.Int64), date_only)


def _first(column: str, date_only: str) -> pl.Expr:
    bare = _is_date(pl.col(column), date_only)
    return pl.when(bare).then(pl.col(column).dt.truncate("1d")).otherwise(column)


def end_of(column: str, date_only: str) -> pl.Expr:
    """First moment after a time that may be a date."""
    day = pl.when(_is_date(pl.col(column), date_only)).then(pl.col(column).dt.truncate("1d") + timedelta(days=1))
    return day.otherwise(column)


def runs(start: str, end: str) -> pl.Expr:
    """Number of the run of overlapping or touching intervals; rows sorted by subject_id and start."""
    before = pl.col(end).cum_max().shift(1).over("subject_id")
    return (pl.col(start) > before).fill_null(True).cum_sum()


def long_visits(others: pl.DataFrame, stays: pl.DataFrame) -> pl.DataFrame:
    """Visits longer than a day that are no stays and overlap none, by their concepts (LONG_VISITS)."""
    long = others.filter(pl.col("end") - pl.col("time") > timedelta(days=1)).with_row_index("visit")
    closed = stays.filter(pl.col("end").is_not_null()).select("subject_id", entry="time", leave="end")
    covered = long.join(closed, on="subject_id").filter(
        (pl.col("entry") <= pl.col("end")) & (pl.col("leave") >= pl.col("time"))
    )
    left = long.join(covered.select("visit").unique(), on="visit", how="anti")
    counted = left.group_by("concept", "source").agg(visits=pl.len())
    return counted.select(pl.col(name).cast(dtype) for name, dtype in LONG_VISITS.items())


def named_visits(long: pl.DataFrame, concepts: pl.DataFrame) -> list[dict]:
    """concept, name and number of long visits, the commonest first; a visit without a concept goes by its source."""
    names = concepts.select("concept", name=pl.coalesce("description", "code"))
    concept = pl.when(pl.col("concept").fill_null(0) != 0).then("concept").otherwise("source")
    table = long.join(names, on="concept", how="left").join(
        names, left_on="source", right_on="concept", how="left", suffix="_of_source"
    )
    table = table.group_by(concept.alias("concept")).agg(
        name=pl.coalesce("name", "name_of_source").drop_nulls().unique().sort().head(3).str.join(", "),
        visits=pl.col("visits").sum(),
    )
    return table.sort("visits", "concept", descending=[True, False]).head(20).to_dicts()
