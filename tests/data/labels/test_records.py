"""Stages before the labels: OMOP converted and vocabularies pruned once per input, whatever interrupts them."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from datetime import date, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from data.labels.records import open_records
from data.labels.stage import make_labels
from ehr.config import EhrConfig
from ttepretrain.errors import BadDataError, ConfigError

HASHES = {"ehr": "1", "ontology": "", "code": "2", "studies": "not theirs"}
PHENOTYPES = "phenotypes: {mortality: {codes: [MEDS_DEATH]}, top: {codes: [V/9], horizons_days: [30]}}"
DAY = timedelta(days=1)
FIRST = date(2015, 1, 1)


def write_athena(folder: Path) -> Path:
    """Concepts 1 to 6 (1, 3, 5 below 2, 4, 6), all below 9, as a tab-separated export."""
    folder.mkdir(exist_ok=True)
    head = ["concept_id", "concept_name", "vocabulary_id", "concept_code", "standard_concept", "invalid_reason"]
    rows = [[str(n), f"about {n}", "V", str(n), "S", ""] for n in (*range(1, 7), 9)]
    (folder / "CONCEPT.csv").write_text("".join("\t".join(row) + "\n" for row in [head, *rows]))
    head = ["ancestor_concept_id", "descendant_concept_id", "min_levels_of_separation"]
    rows = [[n + 1, n, 1] for n in (1, 3, 5)] + [[9, n, 1] for n in (2, 4, 6)]
    (folder / "CONCEPT_ANCESTOR.csv").write_text("".join("\t".join(map(str, row)) + "\n" for row in [head, *rows]))
    return folder


@pytest.fixture
def omop(tmp_path):
    """Twelve persons, each with four conditions, thirty days apart; the vocabulary beside them."""
    folder = write_athena(tmp_path / "omop")
    people = [{"person_id": n, "gender_concept_id": 8507, "year_of_birth": 1950} for n in range(1, 13)]
    pl.DataFrame(people).write_parquet(folder / "person.parquet")
    rows = [
        {"person_id": n, "condition_concept_id": 1 + (n + k) % 6, "condition_start_date": FIRST + (30 * k + n) * DAY}
        for n in range(1, 13)
        for k in range(4)
    ]
    pl.DataFrame(rows).write_parquet(folder / "condition_occurrence.parquet")
    return folder


@pytest.fixture
def config(tmp_path):
    (tmp_path / "phenotypes.yaml").write_text(PHENOTYPES)
    return EhrConfig(
        phenotypes=str(tmp_path / "phenotypes.yaml"), min_events=2, min_patients=2, exclude_phenotypes=False
    )


def plain_map(function, items):
    return [function(item) for item in items]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def prepared(tmp_path, name: str) -> Path:
    (tmp_path / name).mkdir()
    return tmp_path / name


def test_a_file_that_resembles_a_table_is_named_at_every_start_and_counted(tmp_path, omop, config, caplog):
    (omop / "drug_exposure_old.csv").write_text("x\n")
    folder = prepared(tmp_path, "prepared")
    for _ in range(2):
        caplog.clear()
        counts = open_records(folder, omop, None, config, HASHES, plain_map).counts["omop"]
        assert counts["unread_files"] == 1
        assert "input.ehr: not read, though named like an OMOP table: drug_exposure_old.csv" in caplog.text


def test_omop_becomes_a_meds_data_set_with_its_ontology_once_per_input(tmp_path, omop, config):
    folder = prepared(tmp_path, "prepared")
    records = open_records(folder, omop, None, config, HASHES, plain_map)
    assert records.ehr == folder / "stages" / "meds"
    assert json.loads((records.ehr / "metadata" / "dataset.json").read_text())["meds_version"] == "0.4.0"
    assert pl.read_parquet(records.ehr / "data" / "0.parquet").schema == {
        "subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String, "numeric_value": pl.Float32,
    }  # fmt: skip
    codes = pl.read_parquet(records.ontology / "metadata" / "codes.parquet")
    assert dict(codes.select("code", "parent_codes").rows())["V/1"] == ["V/2"]
    assert "V/9" in codes["code"]
    assert records.counts["omop"]["tables"]["condition_occurrence"]["events"] == 48
    assert set(records.files) == set(contents(folder))
    times = {name: (folder / name).stat().st_mtime_ns for name in records.files}
    again = open_records(folder, omop, None, config, HASHES, plain_map)
    assert again == records
    assert {name: (folder / name).stat().st_mtime_ns for name in records.files} == times
    open_records(folder, omop, None, config, HASHES | {"ehr": "another"}, plain_map)
    assert (folder / "stages" / "meds.json").stat().st_mtime_ns > times["stages/meds.json"]


@pytest.mark.parametrize("call", [1, 2, 3])
def test_interrupted_and_repeated_it_converges_to_the_same_bytes(tmp_path, omop, config, call):
    undisturbed, folder = prepared(tmp_path, "undisturbed"), prepared(tmp_path, "disturbed")
    open_records(undisturbed, omop, None, config, HASHES, plain_map)
    calls = []

    def stopping(function, items):
        results = plain_map(function, items)
        calls.append(len(items))
        if len(calls) == call:
            raise KeyboardInterrupt
        return results

    with pytest.raises(KeyboardInterrupt):
        open_records(folder, omop, None, config, HASHES, stopping)
    open_records(folder, omop, None, config, HASHES, plain_map)
    assert contents(folder) == contents(undisturbed)


def test_killed_before_the_result_has_its_name_it_converges(tmp_path, omop, config):
    """SIGKILL with everything converted and nothing in place; and a result without its stamp is made again."""
    undisturbed, folder = prepared(tmp_path, "undisturbed"), prepared(tmp_path, "killed")
    records = open_records(undisturbed, omop, None, config, HASHES, plain_map)
    program = (
        "from pathlib import Path; from data.labels.records import open_records; from ehr.config import EhrConfig; "
        f"open_records(Path({str(folder)!r}), Path({str(omop)!r}), None, EhrConfig(phenotypes={config.phenotypes!r}), "
        f"{HASHES!r}, lambda f, xs: [f(x) for x in xs])"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3]), "TTE_CRASH_AT": "ehr_converted:1"}
    assert subprocess.run([sys.executable, "-c", program], env=environment).returncode == -signal.SIGKILL
    assert (folder / "stages" / "meds.unfinished").is_dir()
    open_records(folder, omop, None, config, HASHES, plain_map)
    assert contents(folder) == contents(undisturbed)
    (folder / "stages" / "meds.json").unlink()
    (folder / "stages" / "meds" / "data" / "0.parquet").write_bytes(b"")
    assert open_records(folder, omop, None, config, HASHES, plain_map).counts == records.counts
    assert contents(folder) == contents(undisturbed)


def test_a_damaged_stage_is_made_again(tmp_path, omop, config):
    folder = prepared(tmp_path, "prepared")
    open_records(folder, omop, None, config, HASHES, plain_map)
    before = contents(folder)
    (folder / "stages" / "meds" / "data" / "0.parquet").write_bytes(b"damaged")
    (folder / "stages" / "ontology" / "metadata" / "codes.parquet").unlink()
    open_records(folder, omop, None, config, HASHES, plain_map)
    assert contents(folder) == before


def write_nested(folder: Path) -> Path:
    """The persons of `omop` as MEDS 0.1 has them, with births, deaths and a hierarchy in metadata.json."""
    day = datetime(2015, 1, 1, 10)
    patients = [
        {
            "patient_id": n,
            "static_measurements": [{"code": "GENDER/M"}],
            "events": [
                {"time": datetime(1950, 6, 1), "measurements": [{"code": "SNOMED/184099003"}]},
                *({"time": day + (30 * k + n) * DAY, "measurements": [{"code": f"V/{(n + k) % 6}"}]} for k in range(4)),
                {"time": day + 200 * DAY, "measurements": [{"code": "SNOMED/419620001"}]},
            ],
        }
        for n in range(1, 13)
    ]
    (folder / "data").mkdir(parents=True)
    for shard in (0, 1):
        pl.DataFrame(patients[shard::2]).write_parquet(folder / "data" / f"{shard}.parquet")
    listed = {f"V/{n}": {"description": f"about {n}", "parent_codes": ["V/9"]} for n in range(6)}
    (folder / "metadata.json").write_text(json.dumps({"code_metadata": listed}))
    return folder


def test_labels_of_nested_meds_are_those_of_the_flat_data_set(tmp_path, config):
    """Deaths, births and parents arrive as such; the conversion is done once."""
    nested = write_nested(tmp_path / "nested")
    studies = pl.DataFrame({"study_id": [f"s{n:02d}" for n in range(12)], "subject_id": range(1, 13), "split": "train"})
    studies = studies.with_columns(study_time=datetime(2015, 1, 20), date_only=False)
    folder = prepared(tmp_path, "prepared")
    result = make_labels(folder, nested, None, studies, config, {"hash": "x", "count": 12}, plain_map)
    assert result.counts["nested_meds"]["meds_death"] == 12
    assert json.loads((folder / "tasks.json").read_text())["death_task"] is not None
    outcome = pl.read_parquet(folder / "phenotypes.parquet").filter(phenotype="top", horizon_days=30)
    assert outcome["label"].any()  # V/9, by its descendants alone
    assert pl.read_parquet(folder / "stages" / "covariates.parquet")["age_years"].null_count() == 0
    flat = prepared(tmp_path, "flat")
    meds = tmp_path / "meds"
    shutil.copytree(folder / "stages" / "meds", meds)
    make_labels(flat, meds, None, studies, config, {"hash": "x", "count": 12}, plain_map)
    for name in ("labels.parquet", "tasks.json", "phenotypes.parquet"):
        assert (flat / name).read_bytes() == (folder / name).read_bytes()
    stamp = (folder / "stages" / "meds.json").stat().st_mtime_ns
    changed = dataclasses.replace(config, blackout_days=2.0)
    again = make_labels(folder, nested, None, studies, changed, {"hash": "x", "count": 12}, plain_map)
    assert not again.reused
    assert (folder / "stages" / "meds.json").stat().st_mtime_ns == stamp


def test_what_a_table_lost_is_judged_again_when_the_conversion_is_reused(tmp_path, omop, config, caplog):
    """40 of 48 conditions have a concept that CONCEPT lacks: it stops, with the key it warns, each time."""
    table = pl.read_parquet(omop / "condition_occurrence.parquet")
    lost = pl.when(pl.int_range(pl.len()) < 40).then(404).otherwise("condition_concept_id")
    table.with_columns(condition_concept_id=lost).write_parquet(omop / "condition_occurrence.parquet")
    folder = prepared(tmp_path, "prepared")
    for _ in range(2):
        with pytest.raises(
            BadDataError, match=r"40 of 48 rows of condition_occurrence .* raise ehr\.max_lost_fraction"
        ):
            open_records(folder, omop, None, config, HASHES, plain_map)
    made = (folder / "stages" / "meds.json").stat().st_mtime_ns
    for _ in range(2):
        caplog.clear()
        open_records(folder, omop, None, dataclasses.replace(config, max_lost_fraction=0.9), HASHES, plain_map)
        assert "40 of 48 rows of condition_occurrence are left out: no code" in caplog.text
    assert (folder / "stages" / "meds.json").stat().st_mtime_ns == made


def readmissions(folder: Path, omop: Path, config: EhrConfig, **rules) -> tuple[list, list]:
    """(labels of a readmission within 30 days, tasks) of the twelve, scanned in a stay of day 0 to 3."""
    rules = {"phenotypes": config.phenotypes, "min_events": 2, "min_patients": 2} | rules
    Path(config.phenotypes).write_text(
        "phenotypes: {again: {codes: [HOSPITAL_ADMISSION*], after_stay: true, horizons_days: [30]}}"
    )
    studies = pl.DataFrame({"study_id": [f"s{n:02d}" for n in range(12)], "subject_id": range(1, 13), "split": "train"})
    studies = studies.with_columns(study_time=datetime(2015, 1, 2, 12), date_only=False)
    make_labels(folder, omop, None, studies, EhrConfig(**rules), {"hash": "", "count": 12}, plain_map)
    found = pl.read_parquet(folder / "phenotypes.parquet").filter(horizon_days=30).sort("study_id")
    return found["label"].to_list(), json.loads((folder / "tasks.json").read_text())["tasks"]


def write_visits(omop: Path, concept: int, end: datetime) -> None:
    """A stay with this end, and for every other person another after 21 days."""
    first = datetime(2015, 1, 1, 12)
    stays = [(n, first, end) for n in range(1, 13)]
    stays += [(n, first + 21 * DAY, first + 24 * DAY) for n in range(1, 13, 2)]
    rows = pl.DataFrame(stays, schema=["person_id", "visit_start_datetime", "visit_end_datetime"], orient="row")
    rows = rows.with_columns(visit_start_date=pl.col("visit_start_datetime").dt.date(), visit_concept_id=concept)
    rows.write_parquet(omop / "visit_occurrence.parquet")


@pytest.mark.parametrize("end", [datetime(2015, 1, 4), datetime(9999, 12, 31), datetime(2099, 12, 31)])
def test_a_readmission_is_seen_whatever_the_first_stay_ends_on(tmp_path, omop, config, end):
    write_visits(omop, 9201, end)
    labels, _ = readmissions(prepared(tmp_path, "prepared"), omop, config)
    assert labels == [True, False] * 6


def test_the_key_for_other_stays_is_part_of_the_conversions_identity(tmp_path, omop, config, caplog):
    """Emergency visits of days: no readmission is known, and their code tells it as a task; with the key neither."""
    write_visits(omop, 4, datetime(2015, 1, 4))
    folder = prepared(tmp_path, "prepared")
    labels, tasks = readmissions(folder, omop, config)
    assert "18 visits last longer than a day and are no hospital stays (0 are)" in caplog.text
    assert labels != [True, False] * 6
    labels, tasks = readmissions(folder, omop, config, omop_inpatient=[4])
    assert labels == [True, False] * 6
    assert not any(task["code"].startswith("HOSPITAL") for task in tasks)
    events = pl.read_parquet(folder / "stages" / "meds" / "data" / "*.parquet")
    assert events.filter(pl.col("time") == datetime(2015, 1, 1, 12))["code"].unique().to_list() == [
        "HOSPITAL_ADMISSION"
    ]


def test_what_is_neither_meds_nor_omop_is_told_both_expectations(tmp_path, config):
    (tmp_path / "ehr").mkdir()
    (tmp_path / "ehr" / "patients.csv").write_text("id\n1\n")
    with pytest.raises(ConfigError, match=r"input\.ehr: .* neither a MEDS data set .* nor an OMOP CDM extract"):
        open_records(tmp_path, tmp_path / "ehr", None, config, HASHES, plain_map)


def test_an_ontology_without_concepts_is_refused(tmp_path, omop, config):
    (tmp_path / "athena").mkdir()
    with pytest.raises(ConfigError, match=r"input\.ontology: .* holds no table CONCEPT"):
        open_records(tmp_path, omop, tmp_path / "athena", config, HASHES, plain_map)


def test_dates_of_omop_cannot_be_moments(tmp_path, omop, config):
    config = EhrConfig(phenotypes=config.phenotypes, date_only="never")
    with pytest.raises(ConfigError, match=r"ehr\.date_only=never: the OMOP tables hold dates"):
        open_records(prepared(tmp_path, "prepared"), omop, None, config, HASHES, plain_map)


def test_a_meds_data_set_stays_as_it_is_and_takes_an_athena_export(tmp_path, config):
    """V/1 has a parent of its own besides Athena's; V/9 is spoken of by the phenotypes."""
    meds, athena = tmp_path / "meds", write_athena(tmp_path / "athena")
    (meds / "data").mkdir(parents=True)
    events = pl.DataFrame({"subject_id": [1], "time": [datetime(2015, 1, 1)], "code": ["V/1"]})
    events.write_parquet(meds / "data" / "0.parquet")
    folder = prepared(tmp_path, "prepared")
    assert open_records(folder, meds, None, config, HASHES, plain_map).files == ()
    records = open_records(folder, meds, athena, config, HASHES, plain_map)
    assert records.ehr == meds
    codes = pl.read_parquet(records.ontology / "metadata" / "codes.parquet")
    assert codes["code"].to_list() == ["V/1", "V/2", "V/9"]
    assert list(records.counts) == ["ontology"]


def write_meds(folder: Path, codes: list[str], parents: dict[str, list[str]]) -> Path:
    for part in ("data", "metadata"):
        (folder / part).mkdir(parents=True)
    events = pl.DataFrame({"subject_id": 1, "time": datetime(2015, 1, 1), "code": codes})
    events.write_parquet(folder / "data" / "0.parquet")
    metadata = pl.DataFrame({"code": list(parents), "parent_codes": list(parents.values())})
    metadata.write_parquet(folder / "metadata" / "codes.parquet")
    return folder


def vocabulary_above(folder: Path, meds: Path, athena: Path, config: EhrConfig) -> list[str]:
    records = open_records(folder, meds, athena, config, HASHES, plain_map)
    return pl.read_parquet(records.ontology / "metadata" / "codes.parquet")["code"].to_list()


def test_parents_that_the_data_set_lists_are_looked_up_in_athena(tmp_path, config):
    """MIMIC's form: DIAGNOSIS//x -> (the data's own) V/3 -> (Athena) V/4 -> V/9, though nobody has a V/3."""
    meds = write_meds(tmp_path / "meds", ["DIAGNOSIS//x"], {"DIAGNOSIS//x": ["LOCAL/y"], "LOCAL/y": ["V/3", None]})
    athena = write_athena(tmp_path / "athena")
    found = vocabulary_above(prepared(tmp_path, "prepared"), meds, athena, config)
    assert found == ["V/3", "V/4", "V/9"]


def test_codes_spoken_of_and_shorter_icd_codes_are_looked_up_in_athena(tmp_path, config):
    """V/5 only in ehr.exclude; ICD10CM/I27.20 is not in Athena, ICD10CM/I27 is; nothing else of the data is."""
    meds = write_meds(tmp_path / "meds", ["LOCAL/1", "ICD10CM/I27.20"], {"LOCAL/1": []})
    athena = write_athena(tmp_path / "athena")
    with (athena / "CONCEPT.csv").open("a") as file:
        file.write("\t".join(("77", "category", "ICD10CM", "I27", "", "")) + "\n")
    config = EhrConfig(phenotypes=config.phenotypes, exclude=["V/5"])
    found = vocabulary_above(prepared(tmp_path, "prepared"), meds, athena, config)
    assert found == ["ICD10CM/I27", "V/5", "V/6", "V/9"]


def test_labels_of_an_omop_extract_know_its_descendants(tmp_path, omop, config):
    """Phenotype V/9 is met by its descendants alone; the summary and the manifest get the conversion."""
    studies = pl.DataFrame(
        [(f"s{n}", n, datetime(2015, 3, 1, 12), False, "train") for n in range(1, 13)],
        schema={"study_id": pl.String, "subject_id": pl.Int64, "study_time": pl.Datetime("us"),
                "date_only": pl.Boolean, "split": pl.String},
        orient="row",
    )  # fmt: skip
    folder = prepared(tmp_path, "prepared")
    stage = make_labels(folder, omop, None, studies, config, {"hash": "", "count": 12}, plain_map)
    assert not stage.reused
    outcome = pl.read_parquet(folder / "phenotypes.parquet").filter(phenotype="top", horizon_days=30)
    assert outcome["label"].to_list() == [True] * 12
    assert stage.counts["omop"]["tables"]["person"]["rows"] == stage.counts["studies"]["labelled"] == 12
    assert {"stages/meds.json", "stages/meds/data/0.parquet", "stages/ontology.json"} <= set(stage.files)
    assert make_labels(folder, omop, None, studies, config, {"hash": "", "count": 12}, plain_map).reused
