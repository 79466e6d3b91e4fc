"""When each scan's follow-up ends, and the hospital stay the scan belongs to.

C = min(death, rule). A bare date as an end means the end of that day. A row is kept iff C lies after t0 + blackout.
"""

from __future__ import annotations

from datetime import date, datetime, timedelta
from functools import partial
from pathlib import Path

import polars as pl

from ehr.config import EhrConfig
from ehr.schema import DAY_US, PERIODS_FILE
from ehr.timeline import last_moment, side_of_scan
from ttepretrain.errors import ConfigError


def fixed_end_us(config: EhrConfig, latest_us: int | None) -> int | None:
    """The end that all subjects share (us); None for `last_event` and `observation_period`, whose ends differ."""
    if config.cutoff_date is not None:  # followup=cutoff, and no other rule, has one
        end = datetime.combine(date.fromisoformat(config.cutoff_date), datetime.min.time()) + timedelta(days=1)
        return (end - datetime(1970, 1, 1)) // timedelta(microseconds=1)
    return latest_us if config.followup == "death" else None


def read_periods(ehr_folder: Path, config: EhrConfig) -> pl.DataFrame | None:
    """Observation periods (schema.PERIODS) beside the events, None when the rule asks for none.

    ConfigError where the data set has none.
    """
    if config.followup != "observation_period":
        return None
    path = ehr_folder / PERIODS_FILE
    if not path.is_file():
        raise ConfigError(
            "ehr.followup=observation_period: the EHR has no observation periods (OMOP has a table of them, MEDS has "
            "none); use last_event or cutoff"
        )
    return pl.read_parquet(path)


def with_period_end(studies: pl.DataFrame, periods: pl.DataFrame | None) -> pl.DataFrame:
    """Adds `period_end` (us): the end of the period that holds t0, outside all of them t0; null without periods.

    periods: schema.PERIODS, disjoint for each subject.
    """
    if periods is None:
        return studies.with_columns(period_end=pl.lit(None, pl.Int64))
    periods = periods.select("subject_id", *(pl.col(name).cast(pl.Int64) for name in ("start", "end"))).sort("start")
    placed = studies.sort("index").join_asof(
        periods, left_on="index", right_on="start", by="subject_id", check_sortedness=False
    )
    end = pl.max_horizontal(pl.col("end").fill_null(pl.col("index")), "index")
    return placed.with_columns(period_end=end).sort("study").drop("start", "end", strict=False)


def outside() -> pl.Expr:
    """Of studies with `period_end`: t0 lies in no observation period."""
    return (pl.col("period_end") == pl.col("index")).fill_null(False)


def with_follow_up(
    studies: pl.DataFrame, events: pl.DataFrame, death_code: int, fixed_end: int | None, blackout_us: int
) -> pl.DataFrame:
    """Adds `censor` (us), `died` (death ended follow-up) and `followed` (C after t0 + blackout); drops `period_end`.

    events: subject, code, start, end of timed events; the last one ends `last_event` follow-up.
    """
    per_subject = events.group_by("subject").agg(
        last=pl.col("end").max(), death=pl.col("start").filter(pl.col("code") == death_code).min()
    )
    studies = studies.join(per_subject, on="subject", how="left", maintain_order="left")
    rule = pl.coalesce("period_end", "last") if fixed_end is None else pl.lit(fixed_end)
    studies = studies.with_columns(censor=pl.min_horizontal("death", rule))  # nulls are skipped
    censor = pl.col("censor")
    followed = side_of_scan(censor, censor, pl.col("index"), pl.col("index_last"), blackout_us).after
    return studies.with_columns(
        died=(pl.col("death") == censor).fill_null(False), followed=followed.fill_null(False)
    ).drop("last", "death", "period_end")


def with_visit(
    studies: pl.DataFrame, events: pl.DataFrame, admissions: pl.Series, discharges: pl.Series
) -> pl.DataFrame:
    """Adds `stay_last` (us; null outside a stay) and the scan's own visit `visit_start`..`visit_last` (closed, us).

    Own stay: the last admission at or before t0, up to its first discharge, if that is not before t0. An admission
    without a discharge before the next admission is no stay; a discharge dated that very day is one, and the stay
    lasts until the day's end. Outside a stay the visit is t0's calendar day.
    """
    entry = events.filter(pl.col("code").is_in(admissions.implode())).select("subject", entry="start").unique()
    entry = entry.sort("entry").with_columns(next_entry=pl.col("entry").shift(-1).over("subject"))
    leave = (
        events.filter(pl.col("code").is_in(discharges.implode()))
        .group_by("subject", leave=last_moment(pl.col("start"), pl.col("end")))
        .agg(left=pl.col("start").min())
    )
    asof = partial(pl.DataFrame.join_asof, by="subject", coalesce=False, check_sortedness=False)
    stays = asof(entry, leave.sort("leave"), left_on="entry", right_on="leave", strategy="forward")
    stays = stays.filter((pl.col("left") <= pl.col("next_entry")).fill_null(pl.col("leave").is_not_null()))
    scans = studies.select("study", "subject", "index", "index_last").sort("index_last")
    own = asof(scans, stays, left_on="index_last", right_on="entry", strategy="backward")
    own = own.filter(pl.col("leave") >= pl.col("index"))
    studies = studies.join(own.select("study", "entry", "leave"), on="study", how="left", maintain_order="left")
    day = pl.col("index") - pl.col("index") % DAY_US
    return studies.with_columns(
        stay_last=pl.col("leave"),
        visit_start=pl.coalesce("entry", day),
        visit_last=pl.min_horizontal(pl.coalesce("leave", day + DAY_US - 1), "censor"),
    ).drop("entry", "leave")
