"""What is before and what is after the scan: every boundary, by hand and through the whole label stage."""

from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest

from ehr.schema import DAY_US
from ehr.timeline import in_units, last_moment, side_of_scan, with_index, with_intervals

US = timedelta(microseconds=1)
DAY = timedelta(days=1)
NOON = datetime(2150, 6, 1, 12)
MIDNIGHT = datetime(2150, 6, 1)

# event time, scan time, scan is a bare date, blackout in days, feature, label
BOUNDARIES = {
    "one microsecond before the scan": (NOON - US, NOON, False, 0, True, False),
    "at the scan's own microsecond": (NOON, NOON, False, 0, True, False),
    "one microsecond after the scan": (NOON + US, NOON, False, 0, False, True),
    "one microsecond after the scan, inside the blackout": (NOON + US, NOON, False, 1, False, False),
    "exactly at the end of the blackout": (NOON + DAY, NOON, False, 1, False, False),
    "one microsecond after the blackout": (NOON + DAY + US, NOON, False, 1, False, True),
    "date of the day before the scan": (MIDNIGHT - DAY, NOON, False, 0, True, False),
    "date of the scan's day": (MIDNIGHT, NOON, False, 0, False, False),
    "date of the next day": (MIDNIGHT + DAY, NOON, False, 0, False, True),
    "date of the next day, inside the blackout": (MIDNIGHT + DAY, NOON, False, 1, False, False),
    "date of the day after next": (MIDNIGHT + 2 * DAY, NOON, False, 1, False, True),
    "date whose day ends as an exact scan at midnight starts": (MIDNIGHT - DAY, MIDNIGHT, False, 0, True, False),
    "date that starts with an exact scan at midnight": (MIDNIGHT, MIDNIGHT, False, 0, False, False),
    "date that starts as the blackout ends": (MIDNIGHT + DAY, MIDNIGHT, False, 1, False, False),
    "date-only scan, date of the day before": (MIDNIGHT - DAY, MIDNIGHT, True, 0, True, False),
    "date-only scan, last microsecond of the day before": (MIDNIGHT - US, MIDNIGHT, True, 0, True, False),
    "date-only scan, date of the same day": (MIDNIGHT, MIDNIGHT, True, 0, False, False),
    "date-only scan, exact time on the same day": (NOON, MIDNIGHT, True, 0, False, False),
    "date-only scan, date of the next day": (MIDNIGHT + DAY, MIDNIGHT, True, 0, False, True),
    "date-only scan, date of the next day, blackout": (MIDNIGHT + DAY, MIDNIGHT, True, 1, False, False),
    "date-only scan, last microsecond of the blackout": (MIDNIGHT + 2 * DAY - US, MIDNIGHT, True, 1, False, False),
    "date-only scan, date of the day after next, blackout": (MIDNIGHT + 2 * DAY, MIDNIGHT, True, 1, False, True),
}  # fmt: skip


def placed(event: datetime, scan: datetime, bare: bool, blackout: float, date_only="midnight", code="X/A"):
    time = pl.Datetime("us")
    events = pl.LazyFrame({"time": [event], "code": [code]}, schema_overrides={"time": time})
    start, end = with_intervals(events, date_only).collect().select("start", "end").row(0)
    studies = pl.DataFrame({"study_time": [scan], "date_only": [bare]}, schema_overrides={"study_time": time})
    index, index_last = with_index(studies).select("index", "index_last").row(0)
    return side_of_scan(start, end, index, index_last, round(blackout * DAY_US))


@pytest.mark.parametrize("case", BOUNDARIES)
def test_boundary(case):
    event, scan, bare, blackout, feature, after = BOUNDARIES[case]
    assert placed(event, scan, bare, blackout) == (feature, after)


@pytest.mark.parametrize("case", BOUNDARIES)
def test_boundary_through_the_whole_label_stage(case, tmp_path, meds, label):
    """Label iff after, history iff not after, among past codes iff feature; T is measured from the study time."""
    event, scan, bare, blackout, feature, after = BOUNDARIES[case]
    rows = [
        (1, event, "X/A"),
        (1, scan + 99 * DAY, "X/end"),
        (2, scan + 99 * DAY, "X/end"),
        (2, scan + 50 * DAY, "X/A"),
    ]
    rows += [(3, scan + 99 * DAY, "X/end")]
    studies = meds.studies([(s, scan, "train", bare) for s in (1, 2, 3)])
    result = label(meds.write(tmp_path / "ehr", [rows]), studies, exclude=["X/end"], blackout_days=float(blackout))
    row, a = result.labels.row(0, named=True), result.tasks.codes.index("X/A")
    days = (event - scan) / DAY
    assert dict(zip(row["task_index"], row["event_days"])) == ({a: days} if after else {})
    assert row["history_index"] == ([] if after else [a])
    assert result.covariates["past_codes"][0].to_list() == (["X/A"] if feature else [])
    assert row["index_time"] == scan


def test_midnight_is_a_moment_when_asked():
    assert placed(MIDNIGHT, NOON, False, 0, date_only="never") == (True, False)
    assert placed(MIDNIGHT + DAY, MIDNIGHT, False, 1, date_only="never") == (False, False)


def test_a_date_only_death_happens_as_its_day_ends():
    """Death dated to the day after the scan: with one day of blackout it lies after t0 + b, unlike any other event."""
    assert placed(MIDNIGHT + DAY, NOON, False, 1, code="MEDS_DEATH") == (False, True)
    assert placed(MIDNIGHT + DAY, NOON, False, 1, code="X/A") == (False, False)
    assert placed(MIDNIGHT, NOON, False, 1, code="MEDS_DEATH") == (False, False)
    assert placed(NOON + DAY + US, NOON, False, 1, code="MEDS_DEATH") == (False, True)


def test_nothing_is_both_feature_and_label():
    rng = np.random.default_rng(0)
    start, index = rng.integers(-5, 5, (2, 10_000)) * (DAY_US // 4) + rng.integers(-1, 2, (2, 10_000))
    end = start + DAY_US * (start % DAY_US == 0)
    index_last = index + (DAY_US - 1) * (index % DAY_US == 0)
    for blackout in (0, DAY_US):
        side = side_of_scan(start, end, index, index_last, blackout)
        assert not (side.feature & side.after).any()
        assert side.after[start > index_last + blackout].all()


def test_static_events_have_no_place():
    events = pl.LazyFrame({"time": [None], "code": ["GENDER//F"]}, schema_overrides={"time": pl.Datetime("us")})
    assert with_intervals(events, "midnight").collect().row(0) == ("GENDER//F", None, None)


def test_the_last_moment_of_a_day_and_of_a_point():
    assert last_moment(np.array([0, 5]), np.array([DAY_US, 5])).tolist() == [DAY_US - 1, 5]
    frame = pl.DataFrame({"start": [0, 5], "end": [DAY_US, 5]})
    assert frame.select(last_moment(pl.col("start"), pl.col("end"))).to_series().to_list() == [DAY_US - 1, 5]


def test_days_are_correctly_rounded_float64():
    """One day and a microsecond is more than one day; every quotient is the nearest float."""
    us = np.random.default_rng(1).integers(-(10**15), 10**15, 5000)
    frame = pl.DataFrame({"us": [DAY_US + 1, None, *us.tolist()]})
    days = frame.select(in_units(pl.col("us"))).to_series().to_list()
    assert days[0] > 1
    assert days[1] is None
    assert days[2:] == [int(u) / DAY_US for u in us]
