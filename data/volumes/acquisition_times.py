"""Is study_time the time of the scan? Compares it with the headers of the images, per study and overall.

study_time        b         acquired
    |-------------|------------X-------->      if study_time is the time of the order, events between b and X
    t0          t0 + b                         become labels although they were known before the scan
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import polars as pl

from data.volumes.prepare_study import PreparedVolume

FAR_SHARE = 0.05  # of the studies may be more than a day off
LATE_DAYS, LATE_SHARE = 30 / 1440, 0.75  # a scanner starts a few minutes after its study
SHIFT_DAYS = 30.0  # most orders are written at most this long before the scan
BOTH_WAYS = 0.25  # offsets of both signs are not delays: no order is written after its scan
MIN_SUBJECTS = 3  # with several scans, to distinguish shifted dates from delays
QUANTILES = {"p05": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95}

_offset, _far = pl.col("offset_days"), pl.col("offset_days").abs() > 1


def acquisition_times(studies: pl.DataFrame, volumes: Iterable[PreparedVolume]) -> pl.DataFrame:
    """Table `acquisition_times.parquet`, one row per volume.

    study_id, subject_id, study_time, date_only, acquired (datetime[us], null if the image does not state it),
    offset_days (acquired - study_time; whole days if one of them is a date without a time, or midnight).
    """
    rows = [(volume.study_id, volume.record.acquired) for volume in volumes]
    said = pl.DataFrame(rows, schema={"study_id": pl.String, "acquired": pl.String}, orient="row")
    said = said.with_columns(pl.col("acquired").str.to_datetime("%Y-%m-%dT%H:%M:%S%.f", time_unit="us"))
    table = studies.select("study_id", "subject_id", "study_time", "date_only").join(said, on="study_id")
    is_date = pl.col("date_only") | (pl.col("acquired").dt.time() == pl.time(0))
    exact = pl.col("acquired") - pl.col("study_time")
    whole = pl.col("acquired").dt.truncate("1d") - pl.col("study_time").dt.truncate("1d")
    offset = pl.when(is_date).then(whole).otherwise(exact).dt.total_microseconds() / 86_400e6
    return table.with_columns(offset_days=offset).sort("study_id")


def time_audit(times: pl.DataFrame, blackout_days: float) -> dict:
    """Counts over acquisition_times, and a verdict: agree | differ | cannot_be_judged | not_known."""
    known = times.drop_nulls("offset_days")
    same_day = pl.col("acquired").dt.date() == pl.col("study_time").dt.date()
    after_blackout = _offset > blackout_days + pl.col("date_only").cast(pl.Int8)
    return {
        "studies": times.height,
        "without_time": times.height - known.height,
        "same_day": known.filter(same_day).height,
        "over_a_day_earlier": known.filter(_offset < -1).height,
        "over_a_day_later": known.filter(_offset > 1).height,
        "after_blackout": known.filter(after_blackout).height,
        "offset_days": {name: known["offset_days"].quantile(q, "linear") for name, q in QUANTILES.items()},
        "verdict": _verdict(known),
    }


def warning(audit: dict) -> str | None:
    """What is wrong with study_time, and what to do; None if nothing is known to be wrong."""
    known = max(audit["studies"] - audit["without_time"], 1)
    far = (audit["over_a_day_earlier"] + audit["over_a_day_later"]) / known
    if audit["verdict"] == "cannot_be_judged":
        return (
            f"study_time: {far:.0%} of the images that say when they were acquired are more than a day off, as where "
            "dates were shifted or rows name other images; whether it is the time of the scan cannot be judged. Shift "
            "images and records alike, or compare them before the shift"
        )
    if audit["verdict"] == "differ":
        whose = "report" if audit["offset_days"]["p50"] < 0 else "order"
        return (
            f"study_time is not when the scans were made: {far:.0%} of them more than a day off, the median "
            f"{24 * audit['offset_days']['p50']:+.1f} h, {audit['after_blackout'] / known:.0%} after the blackout, and "
            f"what was recorded before these counts as their future. It may be the {whose}'s time; "
            "acquisition_times.parquet has the images' own"
        )
    return None


def _verdict(known: pl.DataFrame) -> str:
    if known.is_empty():
        return "not_known"
    far = known.filter(_far)
    if far.height > FAR_SHARE * known.height:
        return "cannot_be_judged" if _shifted(known, far) else "differ"
    clock = known.filter(~pl.col("date_only") & (pl.col("acquired").dt.time() != pl.time(0)))["offset_days"].to_numpy()
    late = len(clock) > 0 and np.median(clock) > LATE_DAYS and (clock > 0).mean() >= LATE_SHARE
    return "differ" if late else "agree"


def _shifted(known: pl.DataFrame, far: pl.DataFrame) -> bool:
    """Whether dates were shifted: most images have one date, or offsets are no delays and equal within a subject."""
    if (
        far["acquired"].dt.date().value_counts()["count"].to_numpy().max() > far.height / 2
    ):  # one stand-in for all dates
        return True
    offset_days = far["offset_days"].to_numpy()
    either_sign = min((offset_days > 0).mean(), (offset_days < 0).mean()) >= BOTH_WAYS
    if not either_sign and np.median(np.abs(offset_days)) <= SHIFT_DAYS:
        return False
    scans = known.group_by("subject_id").agg(pl.len(), far=_far.any(), spread=_offset.max() - _offset.min())
    several = scans.filter("far", pl.col("len") > 1)
    return several.height < MIN_SUBJECTS or bool((several["spread"].to_numpy() <= 1).mean() > 0.5)
