"""The whole label stage against plain loops, and what must not change its answer."""

import pickle
import random
from datetime import datetime, timedelta

import polars as pl
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from ehr.build import build_labels
from ehr.config import EhrConfig
from ehr.schema import COVARIATES, LABELS, PHENOTYPES
from ttepretrain.errors import BadDataError, ConfigError

DAY = timedelta(days=1)
T0 = datetime(2150, 6, 1, 12)


@pytest.fixture
def three_subjects(tmp_path, meds):
    """Ann: A on day 10, B on day 20, until day 40. Bob: A before the scan, dies on day 5. Cid: nothing until day 30."""
    rows = [
        (1, T0 + 10 * DAY, "X/A"), (1, T0 + 20 * DAY, "X/B"), (1, T0 + 40 * DAY, "X/end"),
        (2, T0 - 3 * DAY, "X/A"), (2, T0 + 5 * DAY, "MEDS_DEATH"), (2, T0 + 6 * DAY, "X/B"),
        (3, T0 + 30 * DAY, "X/end"),
    ]  # fmt: skip
    return meds.write(tmp_path / "ehr", [rows]), meds.studies([(s, T0, "train") for s in (1, 2, 3)])


def test_three_subjects_and_two_tasks_counted_by_hand(three_subjects, label):
    """Days at risk start after one day: A is at risk 9 + 4 + 29 days, with one event."""
    result = label(*three_subjects, exclude=["X/end"], num_bins=2)
    death, a, b = (result.tasks.codes.index(code) for code in ("MEDS_DEATH", "X/A", "X/B"))
    rows = result.labels.to_dicts()
    assert [row["censor_days"] for row in rows] == [40.0, 5.0, 30.0]
    assert [dict(zip(row["task_index"], row["event_days"])) for row in rows] == [{a: 10.0, b: 20.0}, {death: 5.0}, {}]
    assert [row["history_index"] for row in rows] == [[], [a], []]
    assert [row["past_codes"] for row in result.covariates.to_dicts()] == [[], ["X/A"], []]
    tasks = {task.code: task for task in result.tasks.tasks}
    assert set(tasks) == {"MEDS_DEATH", "X/A", "X/B"}
    assert tasks["X/A"].rate_per_day == pytest.approx(1 / (9 + 4 + 29))
    assert tasks["X/B"].rate_per_day == pytest.approx(1 / (19 + 4 + 29))
    assert tasks["MEDS_DEATH"].rate_per_day == pytest.approx(1 / (39 + 4 + 29))
    assert result.tasks.bin_edges_days == (0.0, 10.0, float("inf"))  # the median of 5, 10, 20
    assert result.tasks.death_task == death == 0


def test_incident_leaves_rows_with_history_out_of_rates_and_bins(three_subjects, label):
    """Bob had A before: 4 of A's days at risk go. The stored labels themselves stay."""
    both = {mode: label(*three_subjects, exclude=["X/end"], recurrence=mode) for mode in ("all", "incident")}
    rates = {mode: {t.code: t.rate_per_day for t in r.tasks.tasks} for mode, r in both.items()}
    assert rates["incident"]["X/A"] == pytest.approx(1 / (9 + 29))
    assert rates["incident"]["X/B"] == rates["all"]["X/B"]
    assert both["incident"].labels.equals(both["all"].labels)


@pytest.mark.parametrize("recurrence", ["all", "incident"])
@pytest.mark.parametrize("seed", range(6))
def test_labels_equal_plain_loops_on_every_study_and_task(tmp_path, meds, label, same_as_oracle, seed, recurrence):
    rows, studies, parents = meds.random(seed)
    folder = meds.write(tmp_path / "ehr", [rows[::2], rows[1::2]], parents)
    follow = [{"followup": "last_event"}, {"followup": "death"}, {"followup": "cutoff", "cutoff_date": "2150-12-01"}]
    rules = [
        {"date_only": "midnight"},
        {"date_only": "never", "blackout_days": 0.0, "death_before_horizon": "censored"},
    ]
    for extra in (follow[seed % 3] | rule for rule in rules):
        config = {"recurrence": recurrence, "min_events": 2, "min_patients": 2, "num_tasks": 9, **extra}
        result = label(folder, studies, **config)
        assert len(result.labels) > 3
        same_as_oracle(result, folder, studies, meds.phenotypes, **config)


@pytest.mark.parametrize("seed", range(12))
def test_events_at_the_very_time_of_a_death_keep_their_own_times(tmp_path, meds, label, same_as_oracle, seed):
    """In files sorted by subject and time they share a moment with it; a death dated without an hour ends its day."""
    rows, studies, parents = meds.random(seed)
    codes = sorted({code for _, _, code in rows if code.startswith(("V/", "ATC/"))})
    pick = random.Random(seed)
    for subject, time, code in list(rows):
        if code == "MEDS_DEATH":
            rows += [(subject, time, other) for other in pick.sample(codes, 3)]
    pick.shuffle(rows)
    rows.sort(key=lambda row: (row[0], row[1] or datetime.min))
    folder = meds.write(tmp_path / "ehr", [rows], parents)
    config = {"min_events": 2, "min_patients": 2, "num_tasks": 9}
    same_as_oracle(label(folder, studies, **config), folder, studies, meds.phenotypes, **config)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), shards=st.integers(1, 5), offset=st.integers(-20000, 20000))
def test_order_copies_shards_and_shifted_dates_change_nothing(tmp_path_factory, meds, label, seed, shards, offset):
    rows, studies, parents = meds.random(seed, num_subjects=6)
    try:
        base = label(meds.write(tmp_path_factory.mktemp("a") / "e", [rows], parents), studies)
    except BadDataError:  # six subjects may leave no train event
        assume(False)
    mixed = random.Random(seed).sample(rows * 2, len(rows) * 2)
    folder = meds.write(tmp_path_factory.mktemp("b") / "e", [mixed[i::shards] for i in range(shards)], parents)
    assert meds.same(label(folder, studies), base)

    moved = [(s, t + offset * DAY if s == 1 and t else t, c) for s, t, c in rows]
    shift = pl.when(pl.col("subject_id") == 1).then(pl.col("study_time") + offset * DAY).otherwise("study_time")
    folder = meds.write(tmp_path_factory.mktemp("c") / "e", [moved], parents)
    again = label(folder, studies.with_columns(study_time=shift))

    assert again.labels.drop("index_time").equals(base.labels.drop("index_time"))
    assert again.covariates.equals(base.covariates)
    assert again.phenotypes.equals(base.phenotypes)


def test_how_subjects_are_grouped_into_shards_changes_nothing(tmp_path, meds, label, monkeypatch):
    """One subject per shard, although every subject lies in three files."""
    rows, studies, parents = meds.random(3)
    folder = meds.write(tmp_path / "ehr", [rows[0::3], rows[1::3], rows[2::3]], parents)
    together = label(folder, studies)
    monkeypatch.setattr("ehr.passes.survey.ROWS_PER_SHARD", 1)
    apart = label(folder, studies)
    assert together.counts["shards"] == 1
    assert apart.counts["shards"] > 5
    assert meds.same(together, apart)


def test_forty_scans_of_a_subject_equal_plain_loops(tmp_path, meds, label, same_as_oracle):
    """What the studies know outgrows the room that their events make likely."""
    rows, studies, parents = meds.random(4)
    scans = [
        (s, t + k * DAY, split)
        for s, t, split in studies["subject_id", "study_time", "split"].iter_rows()
        for k in range(40)
    ]
    folder, scans = meds.write(tmp_path / "ehr", [rows], parents), meds.studies(scans)
    config = {"min_events": 2, "min_patients": 2, "num_tasks": 9}
    same_as_oracle(label(folder, scans, **config), folder, scans, meds.phenotypes, **config)


def test_the_work_handed_out_survives_pickling(tmp_path, meds, label):
    rows, studies, parents = meds.random(1)
    folder = meds.write(tmp_path / "ehr", [rows], parents)
    here = label(folder, studies)

    def through_pickle(function, items):
        return [pickle.loads(pickle.dumps(function))(pickle.loads(pickle.dumps(item))) for item in items]

    config = EhrConfig(min_events=1, min_patients=1, phenotypes=str(tmp_path / "phenotypes.yaml"))
    there = build_labels(folder, None, studies, config, through_pickle, {"hash": "", "count": 0})
    assert meds.same(here, there)


def test_tables_have_the_columns_and_types_of_their_schemas(tmp_path, meds, label):
    rows, studies, parents = meds.random(2)
    result = label(meds.write(tmp_path / "ehr", [rows], parents), studies)
    assert result.labels.schema == LABELS
    assert list(result.covariates.schema.items()) == list(COVARIATES.items())  # List(Enum) is that of any categories
    assert result.phenotypes.schema == PHENOTYPES
    assert result.labels.null_count().sum_horizontal().item() == 0
    assert result.covariates["study_id"].equals(result.labels["study_id"])


def test_fitting_uses_train_subjects_alone(tmp_path, meds, label):
    """Whatever happens to the others after training: tasks, scores, bins and rates stay."""
    rows, studies, parents = meds.random(5)
    train = set(studies.filter(pl.col("split") == "train")["subject_id"])
    other = [(s, t + 3 * DAY if t and s not in train else t, c if s in train else "V/b1") for s, t, c in rows]
    results = [label(meds.write(tmp_path / n, [r], parents), studies) for n, r in (("a", rows), ("b", other))]
    assert results[0].tasks.codes == results[1].tasks.codes
    assert results[0].tasks.bin_edges_days == results[1].tasks.bin_edges_days
    for one, two in zip(results[0].tasks.tasks[1:], results[1].tasks.tasks[1:]):
        assert one == two


def test_exclusions_of_the_cohort_are_counted_and_are_no_error(tmp_path, meds, label):
    """Unknown subject; scan after the last record; scan after death; follow-up that ends with the blackout."""
    rows = [(1, T0 + 9 * DAY, "X/A"), (2, T0 - DAY, "X/A"), (3, T0 - DAY, "MEDS_DEATH"), (4, T0 + DAY, "X/A")]
    studies = meds.studies([(s, T0, "train") for s in (1, 2, 3, 4, 5)])
    result = label(meds.write(tmp_path / "ehr", [rows]), studies)
    assert result.labels["study_id"].to_list() == ["s00"]
    flow = result.counts["studies"]
    assert (flow["given"], flow["NO_SUBJECT"], flow["NO_FOLLOW_UP"], flow["labelled"]) == (5, 1, 3, 1)
    assert flow["labelled_train"] == 1


def test_patients_without_a_scan_and_scans_without_a_time_are_counted(tmp_path, meds, label):
    """Subject 9 lies in two files and counts once; rows that hold only placeholder dates make nobody a patient."""
    rows = [(1, T0 + 9 * DAY, "X/A"), (2, T0 + 5 * DAY, "X/B"), (9, T0, "X/A"), (8, datetime(1900, 1, 1), "X/A")]
    folder = meds.write(tmp_path / "ehr", [rows, [(9, T0 + DAY, "X/B")]])
    day = T0.replace(hour=0)
    flow = label(folder, meds.studies([(1, T0, "train"), (2, day, "train", True)])).counts["studies"]
    assert (flow["subjects_without_study"], flow["date_only"], flow["labelled"]) == (1, 1, 2)


def test_excluded_codes_may_end_in_a_star_and_those_the_data_lack_are_listed(three_subjects, label):
    """The star stands for any ending, as in the phenotype file."""
    everything = label(*three_subjects)
    assert set(everything.tasks.codes) == {"MEDS_DEATH", "X/A", "X/B", "X/end"}
    assert everything.counts["exclude_unmatched"] == []
    result = label(*three_subjects, exclude=["X/e*", "X/A", "X/TYPO", "Y/*"])
    assert set(result.tasks.codes) == {"MEDS_DEATH", "X/B"}
    assert result.counts["exclude_unmatched"] == ["X/TYPO", "Y/*"]


def test_an_excluded_code_that_is_no_text_is_refused():
    with pytest.raises(ConfigError, match=r"ehr\.exclude"):
        EhrConfig(exclude=["X/A", ""])


@pytest.mark.parametrize("subject", [7, 2])
def test_a_cohort_without_a_single_label_is_bad_data(tmp_path, meds, label, subject):
    folder = meds.write(tmp_path / "ehr", [[(2, T0 - DAY, "X/A")]])
    with pytest.raises(BadDataError, match="study"):
        label(folder, meds.studies([(subject, T0, "train")]))


def test_observation_periods_are_refused_for_meds(three_subjects, label):
    with pytest.raises(ConfigError, match=r"ehr\.followup=observation_period"):
        label(*three_subjects, followup="observation_period")


def test_no_train_death_means_no_death_task(three_subjects, label):
    folder, studies = three_subjects
    result = label(folder, studies.with_columns(split=pl.Series(["train", "tuning", "train"])), exclude=["X/end"])
    assert result.tasks.death_task is None
    assert "MEDS_DEATH" not in result.tasks.codes


def test_sex_and_age(tmp_path, meds, label):
    """Two different sexes on file are no sex; age is exact at the scan."""
    birth = T0 - timedelta(days=50 * 365.25)
    rows = [(1, birth, "MEDS_BIRTH"), (1, None, "GENDER//F"), (2, None, "SEX//MALE")]
    rows += [(3, None, "GENDER//M"), (3, None, "GENDER//F")]

    rows += [(s, T0 + 9 * DAY, "X/A" if s > 1 else "X/B") for s in (1, 2, 3)]
    table = label(meds.write(tmp_path / "ehr", [rows]), meds.studies([(s, T0, "train") for s in (1, 2, 3)])).covariates
    assert table["sex"].to_list() == ["F", "M", None]
    assert table["age_years"].to_list() == [50.0, None, None]


def test_the_scans_own_visit(tmp_path, meds, label):
    """The hospital stay that holds the scan, both ends included; without one the calendar day."""
    stay = [(T0 - 2 * DAY, "HOSPITAL_ADMISSION//ER"), (T0 + 3 * DAY, "HOSPITAL_DISCHARGE//HOME")]
    rows = [(subject, time, code) for subject in (1, 2) for time, code in stay]
    rows += [(1, T0 + 3 * DAY, "X/A"), (2, T0 + 3 * DAY + timedelta(seconds=1), "X/A")]
    rows += [(3, T0.replace(hour=23, minute=59), "X/A"), (4, T0.replace(hour=0, minute=0) + DAY, "X/A")]
    rows += [(s, T0 + 50 * DAY, "X/end") for s in (1, 2, 3, 4, 5)] + [(s, T0 + 9 * DAY, "X/A") for s in (1, 2, 3)]
    studies = meds.studies([(s, T0, "train") for s in (1, 2, 3, 4, 5)])
    result = label(meds.write(tmp_path / "ehr", [rows]), studies, exclude=["X/end"])
    a = result.tasks.codes.index("X/A")
    assert [a in row for row in result.labels["visit_index"]] == [True, False, True, False, False]
