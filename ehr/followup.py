"""When each scan's follow-up ends, and the hospital stay the scan belongs to.

C = min(death, rule, end of the extract). A bare date as an end means the end of that day. A row is kept iff C lies
after t0 + blackout. What is dated after the extract's end is a mistake: no event, no death and no discharge.
"""

from __future__ import annotations

from datetime import date, datetime, timedelta
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from ehr.config import EhrConfig
from ehr.schema import DAY_US, PERIODS_FILE
from ehr.timeline import NEVER, last_moment, side_of_scan
from ttepretrain.errors import ConfigError

GAP_US = 10 * 365 * DAY_US  # longer than any hospital goes without a record
FEW = 0.05  # of the subjects: days that mistaken dates lie on


def extract_end_us(last_times: pl.DataFrame, studies: pl.DataFrame) -> int:
    """End of the extract's last day (us).

    That day is the last one with a record of any subject, unless ten years without any subject's last record lie below
    the latest ones, which then are mistakes:

        subjects' last records  ....:..:::.:::::::|--------- ten years and more ---------. .
                                                  end     at most half of the subjects, on at most FEW days for each

    and no scan of these subjects: where there is one, their dates were shifted, each by a time of its own.

    last_times: subject_id, last (us; not null for all). studies: subject_id, index (us).
    """
    scans = studies.group_by("subject_id").agg(pl.col("index").max())
    table = last_times.drop_nulls("last").join(scans, on="subject_id", how="left").sort("last")
    last, scan = table["last"].to_numpy(), table["index"].fill_null(-NEVER).to_numpy()
    days = last // DAY_US
    for place in np.flatnonzero(np.diff(last) > GAP_US):
        above = slice(place + 1, None)
        few = len(np.unique(days[above])) <= FEW * len(last) and len(last[above]) <= len(last) / 2
        if few and not (scan[above] > last[place]).any():
            return int(days[place] + 1) * DAY_US
    return int(days[-1] + 1) * DAY_US


def quiet_days(last_times: pl.DataFrame, extract_end: int) -> int:
    """Longest time between two subjects' last records, of the later half of those within the extract."""
    last = last_times["last"].drop_nulls().sort().to_numpy()
    last = last[last <= extract_end]
    return int(np.diff(last[len(last) // 2 :]).max(initial=0) // DAY_US)


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
    studies: pl.DataFrame, deaths: pl.DataFrame, fixed_end: int | None, extract_end: int, blackout_us: int
) -> pl.DataFrame:
    """Adds `censor` (us), `died` (death ended follow-up), `undated` (they died, nobody knows when), `capped` (the rule
    would go on after the extract's end) and `followed` (C after t0 + blackout); drops `period_end`.

    studies: with `last` and `last_given`, the end of the subject's last event within the extract and of all (us; null
    without one). deaths: of `first_deaths`. Who died at an unknown time is known to live until `last`, and no longer.
    """
    studies = studies.join(deaths.with_columns(dead=True), on="subject", how="left", maintain_order="left")
    dead = pl.col("dead").fill_null(False)
    undated = dead & pl.col("death").is_null()
    rule, given = (
        pl.coalesce("period_end", last) if fixed_end is None else pl.lit(fixed_end) for last in ("last", "last_given")
    )
    known = pl.when(pl.col("last").is_not_null()).then(pl.min_horizontal("last", rule))
    rule = pl.when(undated).then(known).otherwise(rule)
    bound = pl.when(rule.is_not_null()).then(pl.lit(extract_end))
    studies = studies.with_columns(
        censor=pl.min_horizontal("death", rule, bound),  # nulls are skipped
        undated=undated,
        capped=~dead & (given > extract_end).fill_null(False),
    )
    censor = pl.col("censor")
    followed = side_of_scan(censor, censor, pl.col("index"), pl.col("index_last"), blackout_us).after
    return studies.with_columns(
        died=(pl.col("death") == censor).fill_null(False), followed=followed.fill_null(False)
    ).drop("dead", "death", "period_end")


def first_deaths(marks: pl.DataFrame, death_code: int, extract_end: int) -> pl.DataFrame:
    """subject, death (us) of all who died; null where no death has a date within the extract."""
    within = pl.col("start").filter(pl.col("start") <= extract_end)
    return marks.filter(pl.col("code") == death_code).group_by("subject").agg(death=within.min())


def with_visit(
    studies: pl.DataFrame, events: pl.DataFrame, admissions: pl.Series, discharges: pl.Series
) -> pl.DataFrame:
    """Adds `stay_last` (us; null outside a stay) and the scan's own visit `visit_start`..`visit_last` (closed, us).

    Own stay: the last admission at or before t0, up to its first discharge, if that is not before t0. An admission
    without a discharge before the next admission is no stay; a discharge dated that very day is one, and the stay
    lasts until the day's end. Outside a stay the visit is t0's calendar day. events: of the extract's time alone, so
    that a discharge on a stand-in date in the far future is none.
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
