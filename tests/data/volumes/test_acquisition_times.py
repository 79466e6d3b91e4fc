"""Is study_time the time of the scan? Offsets by hand, and the verdict on archives of known kinds."""

from datetime import datetime, timedelta

import polars as pl
import pytest

from data.volumes.acquisition_times import acquisition_times, time_audit, warning
from data.volumes.cache import VolumeRecord
from data.volumes.prepare_study import PreparedVolume

T0, DAY, HOUR = datetime(2020, 3, 1, 10, 30), timedelta(days=1), timedelta(hours=1)


def volume(study_id, acquired):
    record = VolumeRecord([1] * 3, [1.0] * 3, [0.0] * 16, [], {}, [1.0] * 3, "", "", acquired and acquired.isoformat())
    return PreparedVolume(study_id, study_id, "", record, reused=False)


def times(rows):
    """acquisition_times of (subject, study_time, acquired) rows; a study_time at midnight is a date."""
    ids = [f"s{n:03d}" for n in range(len(rows))]
    studies = pl.DataFrame(
        {
            "study_id": ids,
            "subject_id": [subject for subject, _, _ in rows],
            "study_time": pl.Series([time for _, time, _ in rows], dtype=pl.Datetime("us")),
            "date_only": [time.hour == 0 for _, time, _ in rows],
        }
    )
    return acquisition_times(studies, [volume(study_id, row[2]) for study_id, row in zip(ids, rows)])


def verdict(rows):
    return time_audit(times(rows), 1.0)["verdict"]


def test_offsets_are_exact_between_times_and_whole_days_with_a_date():
    midnight = datetime(2020, 3, 1)
    rows = [
        (1, T0, T0 + 36 * HOUR), (2, T0, T0 - timedelta(microseconds=21_600_000_000)), (3, T0, midnight + 2 * DAY),
        (4, midnight, T0 + 13 * HOUR), (5, midnight, midnight - DAY), (6, T0, None),
    ]  # fmt: skip
    table = times(rows)
    assert table["offset_days"].to_list() == [1.5, -0.25, 2.0, 0.0, -1.0, None]
    assert table["acquired"][0] == T0 + 36 * HOUR
    audit = time_audit(table, blackout_days=1.0)
    del audit["verdict"], audit["offset_days"]
    assert audit == {
        "studies": 6, "without_time": 1, "same_day": 2, "over_a_day_earlier": 0, "over_a_day_later": 2,
        "after_blackout": 2,
    }  # fmt: skip


def test_a_date_only_study_lasts_a_day_longer_before_its_labels_start():
    midnight = datetime(2020, 3, 1)
    later = [(1, midnight, midnight + n * DAY + HOUR) for n in (1, 2, 3)]
    assert time_audit(times(later), blackout_days=1.0)["after_blackout"] == 1


@pytest.mark.parametrize(
    ("offset", "expected"),
    [
        (lambda n: timedelta(minutes=n % 20), "agree"),
        (lambda n: DAY * 3 if n % 20 == 0 else timedelta(0), "agree"),  # 5 % are not more than 5 %
        (lambda n: DAY * 3 if n % 10 == 0 else timedelta(0), "differ"),
        (lambda _: -2 * DAY, "differ"),  # perhaps the report's time
        (lambda n: (n * 7 % 5) * HOUR, "differ"),  # ordered hours before
        (lambda n: (20 + n * 37 % 90) * DAY, "differ"),  # ordered months before, each for itself
        (lambda n: (n % 50 * 97 % 700 - 350) * DAY, "cannot_be_judged"),  # one shift for each subject
        (lambda _: -40_000 * DAY, "cannot_be_judged"),  # one for all
        (lambda _: None, "not_known"),
    ],
)
def test_archives_of_known_kinds(offset, expected):
    """A hundred scans of fifty subjects, two each, a year apart."""
    rows = []
    for n in range(100):
        t0, shift = T0 + n // 50 * 365 * DAY, offset(n)
        rows.append((n % 50, t0, None if shift is None else t0 + shift))
    assert verdict(rows) == expected
    said = warning(time_audit(times(rows), 1.0))
    assert (said is None) == (expected in ("agree", "not_known"))


def test_one_scan_each_of_either_sign_cannot_be_judged_but_short_delays_can():
    assert verdict([(n, T0, T0 + (n * 37 % 400 - 200) * DAY) for n in range(60)]) == "cannot_be_judged"
    assert verdict([(n, T0, T0 + (1 + n % 9) * DAY) for n in range(60)]) == "differ"


def test_one_date_for_all_images_stands_for_every_other():
    assert verdict([(n % 30, T0 + n * DAY, datetime(2006, 1, 1, 1, 1)) for n in range(60)]) == "cannot_be_judged"


def test_shifting_records_and_images_alike_changes_nothing():
    rows = [(n % 7, T0 + n * DAY, T0 + n * DAY + (n % 4) * DAY / 3) for n in range(40)]
    moved = [(s, t + (100 + s) * DAY, a + (100 + s) * DAY) for s, t, a in rows]
    assert time_audit(times(rows), 1.0) == time_audit(times(moved), 1.0)


def test_the_warning_says_how_many_scans_lie_behind_the_blackout():
    rows = [(n, T0 + n * DAY, T0 + (n + 3 if n < 30 else n) * DAY) for n in range(100)]
    said = warning(time_audit(times(rows), 1.0))
    assert "30% of them more than a day off, the median +0.0 h, 30% after the blackout" in said
