"""Labels of the synthetic cohort's records against plain loops, and what the cohort promises of them."""

import polars as pl
import pytest
import yaml

from data.cohort.build import write_cohort
from data.config import CohortConfig

SETTINGS = {"num_tasks": 64, "min_events": 5, "min_patients": 3}  # configs/tiny.yaml


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Records of the tiny cohort; its images, which labels do not need, are not rendered."""
    folder = tmp_path_factory.mktemp("cohort") / "cohort"

    def no_images(_, chunks):
        return ([(order.row, f"ct{order.row}.nii.gz", "site", None) for order in chunk] for chunk in chunks)

    write_cohort(folder, CohortConfig(size="tiny", seed=3), no_images)
    return folder


@pytest.fixture(scope="module")
def studies(cohort):
    table = pl.read_parquet(cohort / "studies.parquet")
    return table.select("study_id", "subject_id", "study_time", pl.lit(False).alias("date_only"), "split")


@pytest.fixture(scope="module")
def phenotypes(repository):
    return yaml.safe_load((repository / "configs" / "phenotypes" / "default.yaml").read_text())["phenotypes"]


@pytest.mark.parametrize("recurrence", ["all", "incident"])
def test_every_study_and_task_equals_plain_loops(cohort, studies, phenotypes, label, same_as_oracle, recurrence):
    config = {**SETTINGS, "recurrence": recurrence}
    result = label(cohort / "ehr", studies, phenotypes, **config)
    assert result.tasks.num_tasks > 30
    same_as_oracle(result, cohort / "ehr", studies, phenotypes, **config)


def test_every_phenotype_is_in_the_cohort_and_none_is_a_task(cohort, studies, phenotypes, label):
    result = label(cohort / "ehr", studies, phenotypes, **SETTINGS)
    assert result.counts["phenotypes_unmatched"] == {}
    named = {code for phenotype in phenotypes.values() for code in phenotype["codes"]}
    assert named & set(result.tasks.codes) == {"MEDS_DEATH"}
    assert not [code for code in result.tasks.codes if code.startswith("HOSPITAL_ADMISSION")]
    happened = result.phenotypes.filter(pl.col("event"))["phenotype"].unique()
    assert set(happened) == set(phenotypes)
    assert result.covariates["sex"].null_count() == result.covariates["age_years"].null_count() == 0
