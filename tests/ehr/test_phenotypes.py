"""Outcomes of the probes, by hand."""

from datetime import datetime, timedelta

import polars as pl
import pytest

from ehr.choice.choice import excluded_codes
from ehr.codes.codes import index_codes
from ehr.codes.ontology import from_metadata
from ehr.config import EhrConfig
from ehr.phenotype_file import read_phenotypes, under
from ehr.phenotypes import match_codes
from ehr.schema import METADATA
from ttepretrain.errors import ConfigError

T0 = datetime(2150, 6, 1, 12)
DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
IN, OUT = "HOSPITAL_ADMISSION//ER", "HOSPITAL_DISCHARGE//HOME"
READMISSION = {"readmission": {"codes": ["HOSPITAL_ADMISSION*"], "after_stay": True, "horizons_days": [30]}}


@pytest.fixture
def outcome(tmp_path, meds, label):
    """Function: (rows of subject 1, phenotypes, config) -> {horizon: row} of the first phenotype."""

    def run(rows: list[tuple], phenotypes: dict, **config) -> dict:
        date_only = config.pop("scan_date_only", False)
        rows = [(1, T0 + when, code) for when, code in rows]
        rows += [(8, T0 + 3 * DAY, "Q/A"), (8, T0 + 5 * DAY, "Q/B"), (9, T0 + 5 * DAY, "Q/B"), (9, T0 + 5 * DAY, "Q/C")]
        t0 = T0.replace(hour=0) if date_only else T0
        studies = meds.studies([(1, t0, "train", date_only), (8, T0, "train"), (9, T0, "train")])
        result = label(meds.write(tmp_path / "ehr", [rows]), studies, phenotypes, **config)
        mine = result.phenotypes.filter(study_id="s00", phenotype=next(iter(phenotypes)))
        return {row["horizon_days"]: row for row in mine.to_dicts()}

    return run


def test_an_event_is_true_from_its_horizon_on_and_the_time_is_the_same_in_every_row(outcome):
    """T = 30 exactly: inside the horizon of 30 days."""
    rows = outcome([(30 * DAY, "Q/C"), (400 * DAY, "Q/end")], {"p": {"codes": ["Q/C"], "horizons_days": [29, 30, 365]}})
    assert {h: row["label"] for h, row in rows.items()} == {29.0: False, 30.0: True, 365.0: True, None: True}
    assert {(row["event"], row["competing"], row["time_days"]) for row in rows.values()} == {(True, False, 30.0)}


def test_censoring_before_the_horizon_is_null_and_at_the_horizon_is_false(outcome):
    rows = outcome([(30 * DAY, "Q/end")], {"p": {"codes": ["Q/C"], "horizons_days": [30, 31]}})
    assert {h: row["label"] for h, row in rows.items()} == {30.0: False, 31.0: None, None: None}
    assert {row["event"] for row in rows.values()} == {False}


@pytest.mark.parametrize(("rule", "expected"), [("negative", False), ("censored", None)])
def test_death_before_the_horizon_is_what_the_configuration_says(outcome, rule, expected):
    phenotype = {"p": {"codes": ["Q/C"], "horizons_days": [10, 365]}}
    rows = outcome([(20 * DAY, "MEDS_DEATH")], phenotype, death_before_horizon=rule)
    assert (rows[10.0]["label"], rows[365.0]["label"]) == (False, expected)
    assert rows[None]["label"] is None
    assert rows[None]["competing"]


def test_death_is_no_competitor_of_itself(outcome):
    rows = outcome([(20 * DAY, "MEDS_DEATH")], {"mortality": {"codes": ["MEDS_DEATH"], "horizons_days": [30]}})
    assert (rows[30.0]["label"], rows[30.0]["competing"], rows[30.0]["time_days"]) == (True, False, 20.0)


@pytest.mark.parametrize(
    ("records", "event_days"),
    [
        ([(-2 * DAY, IN), (5 * DAY, OUT), (20 * DAY, IN)], 20.0),  # ordinary
        ([(-2 * DAY, IN), (3 * DAY, IN), (5 * DAY, OUT), (6 * DAY, IN), (9 * DAY, OUT)], 3.0),  # own stay has no end
        ([(-2 * DAY, IN), (5 * DAY, OUT), (5 * DAY, IN)], None),  # at the very moment of the discharge
        ([(20 * DAY, IN)], 20.0),  # an outpatient's scan
        ([(2 * HOUR, IN), (4 * DAY, OUT)], None),  # admitted from the scan, inside the blackout
        ([(-9 * DAY, IN), (-3 * DAY, OUT), (4 * DAY, IN)], 4.0),  # the stay before is over
        ([(-2.5 * DAY, IN), (1.5 * DAY, OUT), (1.5 * DAY, IN), (5.5 * DAY, OUT)], None),  # dates of one day: a transfer
        ([(-2.5 * DAY, IN), (1.5 * DAY, OUT), (2.5 * DAY, IN)], 2.5),  # the next day
        ([(-2.5 * DAY, IN), (1.5 * DAY, OUT), (2 * DAY, IN)], None),  # a date lasts until its day's end
        ([(-2 * DAY, IN), (3 * DAY, OUT), (60 * DAY, IN)], 60.0),
    ],
)
def test_readmission_starts_after_the_scans_own_stay(outcome, records, event_days):
    rows = outcome([*records, (90 * DAY, "Q/end")], READMISSION)
    assert rows[None]["event"] is (event_days is not None)
    assert rows[None]["time_days"] == (event_days or 90.0)
    assert rows[30.0]["label"] is (event_days is not None and event_days <= 30)


@pytest.mark.parametrize(
    ("when", "scan_date_only", "inside"),
    [
        (-DAY, False, True), (DAY, False, True), (-DAY - timedelta(microseconds=1), False, False),
        (DAY + timedelta(microseconds=1), False, False),
        (-12 * HOUR, False, True),  # date of the scan's day
        (-36 * HOUR, False, False), (12 * HOUR, False, False),  # dates that only overlap the window
        (-12 * HOUR, True, True), (11 * HOUR, True, True),  # date-only scan: its own day, whatever the hour
        (-13 * HOUR, True, False), (-36 * HOUR, True, False), (13 * HOUR, True, False),
    ],
)  # fmt: skip
def test_a_diagnosis_is_a_closed_window_around_the_scan(outcome, when, scan_date_only, inside):
    phenotype = {"pe": {"codes": ["Q/C"], "kind": "diagnosis"}}
    rows = outcome([(when, "Q/C"), (30 * DAY, "Q/end")], phenotype, scan_date_only=scan_date_only)
    assert list(rows) == [None]
    assert (rows[None]["kind"], rows[None]["label"], rows[None]["event"]) == ("diagnosis", inside, inside)
    assert rows[None]["time_days"] is None


def test_a_later_start_moves_the_risk_set_and_an_earlier_one_never_beats_the_blackout(outcome, tmp_path):
    late = {"p": {"codes": ["Q/C"], "start_days": 10, "horizons_days": [40]}}
    rows = outcome([(10 * DAY, "Q/C"), (50 * DAY, "Q/end")], late)
    assert not rows[40.0]["label"]
    early = {"p": {"codes": ["Q/C"], "start_days": 0, "horizons_days": [40]}}
    (tmp_path / "ehr").rename(tmp_path / "first")
    assert not outcome([(DAY, "Q/C"), (50 * DAY, "Q/end")], early)[40.0]["label"]


def test_incident_leaves_out_studies_with_history_but_never_readmission(outcome, tmp_path):
    records = [(-9 * DAY, IN), (-3 * DAY, OUT), (-2 * DAY, "Q/C"), (40 * DAY, "Q/C"), (50 * DAY, IN)]
    assert outcome(records, {"p": {"codes": ["Q/C"]}}, recurrence="incident") == {}
    (tmp_path / "ehr").rename(tmp_path / "first")
    assert outcome(records, READMISSION, recurrence="incident")[None]["event"]


def test_a_phenotype_keeps_or_excludes_prevalent_cases_whatever_the_tasks_do(outcome, tmp_path):
    """Q/C two days before the scan and 40 after it."""
    records = [(-2 * DAY, "Q/C"), (40 * DAY, "Q/C"), (50 * DAY, "Q/end")]
    for number, (prevalent, recurrence, stays) in enumerate(
        [
            ("exclude", "all", False), ("keep", "all", True), (None, "all", True),
            ("exclude", "incident", False), ("keep", "incident", True), (None, "incident", False),
        ]
    ):  # fmt: skip
        phenotype = {"p": {"codes": ["Q/C"], "prevalent": prevalent, "horizons_days": [45]}}
        rows = outcome(records, phenotype, recurrence=recurrence)
        assert {h: row["label"] for h, row in rows.items()} == ({45.0: True, None: True} if stays else {}), number
        (tmp_path / "ehr").rename(tmp_path / f"run {number}")


def test_death_before_the_horizon_may_differ_between_phenotypes(tmp_path, meds, label):
    """Both die at day 20 without the event; the file's rule wins over the run's."""
    rows = [(1, T0 + 20 * DAY, "MEDS_DEATH"), (2, T0 + 3 * DAY, "Q/A")]
    rows += [(s, T0 + 9 * DAY, "Q/B") for s in (2, 3)] + [(3, T0 + 9 * DAY, "Q/C")]
    rule = {"codes": ["Q/C"], "horizons_days": [30]}
    phenotypes = {"p": rule, "q": rule | {"death_before_horizon": "censored"}}
    studies = meds.studies([(s, T0, "train") for s in (1, 2, 3)])
    table = label(meds.write(tmp_path / "ehr", [rows]), studies, phenotypes).phenotypes
    found = table.filter(study_id="s00", horizon_days=30.0).select("phenotype", "label").rows()
    assert found == [("p", False), ("q", None)]


def test_a_start_inside_the_blackout_warns_and_one_left_out_does_not(outcome, tmp_path, caplog):
    records = [(12 * HOUR, "Q/C"), (50 * DAY, "Q/end")]
    rows = outcome(records, {"p": {"codes": ["Q/C"], "start_days": 0.0007, "horizons_days": [40]}})
    assert "p: start_days lies inside ehr.blackout_days = 1.0" in caplog.text
    assert not rows[40.0]["event"]
    (tmp_path / "ehr").rename(tmp_path / "first")
    caplog.clear()
    outcome(records, {"p": {"codes": ["Q/C"]}, "q": {"codes": ["Q/C"], "kind": "diagnosis", "start_days": 0}})
    assert "start_days" not in caplog.text


@pytest.mark.parametrize(("fields", "config"), [({"start_days": 30}, {}), ({}, {"blackout_days": 30.0})])
def test_a_horizon_that_ends_before_events_count_is_refused(outcome, fields, config):
    with pytest.raises(ConfigError, match=r"p\.horizons_days \[30\] end before events count, 30 days after the scan"):
        outcome([(50 * DAY, "Q/C")], {"p": {"codes": ["Q/C"], "horizons_days": [30, 31], **fields}}, **config)


def test_unknown_codes_are_counted_and_a_phenotype_of_them_alone_has_no_rows(tmp_path, meds, label):
    rows = [(1, T0 + 3 * DAY, "Q/A"), (2, T0 + 5 * DAY, "Q/B")]
    phenotypes = {"p": {"codes": ["GONE/1", "NEVER/*", "Q/A"]}, "q": {"codes": ["GONE/2"], "horizons_days": [2]}}
    studies = meds.studies([(1, T0, "train"), (2, T0, "train")])
    result = label(meds.write(tmp_path / "ehr", [rows]), studies, phenotypes, exclude_phenotypes=False)
    assert result.counts["phenotypes_unmatched"] == {"p": ["GONE/1", "NEVER/*"], "q": ["GONE/2"]}
    assert result.counts["phenotypes_without_rows"] == ["q"]
    assert result.phenotypes["phenotype"].unique().to_list() == ["p"]


def test_no_phenotype_in_the_data_at_all_is_no_error(tmp_path, meds, label):
    rows = [(1, T0 + 3 * DAY, "Q/A"), (2, T0 + 5 * DAY, "Q/B")]
    studies = meds.studies([(1, T0, "train"), (2, T0, "train")])
    result = label(meds.write(tmp_path / "ehr", [rows]), studies, {"q": {"codes": ["GONE/2"]}})
    assert (len(result.labels), len(result.phenotypes)) == (2, 0)


def test_a_diagnosis_does_not_ask_for_follow_up(tmp_path, meds, label):
    """The embolism an hour after the scan kills the first within the blackout; the last record of the second is it."""
    rows = [(1, T0 + HOUR, "Q/PE"), (1, T0 + 11 * HOUR, "MEDS_DEATH"), (2, T0 - HOUR, "Q/PE"), (3, T0 - DAY, "Q/A")]
    rows += [(4, T0 + 9 * DAY, "Q/A"), (5, T0 + 9 * DAY, "Q/B")]
    phenotypes = {"pe": {"kind": "diagnosis", "codes": ["Q/PE"]}, "death": {"codes": ["MEDS_DEATH"]}}
    studies = meds.studies([(s, T0, "train") for s in (1, 2, 3, 4, 5, 6)])
    result = label(meds.write(tmp_path / "ehr", [rows]), studies, phenotypes)
    assert result.labels["study_id"].to_list() == result.covariates["study_id"].to_list() == ["s03", "s04"]
    found = result.phenotypes.filter(phenotype="pe").select("study_id", "label", "event", "competing", "time_days")
    assert found.rows() == [
        (f"s0{n}", answer, answer, False, None) for n, answer in enumerate([True, True, False, False, False])
    ]
    assert result.phenotypes.filter(phenotype="death")["study_id"].to_list() == ["s03", "s04"]


@pytest.mark.parametrize("name", ["default", "inspect", "icd", "icd_mimic"])
def test_the_shipped_files_hold_the_phenotypes_of_the_paper(repository, name):
    """Eight binary tasks, one of them the diagnosis, and eight times to event."""
    path = repository / "configs" / "phenotypes" / f"{name}.yaml"
    phenotypes = under(EhrConfig(), read_phenotypes(path))
    # INSPECT's 12-month label of pulmonary hypertension is by ICD, its time to event by SNOMED
    timed = [n for n, p in phenotypes.items() if p.kind == "prognosis" and n != "pulmonary_hypertension_icd"]
    assert [n for n, p in phenotypes.items() if p.kind == "diagnosis"] == ["pulmonary_embolism"]
    binary = {n: p.horizons_days for n, p in phenotypes.items() if p.horizons_days}
    hypertension = binary.pop("pulmonary_hypertension_icd" if name == "inspect" else "pulmonary_hypertension")
    assert (binary, hypertension) == ({"mortality": [30, 180, 365], "readmission": [30, 180, 365]}, [365])
    assert timed == [
        "mortality", "readmission", "pulmonary_hypertension", "atelectasis", "cardiomegaly", "consolidation", "edema",
        "pleural_effusion",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "written", "meant"),
    [
        ("icd", "ICD9CM/416.0", "pulmonary_hypertension"), ("icd", "ICD10CM/I27.20", "pulmonary_hypertension"),
        ("icd", "ICD10CM/J98.11", "atelectasis"), ("icd", "ICD9CM/415.19", "pulmonary_embolism"),
        ("icd", "ICD9CM/511.9", "pleural_effusion"), ("icd", "ICD9CM/511.0", None), ("icd", "ICD10CM/J93.9", None),
        ("icd_mimic", "DIAGNOSIS//ICD//10//I2720", "pulmonary_hypertension"),
        ("icd_mimic", "DIAGNOSIS//ICD//9//41519", "pulmonary_embolism"),
        ("icd_mimic", "DIAGNOSIS//ICD//9//5110", None), ("icd_mimic", "DIAGNOSIS//ICD//9//51189", "pleural_effusion"),
        ("inspect", "ICD9CM/416.8", "pulmonary_hypertension_icd"),
        ("default", "SNOMED/70995007", "pulmonary_hypertension"),
    ],
)  # fmt: skip
def test_the_shipped_patterns_mean_the_codes_as_they_are_written(repository, name, written, meant):
    seen = pl.DataFrame({"code": [written, "Q/A"], "train": [True, True]})
    index = index_codes(seen, from_metadata(pl.DataFrame(schema=METADATA)), [])
    phenotypes = read_phenotypes(repository / "configs" / "phenotypes" / f"{name}.yaml")
    found = [n for n, p in phenotypes.items() if index.number(written) in match_codes(p.codes, index)[0]]
    assert found == ([meant] if meant else [])


@pytest.mark.parametrize(
    ("name", "written", "excluded"),
    [
        ("icd_mimic", "TRANSFER_TO//discharge//UNKNOWN", True), ("icd_mimic", "TRANSFER_TO//admit//Neurology", True),
        ("icd_mimic", "TRANSFER_TO//transfer//Neurology", False), ("icd_mimic", "DRG//HCFA//280//AMI", True),
        ("icd_mimic", "TRANSFER_TO//ED//Emergency Department", False), ("icd_mimic", "HOSPITAL_DISCHARGE//DIED", True),
        *((name, f"Visit/{kind}", True) for name in ("default", "inspect", "icd") for kind in ("IP", "ERIP")),
        *((name, "Visit/OP", False) for name in ("default", "inspect", "icd")),
        ("default", "CMS Place of Service/21", True),
    ],
)  # fmt: skip
def test_what_is_written_once_per_stay_is_no_task(repository, name, written, excluded):
    """It would be readmission under another name."""
    seen = pl.DataFrame({"code": [written, "Q/A"], "train": [True, True]})
    index = index_codes(seen, from_metadata(pl.DataFrame(schema=METADATA)), [])
    phenotypes = under(EhrConfig(), read_phenotypes(repository / "configs" / "phenotypes" / f"{name}.yaml"))
    codes_of = {n: match_codes(p.codes, index)[0] for n, p in phenotypes.items()}
    assert (index.number(written) in excluded_codes(index, phenotypes, codes_of, EhrConfig())) == excluded


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("phenotypes: {a: {codes: [X], horizon_days: [3]}}", "did you mean horizons_days"),
        ("phenotypes: {a: {kind: prognosis}}", r"phenotypes\.a needs `codes"),
        ("phenotypes: {a: {codes: X}}", "must be a list"),
        ("phenotypes: {a: {codes: [1]}}", r"phenotypes\.a\.codes"),
        ("phenotypes: {a: {codes: [X], horizons_days: [-3]}}", "must be positive"),
        ("phenotypes: {a: {codes: [X], horizons_days: [soon]}}", "numbers of days"),
        ("phenotypes: {a: {codes: [X], start_days: true}}", "numbers of days"),
        ("phenotypes: {a: {codes: [X], horizons_days: [30, 30.0]}}", "must differ"),
        ("phenotypes: {a: {codes: [X], prevalent: drop}}", "must be one of keep, exclude"),
        ("phenotypes: {a: {codes: [X], death_before_horizon: negativ}}", "did you mean 'negative'"),
        ("phenotypes: {a: {codes: [X], after_stay: true, prevalent: exclude}}", "cannot be combined with after_stay"),
        ("phenotypes: {../a: {codes: [X]}}", "names a folder"),
        ("phenotypes: {a: {codes: [X], kind: diagnostic}}", "did you mean 'diagnosis'"),
        ("phenotypes: {a: {codes: [X], window_days: [1, -1]}}", r"must be \[from, to\] in days around the scan"),
        ("phenotype: {a: {codes: [X]}}", "one key `phenotypes`"),
        ("phenotypes: []", "mapping of names"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path, text, message):
    path = tmp_path / "p.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_phenotypes(path)
