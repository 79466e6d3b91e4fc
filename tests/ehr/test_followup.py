"""End of follow-up and hospital stays."""

from datetime import datetime, timedelta

import numpy as np
import pytest

from ehr.choice.bins import EventTimes, bin_edges
from ehr.config import EhrConfig
from ehr.followup import fixed_end_us
from ttepretrain.errors import ConfigError

T0 = datetime(2150, 6, 1, 12)
DAY = timedelta(days=1)


def censored(label, meds, folder, rows, **config) -> dict:
    """{subject: censor_days}; two further subjects give the run a task."""
    rows = [*rows, (8, T0 + 3 * DAY, "X/A"), (8, T0 + 5 * DAY, "X/B"), (9, T0 + 5 * DAY, "X/B")]
    studies = meds.studies([(s, T0, "train") for s in sorted({row[0] for row in rows})])
    labels = label(meds.write(folder / "ehr", [rows]), studies, **config).labels
    return {s: c for s, c in labels.select("subject_id", "censor_days").rows() if s < 8}


def test_last_event_is_the_last_timed_event_and_a_date_lasts_until_its_end(tmp_path, meds, label):
    """Exact, bare date (noon of day 0 to the midnight that ends day 10), static events no end at all."""
    rows = [
        (1, T0 + 10 * DAY, "X/A"),
        (2, datetime(2150, 6, 11), "X/A"),
        (3, None, "GENDER//F"),
        (4, T0 + 7 * DAY, "X/Z"),
    ]
    assert censored(label, meds, tmp_path, rows) == {1: 10.0, 2: 10.5, 4: 7.0}


def test_death_ends_every_rule_and_nothing_after_it_is_a_label(tmp_path, meds, label):
    rows = [(1, T0 + 4 * DAY, "MEDS_DEATH"), (1, T0 + 6 * DAY, "X/A"), (2, datetime(2150, 6, 5), "MEDS_DEATH")]
    for number, rule in enumerate(({}, {"followup": "death"}, {"followup": "cutoff", "cutoff_date": "2150-07-01"})):
        assert censored(label, meds, tmp_path / str(number), rows, **rule) == {1: 4.0, 2: 4.5}


def test_the_earliest_of_several_death_rows_counts(tmp_path, meds, label):
    rows = [(1, T0 + 4 * DAY, "MEDS_DEATH"), (1, datetime(2150, 6, 5), "MEDS_DEATH"), (1, T0 + 9 * DAY, "MEDS_DEATH")]
    assert censored(label, meds, tmp_path, rows) == {1: 4.0}


def test_cutoff_is_the_end_of_that_day_and_events_beyond_it_are_none(tmp_path, meds, label):
    rows = [(1, T0 + 10 * DAY, "X/A"), (2, T0 + 2 * DAY, "X/A")]
    assert censored(label, meds, tmp_path, rows, followup="cutoff", cutoff_date="2150-06-06") == {1: 5.5, 2: 5.5}


def test_rule_death_follows_survivors_to_the_latest_event_of_the_data_set(tmp_path, meds, label):
    """That event may belong to a subject without a study."""
    rows = [(1, T0 + 2 * DAY, "X/A"), (2, T0 + 30 * DAY, "X/A")]
    studies = meds.studies([(s, T0, "train") for s in (1, 8, 9)])
    rows += [(8, T0 + 3 * DAY, "X/A"), (9, T0 + 5 * DAY, "X/B")]
    labels = label(meds.write(tmp_path / "ehr", [rows]), studies, followup="death").labels
    assert set(labels["censor_days"]) == {30.0}


def test_follow_up_must_outlast_the_blackout(tmp_path, meds, label):
    """Ending exactly with the blackout is none; a microsecond more is some."""
    rows = [(1, T0 + DAY, "X/A"), (2, T0 + DAY + timedelta(microseconds=1), "X/A")]
    kept = censored(label, meds, tmp_path, rows)
    assert list(kept) == [2]
    assert kept[2] > 1


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"followup": "cutoff"}, "ehr.cutoff_date"),
        ({"cutoff_date": "2150-01-01"}, "ehr.cutoff_date"),
        ({"followup": "cutoff", "cutoff_date": "01/02/2150"}, "ehr.cutoff_date"),
        ({"timezone": "Mars/Olympus"}, "ehr.timezone"),
        ({"followup": "deth"}, "did you mean 'death'"),
    ],
)
def test_configuration_that_makes_no_sense_is_refused_by_key(values, key):
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
        EhrConfig(**values)


def test_cutoff_in_microseconds():
    assert fixed_end_us(EhrConfig(followup="cutoff", cutoff_date="1970-01-02"), None) == 2 * 86_400 * 10**6


def test_bins_are_percentiles_from_zero_to_infinity():
    assert bin_edges(EventTimes([np.arange(1.0, 10.0)]), 8) == (0.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, np.inf)


def test_tied_edges_are_merged_and_no_event_or_one_bin_is_one_bin():
    assert bin_edges(EventTimes([np.full(100, 7.0)]), 8) == (0.0, 7.0, np.inf)
    assert bin_edges(EventTimes([np.array([])]), 8) == bin_edges(EventTimes([np.arange(9.0)]), 1) == (0.0, np.inf)
