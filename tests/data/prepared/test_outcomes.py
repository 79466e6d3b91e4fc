"""Outcomes of studies: alignment by key, horizons, censored rows, demographics."""

import numpy as np
import polars as pl
import pytest

from data.prepared.outcomes import read_outcome_table
from ttepretrain.errors import ConfigError

PHENOTYPES = {
    "study_id": pl.String, "phenotype": pl.String, "kind": pl.String, "horizon_days": pl.Float64, "label": pl.Boolean,
    "event": pl.Boolean, "competing": pl.Boolean, "time_days": pl.Float64,
}  # fmt: skip


@pytest.fixture
def prepared(tmp_path):
    keys = [
        ("A", 1, "train", "ka", "s1"),
        ("B", 2, "train", "kb", "s2"),
        ("C", 3, "held_out", "kc", "s3"),
        ("D", 4, "train", "kd", "s4"),
    ]
    names = ["study_id", "subject_id", "split", "study_key", "subject_key"]
    pl.DataFrame(keys, schema=names, orient="row").write_parquet(tmp_path / "keys.parquet")
    rows = [
        ("A", "edema", "prognosis", None, True, True, False, 40.0),
        ("B", "edema", "prognosis", None, None, False, True, 90.0),  # C has history: no row
        ("A", "edema", "prognosis", 30.0, False, True, False, 40.0),
        ("B", "edema", "prognosis", 30.0, None, False, False, 90.0),
        ("A", "edema", "prognosis", 365.0, True, True, False, 40.0),
        ("C", "embolism", "diagnosis", None, True, True, False, None),
        ("B", "embolism", "diagnosis", None, False, False, False, None),
        ("D", "embolism", "diagnosis", None, True, True, False, None),  # no labels: nobody asks for D
    ]
    pl.DataFrame(rows, schema=PHENOTYPES, orient="row").write_parquet(tmp_path / "phenotypes.parquet")
    covariates = {"study_id": ["A", "B", "C"], "age_years": [50.0, 70.0, None], "sex": ["F", None, "M"]}
    pl.DataFrame(covariates).write_parquet(tmp_path / "covariates.parquet")
    pl.DataFrame({"study_id": ["C", "A"], "phenotype": "edema", "visible_risk": [3.0, 1.0]}).write_parquet(
        tmp_path / "oracle.parquet"
    )
    return tmp_path


def test_rows_follow_the_keys_and_absent_or_censored_studies_do_not_count(prepared):
    table = read_outcome_table(prepared, ["kc", "ka", "kb"], [30.0], prepared / "oracle.parquet")
    assert [(o.phenotype, o.horizon_days, o.metric) for o in table.outcomes] == [
        ("edema", None, "harrell_c"), ("edema", 30.0, "auroc"), ("embolism", None, "auroc")
    ]  # fmt: skip
    survival, binary, diagnosis = table.outcomes
    assert survival.known_N.tolist() == [False, True, True]
    assert survival.event_N.tolist() == [False, True, False]  # the event, not the censoring
    assert survival.time_N[1:].tolist() == [40.0, 90.0]
    assert binary.known_N.tolist() == [False, True, False]
    assert binary.event_N.tolist() == [False, False, False]
    assert diagnosis.known_N.tolist() == [True, False, True]
    assert diagnosis.event_N.tolist() == [True, False, False]
    assert table.subject_key_N.tolist() == ["s3", "s1", "s2"]
    assert table.split_N.tolist() == ["held_out", "train", "train"]
    np.testing.assert_array_equal(table.oracle["edema"], [3.0, 1.0, np.nan])


def test_unknown_age_is_the_train_median_and_unknown_sex_neither(prepared):
    table = read_outcome_table(prepared, ["ka", "kb", "kc"], [30.0], None)
    assert table.demographics_NF.tolist() == [[50, 1, 0], [70, 0, 0], [60, 0, 1]]
    assert table.oracle is None


def test_a_horizon_that_was_not_prepared_is_refused(prepared):
    with pytest.raises(ConfigError, match=r"eval.horizons_days: no phenotype has \[90.0\]"):
        read_outcome_table(prepared, ["ka"], [90.0], None)
