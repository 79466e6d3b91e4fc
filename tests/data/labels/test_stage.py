"""The label stage as jobs.prepare runs it: what it says of a configuration that the data do not follow."""

from datetime import datetime, timedelta

import polars as pl
import pytest

from data.labels.stage import make_labels
from ehr.config import EhrConfig
from ehr.schema import EVENTS

T0, DAY = datetime(2150, 6, 1, 12), timedelta(days=1)
PHENOTYPES = """
phenotypes:
  rare: {codes: [Q/GONE], horizons_days: [30]}
  also: {codes: ["Q/N*"]}
  pe: {kind: diagnosis, codes: [Q/PE]}
"""


@pytest.fixture
def prepare(tmp_path):
    """Function: (**EhrConfig fields) -> LabelStage of four studies: s2 has no follow-up, s3 no record."""
    rows = [(1, T0 + 9 * DAY, "Q/A"), (4, T0 + 9 * DAY, "Q/B"), (2, T0, "Q/PE")]
    (tmp_path / "ehr" / "data").mkdir(parents=True)
    pl.DataFrame(rows, schema=EVENTS, orient="row").write_parquet(tmp_path / "ehr" / "data" / "0.parquet")
    (tmp_path / "phenotypes.yaml").write_text(PHENOTYPES)
    studies = pl.DataFrame(
        [(f"s{n}", n, T0, False, "train") for n in (1, 2, 3, 4)],
        schema={"study_id": pl.String, "subject_id": pl.Int64, "study_time": pl.Datetime("us"), "date_only": pl.Boolean}
        | {"split": pl.String},
        orient="row",
    )
    folder = tmp_path / "prepared"
    folder.mkdir()

    def run(studies=studies, folder=folder, **config):
        config = EhrConfig(phenotypes=str(tmp_path / "phenotypes.yaml"), min_events=1, min_patients=1, **config)
        fitted_on = {"hash": "", "count": 0}
        return make_labels(folder, tmp_path / "ehr", None, studies, config, fitted_on, lambda f, xs: [f(x) for x in xs])

    run.studies = studies
    return run


def test_the_order_of_the_study_table_changes_no_byte(prepare, tmp_path):
    written = []
    for name, studies in {"ascending": prepare.studies, "descending": prepare.studies.reverse()}.items():
        (tmp_path / name).mkdir()
        stage = prepare(studies, tmp_path / name)
        written.append({file: (tmp_path / name / file).read_bytes() for file in stage.files[1:]})
    assert written[0] == written[1]
    assert pl.read_parquet(tmp_path / "descending" / "labels.parquet")["study_id"].to_list() == ["s1", "s4"]


def test_phenotypes_and_exclusions_that_the_data_do_not_know_warn_on_every_run(prepare, caplog):
    for reused in (False, True):
        caplog.clear()
        assert prepare(exclude=["Q/A", "Q/TYPO"]).reused == reused
        assert "no code of also, rare is in the data; they get no labels" in caplog.text
        assert "ehr.exclude: Q/TYPO match no code in the data" in caplog.text
    caplog.clear()
    prepare(exclude=["Q/A"])
    assert "ehr.exclude" not in caplog.text


def test_a_label_table_answers_for_a_phenotype_without_codes(prepare, tmp_path, caplog):
    """It keeps a diagnosis of the study without follow-up, and of the one without a record."""
    table = "study_id,phenotype,kind,label,horizon_days\ns1,rare,prognosis,true,30\n"
    table += "".join(f"s{n},pe,diagnosis,{n != 2},\n" for n in (1, 2, 3))
    (tmp_path / "given.csv").write_text(table)
    stage = prepare(label_tables=[str(tmp_path / "given.csv")])
    assert "no code of also is in the data" in caplog.text
    assert stage.counts["phenotypes_without_rows"] == ["also"]
    found = pl.read_parquet(tmp_path / "prepared" / "phenotypes.parquet").select("study_id", "phenotype", "label")
    assert sorted(found.rows()) == [("s1", "pe", True), ("s1", "rare", True), ("s2", "pe", False), ("s3", "pe", True)]
    meds = pl.read_parquet(tmp_path / "prepared" / "labels_meds" / "pe" / "diagnosis.parquet")
    assert meds["subject_id"].to_list() == [1, 2, 3]


def test_a_diagnosis_of_a_study_without_follow_up_is_written(prepare, tmp_path):
    stage = prepare()
    assert stage.labels["study_id"].to_list() == ["s1", "s4"]
    found = pl.read_parquet(tmp_path / "prepared" / "phenotypes.parquet").select("study_id", "phenotype", "label")
    assert found.rows() == [("s1", "pe", False), ("s2", "pe", True), ("s4", "pe", False)]
