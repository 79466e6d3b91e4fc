"""What headers and small files tell of wrong inputs ends jobs.prepare, and its plan, before a worker starts."""

from datetime import datetime

import polars as pl
import pytest

from jobs.prepare import main
from ttepretrain.errors import ConfigError

EVENTS = {"subject_id": [101, 102], "time": [datetime(2021, 1, 1)] * 2, "code": ["V/1", "V/2"]}
STUDIES = "study_id,subject_id,study_time\n" + "".join(f"ct-{n},{100 + n},2020-05-0{n} 10:00\n" for n in range(1, 9))
LABELS = "study_id,phenotype,kind,label,horizon_days\n"
PHENOTYPES = "phenotypes:\n  p: {codes: [V/1], horizons_days: [30]}\n"
OMOP = {
    "person": "person_id,gender_concept_id,year_of_birth\n101,8507,1950\n",
    "concept": "concept_id,vocabulary_id,concept_code,concept_name\n1,V,1,one\n",
    "condition_occurrence": (
        "condition_occurrence_id,person_id,condition_concept_id,condition_start_date\n1,101,1,2021-01-01\n"
    ),
}


class Started(Exception):
    """A worker would have started."""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Function: (files to write by name, arguments) runs jobs.prepare up to where workers start."""

    def no_session(*_):
        raise Started

    def run(files: dict, *arguments: str, omop: bool = False):
        whole = {"run.yaml": "name: run\n", "studies.csv": STUDIES, "p.yaml": PHENOTYPES}
        whole |= {f"ehr/{name}.csv": text for name, text in OMOP.items()} if omop else {"ehr/data/0.parquet": EVENTS}
        for name, content in (whole | files).items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str):
                path.write_text(content)
            elif content is not None:
                pl.DataFrame(content).write_parquet(path)
        paths = ["paths.root=runs", "input.studies=studies.csv", "input.ehr=ehr", "ehr.phenotypes=p.yaml"]
        main(["run.yaml", *paths, "prepare.stages=[labels]", *arguments])

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("data.workers.ray_session", no_session)
    monkeypatch.setattr("jobs.plan.show.ray_session", no_session)
    return run


@pytest.mark.parametrize("omop", [False, True])
def test_sound_inputs_reach_the_workers(start, omop):
    with pytest.raises(Started):
        start({}, omop=omop)
    with pytest.raises(Started):
        start({}, "--plan", omop=omop)


@pytest.mark.parametrize(
    ("files", "arguments", "message"),
    [
        ({"p.yaml": "phenotypes:\n  p: {codes: [V/1], horizon_days: [30]}\n"}, [], "did you mean horizons_days"),
        ({"p.yaml": "phenotypes:\n  p: {codes: [V/1], horizons_days: [1]}\n"}, [], "end before events count"),
        ({}, ["ehr.tasks=gone.json"], r"ehr\.tasks: gone\.json is not a file"),
        ({}, ["ehr.label_tables=[gone.csv]"], r"ehr\.label_tables: .*gone\.csv is not a file"),
        ({"l.csv": LABELS + "CT-1,p,prognosis,1,30\n"}, ["ehr.label_tables=[l.csv]"], "the ids differ by letter case"),
        ({"ehr/data/0.parquet": {"subject_id": [1], "time": EVENTS["time"][:1]}}, [], "no column code; it has"),
        ({"ehr/data/0.parquet": EVENTS | {"time": ["2021-01-01"] * 2}}, [], "column time is"),
        ({"ehr/metadata/codes.parquet": {"name": ["V/1"]}}, [], "no column code"),
        ({}, ["ehr.followup=observation_period"], "no observation periods"),
        ({"studies.csv": STUDIES.replace("study_time", "when")}, [], r"input\.studies: no column study_time; .*when"),
        ({"studies.csv": STUDIES.splitlines()[0] + "\n"}, [], "a header and no rows"),
        ({"studies.csv": STUDIES.replace(",10", ",MRN10")}, [], "column subject_id is empty or .* in 8 of 8"),
        ({"splits.csv": "subject_id,split\n101,val\n"}, ["input.splits=splits.csv"], r"input\.splits: .*'val'"),
        ({"ehr/data/0.parquet": None, "ehr/x.txt": "x"}, [], "neither a MEDS data set"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("plan", [[], ["--plan"]], ids=["run", "plan"])
def test_a_mistake_is_named_before_a_worker_starts(start, files, arguments, message, plan):
    with pytest.raises(ConfigError, match=message):
        start(files, *arguments, *plan)


@pytest.mark.parametrize(
    ("files", "arguments", "message"),
    [
        ({"ehr/concept.csv": "concept_id\n1\n"}, [], "no column vocabulary_id, concept_code"),
        ({"ehr/condition_occurrence.csv": "condition_concept_id\n1\n"}, [], "no column person_id"),
        ({}, ["ehr.followup=observation_period"], "no table observation_period"),
    ],
)  # fmt: skip
def test_a_mistake_in_an_omop_extract_is_named_before_a_worker_starts(start, files, arguments, message):
    with pytest.raises(ConfigError, match=message):
        start(files, *arguments, omop=True)


def test_a_missing_concept_table_is_named_before_a_worker_starts(start):
    with pytest.raises(ConfigError, match=r"input\.ehr: no concept table; put CONCEPT beside"):
        start({"ehr/concept.csv": None}, omop=True)


@pytest.mark.parametrize("stages", ["labels", "volumes", "labels,volumes"])
@pytest.mark.parametrize("plan", [[], ["--plan"]], ids=["run", "plan"])
def test_a_table_without_rows_ends_every_stage(start, stages, plan):
    with pytest.raises(ConfigError, match="a header and no rows"):
        start({"studies.csv": "study_id,subject_id,study_time,image\n"}, f"prepare.stages=[{stages}]", *plan)
