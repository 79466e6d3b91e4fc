"""What no true record can hold: dates after the extract's end, deaths without a date, two births."""

import dataclasses
import random
from datetime import datetime, timedelta

import polars as pl
import pytest

from ehr.config import EhrConfig
from ehr.followup import extract_end_us, quiet_days
from ehr.odd_records import warn_of_odd_records
from ehr.schema import PERIODS, PERIODS_FILE
from ttepretrain.errors import BadDataError

T0 = datetime(2150, 6, 1, 12)
DAY = timedelta(days=1)
MICRO = timedelta(microseconds=1)
DAY_US = 86_400_000_000
EPOCH = datetime(1970, 1, 1)
IN, OUT = "HOSPITAL_ADMISSION//ER", "HOSPITAL_DISCHARGE//HOME"
FAR = datetime(2190, 3, 4, 5)  # forty years after everybody's records
# forty subjects, whose last records lie on days 3 to 42
CROWD = [(100 + n, T0 + (n + 3) * DAY, f"Q/{n % 2}") for n in range(40)]
MORTALITY = {"mortality": {"codes": ["MEDS_DEATH"], "horizons_days": [5, 30]}}


@pytest.fixture
def labelled(tmp_path, meds, label):
    """Function: (rows of subjects below 100, phenotypes, config) -> LabelResult; the crowd has records and scans."""

    def run(rows: list[tuple], phenotypes: dict | None = None, **config):
        rows = [*rows, *CROWD]
        studies = meds.studies([(s, T0, "train") for s in sorted({row[0] for row in rows})])
        folder = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        return label(meds.write(folder / "ehr", [rows]), studies, phenotypes, **config)

    return run


def censored(result) -> dict:
    return dict(result.labels.select("subject_id", "censor_days").rows())


def end_days(last_days: list[float], scans: dict[int, float] | None = None) -> float:
    """Of subjects 0, 1, ... with these last times, and of their scans; days since 1970."""
    last = pl.DataFrame({"subject_id": range(len(last_days)), "last": [round(d * DAY_US) for d in last_days]})
    studies = pl.DataFrame(
        [(s, round(d * DAY_US)) for s, d in (scans or {}).items()],
        schema={"subject_id": pl.Int64, "index": pl.Int64},
        orient="row",
    )
    return extract_end_us(last.sample(fraction=1, shuffle=True, seed=0), studies) / DAY_US


CLOSE = [20000 + n for n in range(39)]


@pytest.mark.parametrize(
    ("last", "scans", "end"),
    [
        (CLOSE, {}, 20039),  # the end of the last day
        ([*CLOSE, 20038.5], {}, 20039),
        ([*CLOSE, 20038 + 3650.0], {}, 23689),  # ten years later is no gap
        ([*CLOSE, 20038 + 3651], {}, 20039),
        ([*CLOSE, 24000, 40000], {}, 20039),  # the lowest gap counts: two of 41 subjects
        ([*CLOSE, 24000, 29000, 40000], {}, 24001),  # three days for 42 subjects are too many, two are not
        ([*CLOSE, *[40000.25] * 30], {}, 20039),  # one stand-in for every open end
        ([*CLOSE, *[40000] * 40], {}, 40001),  # more than half of the subjects: the others are old
        ([*CLOSE, 40000], {39: 39000}, 40001),  # they were scanned there: a calendar of their own
        ([*CLOSE, 40000], {39: 20010, 0: 50000}, 20039),  # a scan of another subject, on a day that cannot be
        ([*CLOSE[:18], 40000], {}, 40001),  # one of 19 is more than a twentieth
        ([-9000, 40000], {}, 40001),
        ([-3.5], {}, -3),
    ],
)
def test_the_extract_ends_before_a_gap_of_ten_years_above_which_few_lie(last, scans, end):
    assert end_days(last, scans) == end


@pytest.mark.parametrize("seed", range(5))
def test_dates_shifted_for_each_patient_are_not_cut(seed):
    """As in MIMIC-IV: 100 patients between 2110 and 2200, scanned somewhere in their records; also 20 of them."""
    rng = random.Random(seed)
    for patients in (100, 20):
        last = [rng.uniform(51135, 84006) for _ in range(patients)]
        scans = {s: day - rng.uniform(1, 900) for s, day in enumerate(last)}
        assert end_days(last, scans) == int(max(last)) + 1


@pytest.mark.parametrize(
    ("config", "of_the_crowd", "of_the_odd"),
    [
        ({"followup": "death"}, 42.5, 42.5),  # 14,521 days before
        ({"followup": "last_event"}, 5.0, 9.0),  # their last record but one
        ({"followup": "cutoff", "cutoff_date": "2150-06-21"}, 20.5, 20.5),
    ],
)
def test_one_event_forty_years_later_ends_nobodys_follow_up(labelled, config, of_the_crowd, of_the_odd):
    """It is no label either, whatever its code."""
    result = labelled([(1, T0 + 9 * DAY, "Q/0"), (1, FAR, "Q/1")], **config)
    found = censored(result)
    assert (found[102], found[1]) == (of_the_crowd, of_the_odd)
    assert result.labels["event_days"].explode().max() <= 42
    assert (result.counts["events"]["after_extract"], result.counts["subjects"]["after_extract"]) == (1, 1)
    capped = {"death": 41, "last_event": 1, "cutoff": 0}[config["followup"]]
    assert result.counts["studies"]["capped"] == capped


def test_a_subject_without_a_scan_may_hold_the_odd_event(tmp_path, meds, label):
    rows = [*CROWD, (1, FAR, "Q/1")]
    studies = meds.studies([(row[0], T0, "train") for row in CROWD])
    result = label(meds.write(tmp_path / "ehr", [rows]), studies, followup="death")
    assert set(censored(result).values()) == {42.5}
    assert (result.counts["events"]["after_extract"], result.counts["subjects"]["after_extract"]) == (0, 1)


def test_a_cutoff_date_stands_and_warns_where_no_record_reaches_it(labelled, caplog):
    result = labelled([(1, T0 + 9 * DAY, "Q/0")], followup="cutoff", cutoff_date="2151-06-01")
    assert set(censored(result).values()) == {365.5}
    assert result.counts["cutoff_days_after_extract"] == 323
    warn_of_odd_records(result.counts)
    assert "ehr.cutoff_date lies 323 days after the last day with records" in caplog.text


@pytest.mark.parametrize("leave", [FAR, FAR.replace(hour=0)])
def test_a_discharge_after_the_extracts_end_is_none(labelled, leave):
    """Else the stay holds every later event: no readmission, and all tasks of the follow-up lie in the scan's visit."""
    rows = [(1, T0 - 2 * DAY, IN), (1, leave, OUT), (1, T0 + 20 * DAY, "Q/0"), (1, T0 + 30 * DAY, "Q/back")]
    phenotypes = {"again": {"codes": ["Q/back"], "after_stay": True, "horizons_days": [10, 31]}}
    result = labelled(rows, phenotypes)
    mine = result.phenotypes.filter(study_id="s00")
    assert dict(mine.select("horizon_days", "label").rows()) == {10.0: False, 31.0: None, None: True} | {31.0: True}
    assert result.labels["visit_index"][0].to_list() == []


@pytest.mark.parametrize(
    ("config", "censor"),
    [
        ({}, 9.0),
        ({"followup": "death"}, 9.0),
        ({"followup": "cutoff", "cutoff_date": "2150-06-21"}, 9.0),
        ({"followup": "cutoff", "cutoff_date": "2150-06-06"}, 5.5),
    ],
)
@pytest.mark.parametrize("when", [None, FAR])
def test_a_death_without_a_date_makes_mortality_unknown(labelled, config, censor, when):
    """It is not False, and follow-up ends with the last record: nobody knows that they lived on."""
    phenotypes = MORTALITY | {
        "either": {"codes": ["MEDS_DEATH", "Q/0"], "horizons_days": [5, 8]},
        "other": {"codes": ["Q/0"], "horizons_days": [5, 30]},
        "now": {"codes": ["MEDS_DEATH"], "kind": "diagnosis"},
    }
    rows = [
        (1, when, "MEDS_DEATH"),
        (1, T0 + 4 * DAY, "Q/0"),
        (1, T0 + 9 * DAY, "Q/1"),
        (2, T0 + 8 * DAY, "MEDS_DEATH"),
    ]
    result = labelled(rows, phenotypes, exclude_phenotypes=False, **config)
    assert censored(result)[1] == censor
    death = result.tasks.codes.index("MEDS_DEATH") if "MEDS_DEATH" in result.tasks.codes else None
    assert death not in result.labels["task_index"][0]
    mine = {}
    for name, horizon, answer in (
        result.phenotypes.filter(study_id="s00").select("phenotype", "horizon_days", "label").rows()
    ):
        mine.setdefault(name, {})[horizon] = answer
    assert mine["mortality"] == {5.0: None, 30.0: None, None: None}
    assert mine["either"] == {5.0: True, 8.0: True, None: True}
    assert mine["other"] == {5.0: True, 30.0: True, None: True}
    assert mine["now"] == {None: None}
    timed = result.phenotypes.filter(study_id="s00", phenotype="mortality").row(-1, named=True)
    assert (timed["event"], timed["competing"], timed["time_days"]) == (False, False, censor)
    assert result.counts["subjects"]["undated_deaths"] == result.counts["studies"]["undated_death"] == 1


def test_an_undated_death_ends_an_observation_period_and_is_no_competing_one(labelled):
    """Who had no event has no answer beyond the last record; before it they lived."""
    rows = [(1, None, "MEDS_DEATH"), (1, T0 + 9 * DAY, "Q/1")]
    result = labelled(rows, {"p": {"codes": ["Q/0"], "horizons_days": [5, 30]}}, followup="death")
    mine = result.phenotypes.filter(study_id="s00")
    assert mine.select("horizon_days", "label", "competing").rows() == [
        (5.0, False, False), (30.0, None, False), (None, None, False),
    ]  # fmt: skip


def test_of_a_dated_and_an_undated_death_the_dated_one_counts(labelled):
    rows = [(1, None, "MEDS_DEATH"), (1, T0 + 4 * DAY, "MEDS_DEATH"), (1, T0 + 9 * DAY, "Q/1")]
    result = labelled(rows, MORTALITY)
    assert result.phenotypes.filter(study_id="s00")["label"].to_list() == [True, True, True]
    assert result.counts["subjects"]["undated_deaths"] == 0


def test_who_died_without_a_date_and_has_no_other_record_has_no_follow_up(labelled):
    result = labelled([(1, None, "MEDS_DEATH"), (2, T0 + 5 * DAY, "MEDS_DEATH")], MORTALITY, followup="death")
    assert 1 not in censored(result)
    assert result.counts["studies"]["NO_FOLLOW_UP"] == 1


@pytest.mark.parametrize(
    ("births", "age", "counted"),
    [
        ([60.0], 60.0, (0, 0)),
        ([120.0], 120.0, (0, 0)),
        ([120.1], None, (0, 1)),
        ([240.0], None, (0, 1)),  # shifted, as for the oldest of MIMIC-III
        ([-0.05], None, (0, 1)),  # born after the scan
        ([60.0, 59.0], 60.0, (0, 0)),  # a year of birth beside a date
        ([60.0, 30.0], None, (1, 0)),
        ([60.0, 60.0, None], 60.0, (0, 0)),
        ([None], None, (0, 0)),
    ],
)
def test_an_age_that_cannot_be_or_two_births_are_no_age(labelled, births, age, counted):
    rows = [(1, None if years is None else T0 - years * 365.25 * DAY, "MEDS_BIRTH") for years in births]
    result = labelled([*rows, (1, T0 + 9 * DAY, "Q/1")])
    found = result.covariates["age_years"][0]
    assert found == (None if age is None else pytest.approx(age, abs=1e-9))
    assert (result.counts["subjects"]["several_births"], result.counts["studies"]["impossible_age"]) == counted


def test_deaths_that_contradict_the_record_are_counted_and_told(labelled, caplog):
    """Subjects: 1 two deaths 40 days apart, 2 died before birth, 3 has records a year after death, 4 is in order."""
    rows = [(1, T0 + 2 * DAY, "MEDS_DEATH"), (1, T0 + 42 * DAY, "MEDS_DEATH")]
    rows += [(2, T0 + 3 * DAY, "MEDS_DEATH"), (2, T0 + 4 * DAY, "MEDS_BIRTH")]
    rows += [(3, T0 - 500 * DAY, "MEDS_DEATH"), (3, T0 - 9 * DAY, "Q/1"), (3, T0 + 9 * DAY, "Q/1")]
    rows += [(4, T0 + 2 * DAY, "MEDS_DEATH"), (4, T0 + 30 * DAY, "MEDS_DEATH"), (4, T0 - 9999 * DAY, "MEDS_BIRTH")]
    result = labelled(rows)
    assert result.counts["subjects"] == {
        "deaths": 4, "undated_deaths": 0, "several_deaths": 1, "several_births": 0, "death_before_birth": 1,
        "long_after_death": 1, "after_extract": 0,
    }  # fmt: skip
    assert censored(result)[1] == 2.0
    warn_of_odd_records(result.counts)
    assert "1 of 4 subjects who died have records more than a year after it" in caplog.text
    assert "1 subjects died before they were born" in caplog.text
    assert "1 subjects have deaths more than 30 days apart" in caplog.text


def test_records_in_order_give_no_warning(labelled, caplog):
    rows = [(1, T0 + 9 * DAY, "MEDS_DEATH"), (1, T0 - 9999 * DAY, "MEDS_BIRTH")]
    for config in ({}, {"followup": "death"}, {"followup": "cutoff", "cutoff_date": "2150-07-31"}):
        warn_of_odd_records(labelled(rows, **config).counts)
    assert [record.message for record in caplog.records if "metadata/codes" not in record.message] == []


@pytest.mark.parametrize("seed", range(6))
def test_odd_records_equal_plain_loops(tmp_path, meds, label, same_as_oracle, seed):
    """Strays decades later, deaths without a date, several births, discharges that never come."""
    rng = random.Random(seed)
    rows, studies, parents = meds.random(seed, num_subjects=30)
    subjects = sorted({row[0] for row in rows})
    stray = rng.choice(subjects)
    rows += [(stray, FAR + rng.randrange(9) * DAY / 9, rng.choice(["V/b", "MEDS_DEATH", OUT])) for _ in range(3)]
    rows += [(s, None, "MEDS_DEATH") for s in rng.sample(subjects, 6)]
    rows += [(s, T0 - rng.choice([1, 200, 60000]) * DAY, "MEDS_BIRTH") for s in rng.sample(subjects, 9)]
    rng.shuffle(rows)
    folder = meds.write(tmp_path / "ehr", [rows[::2], rows[1::2]], parents)
    phenotypes = meds.phenotypes | {"end": {"codes": ["MEDS_DEATH", "V/b1"], "horizons_days": [30]}}
    phenotypes["now"] = {"codes": ["MEDS_DEATH"], "kind": "diagnosis", "window_days": [0, 30]}
    for extra in (
        {"followup": "death"},
        {"followup": "last_event", "recurrence": "incident"},
        {"followup": "cutoff", "cutoff_date": ("2150-12-01", "2195-01-01")[seed % 2]},
    ):
        config = {"min_events": 2, "min_patients": 2, "num_tasks": 9, **extra}
        result = label(folder, studies, phenotypes, **config)
        assert result.counts["subjects"]["after_extract"] == (extra.get("cutoff_date") != "2195-01-01")
        same_as_oracle(result, folder, studies, phenotypes, **config)


@pytest.mark.parametrize("seed", range(4))
def test_observation_periods_of_odd_records_equal_plain_loops(tmp_path, meds, label, seed):
    """Periods that end far in the future or after the last record of all, and subjects who died without a date."""
    rng = random.Random(seed)
    rows, studies, parents = meds.random(seed, num_subjects=20)
    subjects = sorted({row[0] for row in rows})
    rows += [(s, None, "MEDS_DEATH") for s in rng.sample(subjects, 6)]
    latest = max(time for _, time, _ in rows if time is not None)
    ends = [T0 + rng.choice([1, 90]) * DAY, latest + 60 * DAY, FAR]
    periods = [(s, T0 - 900 * DAY, rng.choice(ends)) for s in subjects]
    folder = meds.write(tmp_path / "ehr", [rows], parents)
    pl.DataFrame(periods, schema=PERIODS, orient="row").write_parquet(folder / PERIODS_FILE)
    config = {"min_events": 2, "min_patients": 2, "num_tasks": 9, "followup": "observation_period"}
    result = label(folder, studies, **config)
    settings = dataclasses.asdict(EhrConfig(**config))
    times = {s: [((start - EPOCH) // MICRO, (end - EPOCH) // MICRO)] for s, start, end in periods}
    slow = meds.oracle.slow_labels(folder, studies.to_dicts(), meds.phenotypes, settings, periods=times)
    found = dict(result.labels.select("study_id", "censor_days").rows())
    assert found == {study: row["censor"] for study, row in slow["rows"].items()}
    keys, answers = ["study_id", "phenotype", "horizon_days"], ["event", "competing", "label"]
    table = {tuple(row[k] for k in keys): [row[a] for a in answers] for row in result.phenotypes.to_dicts()}
    assert table == {key: [row[a] for a in answers] for key, row in slow["phenotypes"].items()}
    assert result.counts["studies"]["capped"] > 0


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no study's subject is in the EHR"),
        ([(1, None, "GENDER//F"), (2, None, "MEDS_DEATH")], "no event of the EHR has a time"),
        ([(1, None, "GENDER//F"), (9, T0 + DAY, "Q/1")], "no study has follow-up"),
    ],
    ids=["no rows", "static alone", "static of the scanned"],
)
@pytest.mark.parametrize("followup", ["last_event", "death"])
def test_next_to_nothing_is_bad_data_and_no_crash(tmp_path, meds, label, rows, message, followup):
    folder = meds.write(tmp_path / "ehr", [rows])
    with pytest.raises(BadDataError, match=message):
        label(folder, meds.studies([(1, T0, "train")]), MORTALITY, followup=followup)


@pytest.mark.parametrize("followup", ["last_event", "death"])
def test_one_subject_with_one_event_is_enough(tmp_path, meds, label, followup):
    folder = meds.write(tmp_path / "ehr", [[(1, T0 + 9 * DAY, "MEDS_DEATH")]])
    result = label(folder, meds.studies([(1, T0, "train")]), MORTALITY, followup=followup)
    assert (result.tasks.codes, censored(result)) == (("MEDS_DEATH",), {1: 9.0})


def test_no_study_at_all_is_bad_data(tmp_path, meds, label):
    folder = meds.write(tmp_path / "ehr", [CROWD])
    with pytest.raises(BadDataError, match="no study to label"):
        label(folder, meds.studies([]))


@pytest.mark.parametrize(("late_years", "warns"), [(0.5, False), (3, True)])
def test_a_late_record_that_moves_everybodys_end_is_told_of(labelled, caplog, late_years, warns):
    """Three years are too few to be a mistake for certain; under followup=death all are followed until then."""
    rows = [(1, T0 + 2 * DAY, "Q/0"), (1, T0 + late_years * 365 * DAY, "Q/1")]
    warn_of_odd_records(labelled(rows, followup="death").counts)
    assert ("between two subjects' last records lie 1053 days" in caplog.text) == warns
    caplog.clear()
    warn_of_odd_records(labelled(rows).counts)
    assert "last records lie" not in caplog.text


def test_the_quiet_time_is_that_of_the_later_half_within_the_extract():
    days = [0, 4000, 5000, 5100, 5150, 20000]
    last = pl.DataFrame({"subject_id": range(6), "last": [day * DAY_US for day in days]})
    assert [quiet_days(last, day * DAY_US) for day in (20000, 5150, 0)] == [14850, 100, 0]
