"""What the volumes of a run would cost: the arithmetic by hand, and a trial that is the real preparation."""

import pytest

from data.given.study import Study
from data.testing import chest, write_nifti
from jobs.plan.trial import Trial, absent_images, sample, try_study, volume_plan
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


def test_images_that_are_not_there_or_lie_outside_are_counted(tmp_path):
    (tmp_path / "here").touch()
    studies = [Study("s", image) for image in ("here", "gone", "../here", "x" * 300)]
    assert absent_images(studies, tmp_path) == {"OUTSIDE_ROOT": 1, "NOT_FOUND": 2}


def test_a_sample_is_the_same_for_the_same_table_and_never_more_than_all():
    studies = [Study(f"s{n}", f"{n}.nii.gz") for n in range(50)]
    assert sample(studies, 8) == sample(studies, 8)
    assert len(set(sample(studies, 8))) == 8
    assert set(sample(studies[:3], 8)) == set(studies[:3])


def test_a_trial_is_the_real_preparation(tmp_path):
    write_nifti(tmp_path / "a.nii.gz", chest(1))
    trial = try_study(Study("s", "a.nii.gz"), tmp_path, tmp_path, SPEC)
    (cached,) = tmp_path.glob("*.b2nd")
    assert (trial.num_bytes, trial.code) == (cached.stat().st_size, None)
    assert trial.seconds > 0
    assert try_study(Study("s", "gone.nii.gz"), tmp_path, tmp_path, SPEC).code == "NOT_FOUND"
