"""Labels of two OMOP extracts, from the tables to the label files by jobs.prepare, against plain loops.

GiBleed (CDM 5.3.1) has an ontology in CONCEPT_ANCESTOR, most of its ends unknown; Synthea27Nj (5.4, parquet in a zip)
has one in CONCEPT_RELATIONSHIP. Neither has scans: study times are the starts of visits, some five hours later.
"""

import json
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from data.labels.stage import make_labels
from data.testing import load_module
from ehr.build import LabelResult, build_labels
from ehr.config import EhrConfig
from jobs.prepare import main
from ttepretrain.tasks import TaskSet

pytestmark = pytest.mark.slow

PHENOTYPES = {
    "mortality": {"codes": ["MEDS_DEATH"], "horizons_days": [30, 365]},
    "readmission": {"codes": ["HOSPITAL_ADMISSION*"], "twins": ["HOSPITAL_DISCHARGE*"], "after_stay": True},
    "bronchitis": {"codes": ["SNOMED/10509002"], "horizons_days": [365]},
    "injury": {"codes": ["SNOMED/127295002"], "start_days": 7},
    "bleeding": {"kind": "diagnosis", "codes": ["SNOMED/74474003"]},
}
RULES = {"min_events": 4, "min_patients": 3}


def plain_map(function, items):
    return [function(item) for item in items]


def written(prepared: Path) -> dict[Path, int]:
    """When the files of the OMOP and ontology stages were written."""
    stages = [path for name in ("meds", "ontology") for path in (prepared / "stages" / name).rglob("*")]
    return {path: path.stat().st_mtime_ns for path in stages}


ORACLES = Path(__file__).parents[1] / "ehr"
slow_omop, slow_labels, comparison = (
    load_module(ORACLES / f"{name}.py") for name in ("slow_omop", "slow_labels", "conftest")
)


@pytest.fixture(scope="module", params=["gibleed", "synthea27nj"])
def extract(request, fixtures, tmp_path_factory):
    """(folder of input.ehr, folder of the tables in it, every how many-th visit is a study)"""
    folder = fixtures / f"ehr_omop_{request.param}"
    if not folder.is_dir():
        pytest.skip(f"no OMOP extract: {folder} does not exist")
    if request.param == "gibleed":
        return folder, folder, 3
    unpacked = tmp_path_factory.mktemp("synthea27nj")
    zipfile.ZipFile(next(folder.glob("*.zip"))).extractall(unpacked)
    return unpacked, unpacked / "Synthea27NjParquet", 12


@pytest.fixture(scope="module")
def inputs(extract, tmp_path_factory):
    """Folder with studies, phenotypes and a configuration."""
    root = tmp_path_factory.mktemp("omop")
    _, tables, every = extract
    visits = pl.read_parquet(tables / "visit_occurrence.parquet").rename(str.lower).sort("visit_occurrence_id")
    later = pl.when(pl.int_range(pl.len()) % 4 == 0).then(pl.duration(hours=5)).otherwise(pl.duration(hours=0))
    visits.gather_every(every).select(
        study_id=pl.format("v{}", "visit_occurrence_id"),
        subject_id=pl.col("person_id").cast(pl.Int64),
        study_time=pl.col("visit_start_date").cast(pl.Datetime("us")) + later,
        image=pl.lit(None, pl.String),
    ).write_parquet(root / "studies.parquet")
    (root / "phenotypes.yaml").write_text(yaml.safe_dump({"phenotypes": PHENOTYPES}))
    (root / "run.yaml").write_text("name: run\nprepare: {stages: [labels], num_cpus: 1}\n")
    return root


@pytest.fixture(scope="module")
def prepared(extract, inputs):
    """The folder that jobs.prepare made, recurrence=all."""
    paths = [f"paths.root={inputs}", f"input.studies={inputs}/studies.parquet", f"input.ehr={extract[0]}"]
    rules = [f"ehr.phenotypes={inputs}/phenotypes.yaml", *(f"ehr.{name}={value}" for name, value in RULES.items())]
    main([str(inputs / "run.yaml"), *paths, *rules])
    return inputs / "run" / "prepared"


@pytest.fixture(scope="module")
def results(extract, inputs, prepared):
    """{recurrence: labels}; those of incident from the same folder, without another Ray session."""
    found = {"all": results_of(prepared)}
    config = EhrConfig(phenotypes=str(inputs / "phenotypes.yaml"), recurrence="incident", **RULES)
    before = written(prepared)
    make_labels(prepared, extract[0], None, studies_of(prepared), config, {"hash": "", "count": 0}, plain_map)
    assert written(prepared) == before, "the stages do not depend on the recurrence, and are not made again"
    return found | {"incident": results_of(prepared)}


@pytest.fixture(scope="module")
def expected(extract):
    """Events and parents of the plain loops."""
    tables = extract[1]
    return slow_omop.slow_events(tables), slow_omop.slow_parents(tables)


def studies_of(prepared: Path) -> pl.DataFrame:
    """What the label stage was given: the table, date-only at midnight, and the splits that keys.parquet tells."""
    table = pl.read_parquet(prepared.parents[1] / "studies.parquet").drop("image")
    table = table.join(pl.read_parquet(prepared / "keys.parquet", columns=["study_id", "split"]), on="study_id")
    return table.with_columns(date_only=pl.col("study_time").dt.time() == pl.time(0)).sort("study_id")


def results_of(prepared: Path) -> LabelResult:
    labels, covariates, phenotypes = (
        pl.read_parquet(prepared / f"{name}.parquet") for name in ("labels", "covariates", "phenotypes")
    )
    return LabelResult(TaskSet.load(prepared / "tasks.json"), labels, covariates, phenotypes, np.empty(0), {})


@pytest.mark.parametrize("recurrence", ["all", "incident"])
def test_every_study_and_task_equals_plain_loops(results, prepared, expected, recurrence):
    studies, result = studies_of(prepared), results[recurrence]
    records = (slow_omop.without_placeholders(expected[0]), expected[1])
    config = vars(EhrConfig(recurrence=recurrence, **RULES))
    slow = slow_labels.slow_labels(None, studies.to_dicts(), PHENOTYPES, config, records)
    comparison.compare_all(result, slow, studies)
    assert len(result.labels) > 90
    assert len(result.tasks.codes) > 30
    assert result.labels["task_index"].list.len().sum() > 1000


def test_every_event_of_the_tables_is_in_the_meds_data_set(prepared, expected):
    events = pl.read_parquet(prepared / "stages" / "meds" / "data" / "*.parquet")
    found = Counter(events.select("subject_id", pl.col("time").cast(pl.Int64), "code").iter_rows())
    assert found == slow_omop.counted(expected[0])


def test_follow_up_by_observation_periods_equals_plain_loops(prepared, extract, inputs, expected):
    """GiBleed's 2,649 periods of nobody included."""
    meds, ontology = prepared / "stages" / "meds", prepared / "stages" / "ontology"
    # as if every fifth had been scanned decades later: outside
    shift = pl.when(pl.int_range(pl.len()) % 5 == 0).then(pl.duration(days=30_000)).otherwise(pl.duration(days=0))
    studies = studies_of(prepared).with_columns(pl.col("study_time") + shift)
    config = EhrConfig(phenotypes=str(inputs / "phenotypes.yaml"), followup="observation_period", **RULES)
    result = build_labels(meds, ontology, studies, config, plain_map, {"hash": "", "count": 0})
    records = (slow_omop.without_placeholders(expected[0]), expected[1])
    periods = slow_omop.slow_periods(extract[1])
    slow = slow_labels.slow_labels(None, studies.to_dicts(), PHENOTYPES, vars(config), records, periods)
    comparison.compare_all(result, slow, studies)
    flow = result.counts["studies"]
    assert flow["OUTSIDE_OBSERVATION"] > 10
    assert flow["OUTSIDE_OBSERVATION"] + flow["NO_FOLLOW_UP"] + flow["labelled"] == flow["given"] == len(studies)


def test_the_dirt_of_the_extracts_is_counted(prepared, extract):
    counts = json.loads((prepared / "summary.json").read_text())["labels"]
    tables = counts["omop"]["tables"]
    if extract[0] == extract[1]:
        assert counts["omop"]["cdm_version"] == "v5.3.1"
        assert tables["observation_period"]["no_person"] == 2649
        assert [tables[name]["header_rows"] for name in ("death", "device_exposure", "person")] == [1, 1, 0]
        repeated = {name: tables[name]["repeated_keys"] for name in ("drug_exposure", "measurement", "observation")}
        assert repeated == {"drug_exposure": 4384, "measurement": 2183, "observation": 6}
        assert tables["visit_occurrence"]["stays"] == 1037
        assert counts["ontology"]["dangling_relations"] == 2656  # of 2,675 one level apart
    else:
        assert counts["omop"]["cdm_version"] == "5.4"
        assert counts["omop"]["ignored_files"] == 40
        assert tables["death"]["events"] == 3
        assert (tables["visit_occurrence"]["stays"], tables["visit_occurrence"]["events"]) == (13, 1791 + 13)
        assert counts["ontology"]["levels_from"] == "concept_relationship"
    assert not any(count["unreadable_times"] for count in tables.values())
    placeholders = {name: count["no_time"] for name, count in tables.items() if count.get("no_time")}
    assert placeholders == ({"condition_occurrence": 3, "drug_exposure": 4} if extract[0] == extract[1] else {})
