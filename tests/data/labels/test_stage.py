"""The label stage as jobs.prepare runs it: what it says of a configuration that the data do not follow."""

from datetime import datetime, timedelta

import polars as pl
import pytest

from data.labels.stage import make_labels
from ehr.config import EhrConfig
from ehr.schema import EVENTS, METADATA
from ttepretrain.errors import BadDataError

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

    def run(studies=studies, folder=folder, ontology=None, **config):
        config = EhrConfig(phenotypes=str(tmp_path / "phenotypes.yaml"), min_events=1, min_patients=1, **config)
        fitted_on = {"hash": "", "count": 0}
        ehr = tmp_path / "ehr"
        return make_labels(folder, ehr, ontology, studies, config, fitted_on, lambda f, xs: [f(x) for x in xs])

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


def test_deaths_without_a_date_warn_on_every_run(prepare, tmp_path, caplog):
    path = tmp_path / "ehr" / "data" / "0.parquet"
    table = pl.read_parquet(path)
    death = pl.DataFrame([(1, None, "MEDS_DEATH")], schema=table.schema, orient="row")
    pl.concat([table, death]).write_parquet(path)
    for reused in (False, True):
        caplog.clear()
        stage = prepare()
        assert stage.reused == reused
        assert stage.counts["subjects"]["undated_deaths"] == 1
        assert "1 subjects died and no usable date says when: their mortality is unknown" in caplog.text


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


def strangers(studies, count):
    """`count` more studies, of subjects that no record knows."""
    more = [studies.head(1).with_columns(study_id=pl.lit(f"x{n}"), subject_id=pl.lit(900 + n)) for n in range(count)]
    return pl.concat([studies, *(frame.cast(studies.schema) for frame in more)])


def test_studies_without_a_subject_warn_and_stop_beyond_the_limit_on_every_run(prepare, caplog):
    """300 of 312 passed without a word. The counts come from the stamp where the labels are reused."""
    studies = strangers(prepare.studies, 1)
    for reused in (False, True):
        caplog.clear()
        assert prepare(studies).reused == reused
        assert "2 of 5 studies have no subject in the EHR; check that subject_id means the same" in caplog.text
        assert "1 of 5 studies have no follow-up after their blackout; check study_time" in caplog.text
    many = strangers(prepare.studies, 9)
    for _ in range(2):
        with pytest.raises(
            BadDataError, match=r"10 of 13 studies have no subject in the EHR.*raise ehr\.max_lost_fraction"
        ):
            prepare(many)
    assert prepare(many, max_lost_fraction=0.9).counts["studies"]["NO_SUBJECT"] == 10


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("code", None, "rows of the events have no code"),
        ("time", datetime(1900, 1, 1), "rows of the events lie on a pl"),
    ],
)
def test_events_that_are_left_out_warn_and_stop_beyond_the_limit(prepare, tmp_path, caplog, column, value, message):
    """They were counted only, however many."""
    path = tmp_path / "ehr" / "data" / "0.parquet"
    table = pl.read_parquet(path)
    lost = table.filter(pl.col("code") != "MEDS_BIRTH").head(1).with_columns(pl.lit(value).alias(column))
    for times, stops in ((1, False), (len(table), False), (2 * len(table), True)):
        pl.concat([table, *[lost.cast(table.schema)] * times]).write_parquet(path)
        caplog.clear()
        if stops:
            with pytest.raises(BadDataError, match=f"{message}.*raise ehr.max_lost_fraction"):
                prepare()
        else:
            prepare()
            assert f"{times} of {len(table) + times} {message}" in caplog.text


def test_ids_of_another_kind_say_how_the_two_differ(prepare):
    other = prepare.studies.with_columns(pl.col("subject_id") + 10_000_000)
    with pytest.raises(BadDataError, match="the ids of the studies are 8 digits, those of the EHR 1 digits"):
        prepare(other)


def test_codes_meant_and_written_otherwise_are_named_on_every_run(prepare, tmp_path, caplog):
    (tmp_path / "phenotypes.yaml").write_text("phenotypes:\n  p: {codes: [Q//A, Q/NONE]}\n  q: {codes: [q/pe, Q/B]}\n")
    for reused in (False, True):
        caplog.clear()
        assert prepare(exclude=["Q-B"]).reused == reused
        assert (
            "match nothing, but the data have what they seem to mean: Q-B (Q/B?), Q//A (Q/A?), q/pe (Q/PE?)"
            in caplog.text
        )


def vocabulary(folder, codes):
    folder.mkdir()
    rows = [(n, *code.split("/"), code) for n, code in enumerate(codes, 1)]
    names = ["concept_id", "vocabulary_id", "concept_code", "concept_name"]
    pl.DataFrame(rows, schema=names, orient="row").write_csv(folder / "concept.csv")
    return folder


def test_an_ontology_that_spells_the_codes_otherwise_is_refused_with_a_pair(prepare, tmp_path, caplog):
    """Codes Q//1 of the data, Q/1 of the vocabulary: it would have no effect. Local codes are no error."""
    times = [T0 + 9 * DAY, T0 + 9 * DAY, T0 - DAY]
    rows = {"subject_id": [1, 4, 2], "time": times, "code": ["Q//A1", "Q//B2", "LOCAL/x"]}
    pl.DataFrame(rows, schema=EVENTS).write_parquet(tmp_path / "ehr" / "data" / "0.parquet")
    athena = vocabulary(tmp_path / "athena", ["Q/A1", "Q/B2", "Q/C3"])
    for _ in range(2):
        with pytest.raises(
            BadDataError, match=r"2 of 2 codes that the data share with input\.ontology.*Q//A1 in the data and"
        ):
            prepare(ontology=athena)
    stage = prepare(ontology=athena, max_lost_fraction=1.0)
    assert "2 of 2 codes that the data share with input.ontology" in caplog.text
    assert stage.counts["ontology"]["such_as"] == ["Q//A1", "Q/A1"]


def test_an_ontology_of_other_vocabularies_warns_and_a_matching_one_does_not(prepare, tmp_path, caplog):
    prepare(ontology=vocabulary(tmp_path / "other", ["Z/1"]))
    assert "input.ontology: none of the 3 codes in the data is in its tables" in caplog.text
    caplog.clear()
    stage = prepare(ontology=vocabulary(tmp_path / "same", ["Q/A", "Q/B"]))
    assert "ontology" not in caplog.text
    assert (stage.counts["ontology"]["known"], stage.counts["ontology"]["spelled_otherwise"]) == (2, 0)


def test_the_data_sets_own_table_of_codes_is_compared_too(prepare, tmp_path):
    (tmp_path / "ehr" / "metadata").mkdir()
    rows = [(code, "text", None) for code in ("Q//A", "Q//B", "Q//PE")]
    metadata = pl.DataFrame(rows, schema=METADATA, orient="row")
    metadata.write_parquet(tmp_path / "ehr" / "metadata" / "codes.parquet")
    with pytest.raises(BadDataError, match=r"3 of 3 codes that the data share with metadata/codes\.parquet"):
        prepare()


def test_studies_before_all_records_of_their_subjects_warn(prepare, tmp_path, caplog):
    """Dates shifted in the records alone: every later event would be a label of the scan."""
    for past in (0, 1, 2):  # of two studies; half are not most
        rows = [(1, T0 + 9 * DAY, "Q/A"), (4, T0 + 9 * DAY, "Q/B")]
        rows += [(n, T0 - 9000 * DAY, "MEDS_BIRTH") for n in (1, 4)] + [(n, T0 - DAY, "Q/PE") for n in (1, 4)[:past]]
        pl.DataFrame(rows, schema=EVENTS, orient="row").write_parquet(tmp_path / "ehr" / "data" / "0.parquet")
        caplog.clear()
        stage = prepare(prepare.studies.filter(pl.col("subject_id").is_in([1, 4])))
        assert stage.counts["studies"]["without_past"] == 2 - past
        assert ("have no record before the scan; check study_time" in caplog.text) == (2 - past > 1)
