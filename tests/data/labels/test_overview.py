"""The arithmetic of a plan, by hand."""

import polars as pl
import pytest

from data.given.study import Study
from data.labels.overview import Trial, absent_images, answers, quartiles, sample, try_study, volume_plan
from data.testing import chest, write_nifti
from ehr.schema import PHENOTYPES
from ttepretrain.volume.spec import VolumeSpec

SPEC = VolumeSpec((14.0, 13.0, 12.0), (12, 16, 20), (-1024, 3071), ((-600.0, 1500.0),))


def test_hours_and_bytes_are_the_samples_means_times_all_scans():
    """The start of the two workers is not paid by every scan; a refused one takes time and no room."""
    trials = [Trial(9.0, True, 100, None), Trial(7.0, True, 140, None), Trial(2.0, False, 120, None)]
    plan = volume_plan([*trials, Trial(4.0, False, None, "MISSING_SLICE")], num_images=2400, num_workers=2)
    assert plan["hours"] == pytest.approx(3.0 * 2400 / 2 / 3600)
    assert plan["bytes"] == 90 * 2400
    assert (plan["usable"], plan["sampled"], plan["refused"]) == (3, 4, ["MISSING_SLICE"])
    assert plan["bytes_per_volume"] == {"lowest": 100, "mean": 120, "highest": 140}
    only_first = volume_plan([Trial(9.0, True, None, "CRC")], 10, 1)
    assert (only_first["seconds_per_scan"]["mean"], only_first["bytes_per_volume"]) == (9.0, None)


def test_answers_are_counted_for_labelled_studies_and_unknown_ones_left_out():
    rows = [
        ("a", "p", "prognosis", 30.0, True, True), ("b", "p", "prognosis", 30.0, None, False),
        ("c", "p", "prognosis", 30.0, False, True), ("gone", "p", "prognosis", 30.0, True, True),
        ("a", "p", "prognosis", None, True, True), ("b", "p", "prognosis", None, None, False),
        ("c", "p", "prognosis", None, True, True), ("a", "d", "diagnosis", None, False, False),
    ]  # fmt: skip
    schema = {name: PHENOTYPES[name] for name in ("study_id", "phenotype", "kind", "horizon_days", "label", "event")}
    labels = pl.DataFrame({"study_id": ["a", "b", "c"], "split": ["train", "train", "held_out"]})
    found = answers(pl.DataFrame(rows, schema=schema, orient="row"), labels)
    told = [
        (row["phenotype"], row["horizon_days"], *(tuple(row[s].values()) for s in ("train", "tuning", "held_out")))
        for row in found
    ]
    assert told == [
        ("d", None, (1, 0), (0, 0), (0, 0)),
        ("p", 30.0, (1, 1), (0, 0), (1, 0)),
        ("p", None, (2, 1), (0, 0), (1, 1)),
    ]


def test_images_that_are_not_there_or_lie_outside_are_counted(tmp_path):
    (tmp_path / "here").touch()
    images = pl.DataFrame({"image": ["here", "gone", "../here", None, "x" * 300]})
    assert absent_images(images, tmp_path) == {"OUTSIDE_ROOT": 1, "NOT_FOUND": 2}


def test_a_sample_is_the_same_for_the_same_table_and_never_more_than_all():
    images = [(f"s{n}", f"{n}.nii.gz") for n in range(50)]
    assert sample(images, 8) == sample(images, 8)
    assert len(set(sample(images, 8))) == 8
    assert sorted(sample(images[:3], 8)) == images[:3]


def test_a_trial_is_the_real_preparation(tmp_path):
    write_nifti(tmp_path / "a.nii.gz", chest(1))
    trial = try_study(Study("s", "a.nii.gz"), tmp_path, tmp_path, SPEC)
    (cached,) = tmp_path.glob("*.b2nd")
    assert (trial.num_bytes, trial.code) == (cached.stat().st_size, None)
    assert trial.seconds > 0
    assert try_study(Study("s", "gone.nii.gz"), tmp_path, tmp_path, SPEC).code == "NOT_FOUND"


def test_quartiles():
    assert quartiles(pl.Series([1, 2, 3, 4, 5])) == {"p25": 2.0, "p50": 3.0, "p75": 4.0}
