"""Follow-up by observation periods: the end of the one that holds t0; outside all of them there is none."""

import dataclasses
import random
from datetime import datetime, timedelta

import polars as pl
import pytest

from ehr.config import EhrConfig
from ehr.followup import outside, with_period_end
from ehr.schema import PERIODS, PERIODS_FILE
from ttepretrain.errors import ConfigError

T0 = datetime(2150, 6, 1, 12)
DAY = timedelta(days=1)
MIDNIGHT = T0 - DAY / 2
RULE = {"followup": "observation_period"}


def slow_micro(time: datetime) -> int:
    return (time - datetime(1970, 1, 1)) // timedelta(microseconds=1)


def observed(folder, periods: list[tuple]):
    pl.DataFrame(periods, schema=PERIODS, orient="row").write_parquet(folder / PERIODS_FILE)
    return folder


def test_follow_up_ends_with_the_period_and_death_ends_it_earlier(tmp_path, meds, label):
    """A bare last day is stored as the midnight after it: day 10 ends at 10.5 days from noon."""
    rows = [(s, T0 + k * DAY, "X/A") for s in (1, 2, 3) for k in (3, 20)] + [(2, T0 + 4 * DAY, "MEDS_DEATH")]
    rows.append((9, T0 + 40 * DAY, "X/A"))  # the extract goes on
    periods = [(s, T0 - 99 * DAY, MIDNIGHT + 11 * DAY) for s in (1, 2)] + [(3, T0 - 99 * DAY, T0 + 30 * DAY)]
    studies = meds.studies([(s, T0, "train") for s in (1, 2, 3)])
    folder = observed(meds.write(tmp_path / "ehr", [rows]), periods)
    labels = label(folder, studies, exclude_phenotypes=False, **RULE).labels
    assert dict(labels.select("subject_id", "censor_days").rows()) == {1: 10.5, 2: 4.0, 3: 30.0}


@pytest.mark.parametrize("rule", ["stated", "last_event"])
def test_time_at_risk_without_a_record_is_left_out_if_asked(tmp_path, meds, label, rule):
    """Periods that end 60 days after the last event by convention: 80 days of follow-up, or the 20 with records."""
    rows = [(s, T0 + k * DAY, f"X/{s}") for s in (1, 2) for k in (3, 20)] + [(2, T0 + 90 * DAY, "X/A")]
    rows += [(3, T0 - DAY, "X/A")]  # nothing after the scan
    periods = [(s, T0 - 99 * DAY, T0 + 80 * DAY) for s in (1, 2, 3)] + [(2, T0 + 85 * DAY, T0 + 99 * DAY)]
    studies = meds.studies([(s, T0, "train") for s in (1, 2, 3)])
    folder = observed(meds.write(tmp_path / "ehr", [rows]), periods)
    result = label(folder, studies, exclude_phenotypes=False, period_end=rule, **RULE)
    found = dict(result.labels.select("subject_id", "censor_days").rows())
    assert found == ({1: 80.0, 2: 80.0, 3: 80.0} if rule == "stated" else {1: 20.0, 2: 20.0})
    settings = dataclasses.asdict(EhrConfig(period_end=rule, min_events=1, min_patients=1, **RULE))
    slow = {s: [(slow_micro(start), slow_micro(end)) for of, start, end in periods if of == s] for s in (1, 2, 3)}
    expected = meds.oracle.slow_labels(folder, studies.to_dicts(), {}, settings, periods=slow)["rows"]
    assert found == {int(study[1:]) + 1: row["censor"] for study, row in expected.items()}


def test_a_scan_outside_every_period_is_counted_apart_whatever_follows(tmp_path, meds, label):
    """Before, between, exactly at the end, without any period; a later death does not make follow-up."""
    inside, between = (T0 - DAY, T0 + 50 * DAY), (T0 - 9 * DAY, T0 - 8 * DAY)
    late, ends = (T0 + DAY, T0 + 9 * DAY), (T0 - 9 * DAY, T0)
    periods = [(1, *inside), (2, *inside), (3, *between), (3, *late), (4, *ends), (5, T0, T0 + 2 * DAY)]
    periods += [(7, T0 - DAY, T0 + DAY), (99, *inside)]
    rows = [(s, T0 + k * DAY, f"X/{k}") for s in range(1, 8) for k in (2, 5 + s % 2)] + [
        (4, T0 + 8 * DAY, "MEDS_DEATH")
    ]
    studies = meds.studies([(s, T0, "train") for s in range(1, 9)])
    phenotypes = {"sign": {"kind": "diagnosis", "codes": ["X/2"], "window_days": [0, 2]}}
    result = label(observed(meds.write(tmp_path / "ehr", [rows]), periods), studies, phenotypes, **RULE)
    assert result.labels["subject_id"].to_list() == [1, 2, 5]
    # 7 was observed at the scan, and a diagnosis asks for no more
    assert result.phenotypes.select("study_id", "label").rows() == [(f"s0{n}", True) for n in (0, 1, 4, 6)]
    flow = result.counts["studies"]
    # 3, 4 and 6 lie outside; 7's period ends with the blackout; 8 has no record
    assert (flow["OUTSIDE_OBSERVATION"], flow["NO_FOLLOW_UP"], flow["NO_SUBJECT"], flow["labelled"]) == (3, 1, 1, 3)
    assert flow["given"] == 8


def test_the_end_equals_a_loop_over_the_periods():
    """Disjoint periods of several subjects, studies in any order and at the edges."""
    rng = random.Random(0)
    cuts = {s: sorted(rng.sample(range(60), 8)) for s in range(20)}
    periods = [(s, cut[k], cut[k + 1]) for s, cut in cuts.items() for k in (0, 2, 4)]
    studies = [(n, rng.randrange(22), rng.randrange(60)) for n in range(400)]
    schema = {"study": pl.UInt32, "subject_id": pl.Int64, "index": pl.Int64}
    frame = pl.DataFrame(periods, schema=dict.fromkeys(PERIODS, pl.Int64), orient="row").cast(dict(PERIODS))
    found = with_period_end(pl.DataFrame(studies, schema=schema, orient="row"), frame)
    assert found["study"].to_list() == list(range(400))
    ends = {n: [end for s, start, end in periods if s == subject and start <= t < end] for n, subject, t in studies}
    assert found["period_end"].to_list() == [ends[n][0] if ends[n] else t for n, _, t in studies]
    assert found.filter(outside())["study"].to_list() == [n for n, _, _ in studies if not ends[n]]
    assert with_period_end(found.drop("period_end"), None)["period_end"].null_count() == 400


def test_a_data_set_without_periods_is_refused(tmp_path, meds, label):
    folder = meds.write(tmp_path / "ehr", [[(1, T0 + 9 * DAY, "X/A")]])
    with pytest.raises(ConfigError, match=r"ehr\.followup=observation_period: the EHR has no observation periods"):
        label(folder, meds.studies([(1, T0, "train")]), **RULE)
