"""Properties of the synthetic timelines, and the exam's calibration, on cohorts without images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
import pytest
from lifelines import CoxPHFitter
from lifelines.utils import concordance_index

from data.cohort.exam import LATENTS, PHENOTYPES, SIZES, VISIBLE, YARDSTICK, draw_latents, weight_vector
from data.cohort.timelines.catalogue import build_catalogue
from data.cohort.timelines.histories import DAY_US, YEAR_DAYS, draw_course, draw_events, draw_studies
from data.cohort.timelines.meds_files import write_meds
from data.cohort.truth import oracle_table

DEFAULT = SIZES["default"]


@dataclass
class World:
    latents: object
    catalogue: object
    course: object
    studies: object
    events: pl.DataFrame  # with `day`: days from the subject's first CT


def draw_world(seed: int, size=DEFAULT) -> World:
    rngs = [np.random.default_rng([seed, stream]) for stream in range(4)]
    latents = draw_latents(rngs[0], size.subjects)
    catalogue = build_catalogue(size.catalogue)
    course = draw_course(rngs[1], size, latents)
    studies = draw_studies(rngs[2], size, course)
    events = draw_events(rngs[3], size, latents, catalogue, course, studies)
    first = pl.DataFrame({"subject_id": course.subject_id_N, "t0": course.t0_us_N, "row": np.arange(size.subjects)})
    events = events.join(first, on="subject_id", maintain_order="left")
    day = (pl.col("time").dt.epoch("us") - pl.col("t0")) / DAY_US
    return World(latents, catalogue, course, studies, events.with_columns(day=day))


@pytest.fixture(scope="module")
def world() -> World:
    return draw_world(11)


def test_nothing_happens_after_the_end_of_follow_up(world):
    end = pl.Series(world.course.end_N)
    timed = world.events.filter(pl.col("time").is_not_null())
    late = timed.filter(pl.col("day") > pl.lit(end).gather(pl.col("row")) + 1e-6)
    assert len(late) == 0


def test_timelines_are_sorted_and_of_a_plausible_length(world):
    assert world.events["subject_id"].is_sorted()
    ordered = world.events.select(pl.col("time").is_sorted(nulls_last=False).over("subject_id")).to_series()
    assert ordered.all()
    assert 300 <= len(world.events) / DEFAULT.subjects <= 700


def test_every_subject_is_born_has_a_sex_and_dies_at_most_once(world):
    count = dict(world.events["code"].value_counts().iter_rows())
    assert count["MEDS_BIRTH"] == DEFAULT.subjects
    assert count["GENDER//F"] + count["GENDER//M"] == DEFAULT.subjects
    assert count["MEDS_DEATH"] == world.course.died_N.sum()
    assert 0.1 < world.course.died_N.mean() < 0.4


def test_counts_follow_the_stated_hazards(world):
    """Observed events after the CT over their expectation, for the whole catalogue and for subjects of high hazard."""
    catalogue, course = world.catalogue, world.course
    used = np.flatnonzero(catalogue.per_year_C > 0)
    hazard_NC = catalogue.per_year_C[used] / YEAR_DAYS * np.exp(world.latents.scores_NL @ catalogue.weights_CL[used].T)
    expected_NC = hazard_NC * course.end_N[:, None]
    column = pl.DataFrame({"code": [catalogue.codes[c] for c in used], "column": np.arange(len(used))})
    # Whole days after the CT only: its own visit documents more, and billing codes lose their hour.
    after = world.events.filter(pl.col("day") > 0).join(column, on="code")
    observed_NC = np.zeros(expected_NC.shape)
    np.add.at(observed_NC, (after["row"].to_numpy(), after["column"].to_numpy()), 1)
    assert observed_NC.sum() / expected_NC.sum() == pytest.approx(1, abs=0.03)
    high = expected_NC > np.quantile(expected_NC, 0.99)
    assert observed_NC[high].sum() / expected_NC[high].sum() == pytest.approx(1, abs=0.03)
    low = expected_NC < np.quantile(expected_NC, 0.5)
    assert observed_NC[low].sum() / expected_NC[low].sum() == pytest.approx(1, abs=0.25)


def test_hospital_stays_of_a_subject_do_not_overlap(world):
    stays = world.events.filter(pl.col("code").str.starts_with("HOSPITAL_")).sort("row", "time", "code")
    codes = stays.group_by("row", maintain_order=True).agg("code")["code"]
    for sequence in codes:
        assert sequence.to_list() == ["HOSPITAL_ADMISSION", "HOSPITAL_DISCHARGE"] * (len(sequence) // 2)


def test_a_present_condition_is_documented_with_its_sensitivity(world):
    """Counted over first CTs; a few more come from the code's own hazard on that day."""
    phenotype = next(p for p in PHENOTYPES if p.name == "pleural_effusion")
    catalogue = world.catalogue
    members = [c for c, up in zip(catalogue.codes, catalogue.parents) if c == phenotype.code or phenotype.code in up]
    weights = weight_vector(phenotype.weights)[VISIBLE]
    present = world.latents.scores_NL[:, VISIBLE] @ weights > 0.6 * np.linalg.norm(weights)
    same_day = world.events.filter(pl.col("code").is_in(members) & pl.col("day").is_between(0, 0.6))
    coded = np.isin(np.arange(DEFAULT.subjects), same_day["row"].to_numpy())
    assert coded[present].mean() == pytest.approx(phenotype.sensitivity, abs=0.1)
    assert coded[~present].mean() < 0.02


def test_splits_hold_whole_subjects_and_enough_held_out_studies(world):
    split_S = world.course.split_N[world.studies.subject_S]
    share = {name: (world.course.split_N == name).mean() for name in ("train", "tuning", "held_out")}
    assert share == pytest.approx({"train": 0.6, "tuning": 0.1, "held_out": 0.3}, abs=0.01)
    assert (split_S == "held_out").sum() - DEFAULT.damaged >= 300
    assert len(split_S) > DEFAULT.subjects * 1.1  # some subjects have two CTs


def test_the_data_set_obeys_the_meds_schema(tmp_path):
    import json

    import meds
    from pyarrow import parquet

    size = SIZES["tiny"]
    world = draw_world(3, size)
    events = world.events.drop("row", "day", "t0")
    write_meds(tmp_path / "ehr", events, world.course, world.catalogue, size)
    shards = sorted((tmp_path / "ehr").glob("data/*/*.parquet"))
    assert [shard.parent.name for shard in shards] == ["held_out", "train", "train", "tuning"]
    for shard in shards:
        meds.DataSchema.validate(parquet.read_table(shard))
    metadata = tmp_path / "ehr" / "metadata"
    meds.CodeMetadataSchema.validate(parquet.read_table(metadata / "codes.parquet"))
    meds.SubjectSplitSchema.validate(parquet.read_table(metadata / "subject_splits.parquet"))
    meds.DatasetMetadataSchema.validate(json.loads((metadata / "dataset.json").read_text()))
    listed = set(parquet.read_table(metadata / "codes.parquet")["code"].to_pylist())
    special = {"MEDS_BIRTH", "GENDER//F", "GENDER//M", "HOSPITAL_DISCHARGE"}
    assert set(events["code"]) - special <= listed


def first_event(world: World, name: str) -> pl.DataFrame:
    """study_id, time (days), event of a probe phenotype: first code after the day of the CT, counted by hand."""
    phenotype = next(p for p in PHENOTYPES if p.name == name)
    catalogue, studies = world.catalogue, world.studies
    members = [c for c, up in zip(catalogue.codes, catalogue.parents) if phenotype.code in up] + [phenotype.code]
    happened = world.events.filter(pl.col("code").is_in(members)).select("row", "day")
    start = np.where(np.isnan(studies.stay_S2[:, 1]), studies.day_S, studies.stay_S2[:, 1])
    rows = pl.DataFrame(
        {
            "study_id": list(studies.study_id_S),
            "row": studies.subject_S,
            "scan": studies.day_S,
            "after": np.maximum(studies.day_S + 1, start if name == "readmission" else 0),
            "end": world.course.end_N[studies.subject_S],
            "split": list(world.course.split_N[studies.subject_S]),
            "age": world.latents.scores_NL[studies.subject_S, LATENTS.index("age")],
            "female": world.latents.scores_NL[studies.subject_S, LATENTS.index("female")],
        }
    ).filter(pl.col("end") > pl.col("scan") + 1)
    later = rows.join(happened, on="row").filter(pl.col("day") > pl.col("after"))
    first = later.group_by("study_id").agg(pl.col("day").min())
    table = rows.join(first, on="study_id", how="left", maintain_order="left")
    time = pl.min_horizontal(pl.coalesce("day", "end"), "end") - pl.col("scan")
    return table.with_columns(event=pl.col("day").is_not_null(), time=time)


@pytest.mark.parametrize("seed", [0, 1, 2, 3, 20261])
def test_the_oracle_and_demographics_score_as_designed(seed):
    """Held-out Harrell's C: .70-.80 for the visible oracle, at most .60 for age and sex. `-rP` prints the table."""
    world = draw_world(seed)
    oracle = oracle_table(world.latents, world.studies)
    print(f"seed {seed}: phenotype, events, visible, full, demographics")
    visible, demographics = [], []
    for phenotype in PHENOTYPES:
        table = first_event(world, phenotype.name)
        table = table.join(oracle.filter(phenotype=phenotype.name), on="study_id", maintain_order="left").to_pandas()
        train, test = table[table.split == "train"], table[table.split == "held_out"]
        cox = CoxPHFitter(penalizer=0.01).fit(train[["age", "female", "time", "event"]], "time", "event")
        risks = (test.visible_risk, test.full_risk, cox.predict_log_partial_hazard(test[["age", "female"]]))
        scores = [concordance_index(test.time, -risk, test.event) for risk in risks]
        print(f"{phenotype.name:24s} {test.event.sum():4d} " + " ".join(f"{score:.3f}" for score in scores))
        if phenotype.name in YARDSTICK:
            assert test.event.sum() >= 60
            visible.append(scores[0])
            demographics.append(scores[2])
    print(f"{'mean of the yardstick':24s}      {np.mean(visible):.3f}       {np.mean(demographics):.3f}")
    assert 0.70 <= np.mean(visible) <= 0.80
    assert np.mean(demographics) <= 0.60


def test_hundreds_of_codes_that_the_image_drives_are_frequent_enough(world):
    """min_events 20 in min_patients 11 train subjects, the run's default."""
    train = np.flatnonzero(world.course.split_N == "train")
    after = world.events.filter(pl.col("row").is_in(train) & (pl.col("day") > 1))
    patients = after.group_by("code").agg(pl.col("row").n_unique())
    frequent = set(patients.filter(pl.col("row") >= 20)["code"])
    driven = (world.catalogue.weights_CL[:, VISIBLE] != 0).any(1)
    assert sum(c in frequent for c, d in zip(world.catalogue.codes, driven) if d) > 500
