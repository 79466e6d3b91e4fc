"""What is before and what is after the scan: every boundary, by hand and through the whole label stage."""

from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest

from ehr.schema import DAY_US
from ehr.timeline import NEVER, in_units, intervals, last_moment, side_of_scan, with_index

US = timedelta(microseconds=1)
DAY = timedelta(days=1)
NOON = datetime(2150, 6, 1, 12)
MIDNIGHT = datetime(2150, 6, 1)

# The scan: 1 June, 12:00, exactly. Blackout one day: until 2 June, 12:00. T in days by hand.
# Drawn in docs/reference/label-rules.md.
#       event                               time                code          feature  history  T
TWELVE = {
    1:  ("a microsecond before the scan",    NOON - US,          "X/A",        True,    True,    None),
    2:  ("the scan's own microsecond",       NOON,               "X/A",        True,    True,    None),
    3:  ("birth in that microsecond",        NOON,               "MEDS_BIRTH", True,    True,    None),
    4:  ("a microsecond after the scan",     NOON + US,          "X/A",        False,   True,    None),
    5:  ("the blackout's last microsecond",  NOON + DAY,         "X/A",        False,   True,    None),
    6:  ("a microsecond after the blackout", NOON + DAY + US,    "X/A",        False,   False,   1 + 1 / 86.4e9),
    7:  ("date of the day before",           MIDNIGHT - DAY,     "X/A",        True,    True,    None),
    8:  ("date of the scan's day",           MIDNIGHT,           "X/A",        False,   True,    None),
    9:  ("date of the blackout's last day",  MIDNIGHT + DAY,     "X/A",        False,   True,    None),
    10: ("date of the day after",            MIDNIGHT + 2 * DAY, "X/A",        False,   False,   1.5),
    11: ("death dated to the scan's day",    MIDNIGHT,           "MEDS_DEATH", False,   True,    None),
    12: ("death dated to the next day",      MIDNIGHT + DAY,     "MEDS_DEATH", False,   False,   1.5),
}  # fmt: skip

# Other scans and no blackout: event time, scan time, scan is a bare date, blackout in days, feature, label
FURTHER = {
    "no blackout, one microsecond after the scan": (NOON + US, NOON, False, 0, False, True),
    "no blackout, date of the next day": (MIDNIGHT + DAY, NOON, False, 0, False, True),
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
    moment = np.array([(event - datetime(1970, 1, 1)) // US])
    start, end = (int(side[0]) for side in intervals(moment, np.array([code == "MEDS_DEATH"]), date_only))
    studies = pl.DataFrame({"study_time": [scan], "date_only": [bare]}, schema_overrides={"study_time": time})
    index, index_last = with_index(studies).select("index", "index_last").row(0)
    return side_of_scan(start, end, index, index_last, round(blackout * DAY_US))


@pytest.mark.parametrize("number", TWELVE)
def test_the_twelve_boundary_cases(number):
    _, time, code, feature, history, days = TWELVE[number]
    assert placed(time, NOON, False, 1, code=code) == (feature, days is not None)
    assert history is (days is None)


@pytest.mark.parametrize("number", TWELVE)
def test_the_twelve_boundary_cases_through_the_whole_label_stage(number, tmp_path, meds, label):
    """Subject 1 has the event and is followed for 99 days; subject 2 makes its code a task."""
    _, time, code, feature, history, days = TWELVE[number]
    rows = [(1, time, code), (2, NOON + 50 * DAY, code), *((s, NOON + 99 * DAY, "X/end") for s in (1, 2, 3))]
    studies = meds.studies([(s, NOON, "train") for s in (1, 2, 3)])
    mortality = {"mortality": {"codes": ["MEDS_DEATH"]}}
    result = label(meds.write(tmp_path / "ehr", [rows]), studies, mortality, exclude=["X/end"])
    if code == "MEDS_DEATH" and days is None:  # nobody is followed beyond death
        assert result.labels["study_id"].to_list() == ["s01", "s02"]
        assert result.counts["studies"]["NO_FOLLOW_UP"] == 1
        return
    row, k = result.labels.row(0, named=True), result.tasks.codes.index(code)
    assert dict(zip(row["task_index"], row["event_days"])) == ({} if days is None else {k: days})
    assert row["history_index"] == ([k] if history else [])
    assert result.covariates["past_codes"][0].to_list() == ([code] if feature else [])
    assert row["censor_days"] == (days if code == "MEDS_DEATH" else 99)
    assert result.covariates["age_years"][0] == (0 if code == "MEDS_BIRTH" else None)


@pytest.mark.parametrize("case", FURTHER)
def test_boundary(case):
    event, scan, bare, blackout, feature, after = FURTHER[case]
    assert placed(event, scan, bare, blackout) == (feature, after)


@pytest.mark.parametrize("case", FURTHER)
def test_boundary_through_the_whole_label_stage(case, tmp_path, meds, label):
    """Label iff after, history iff not after, among past codes iff feature; T is measured from the study time."""
    event, scan, bare, blackout, feature, after = FURTHER[case]
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
    """Neither before nor after any scan, nor at its end of follow-up."""
    start, end = intervals(np.array([NEVER]), np.array([False]), "midnight")
    assert start[0] == end[0] == NEVER


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
