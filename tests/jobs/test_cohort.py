"""The command that writes a cohort: deterministic, whole or absent, and done once."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from data.cohort.build import write_cohort
from data.config import CohortConfig
from jobs.cohort import main
from ttepretrain.errors import ConfigError

TINY = CohortConfig(size="tiny", seed=4)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_command_writes_once_and_equals_a_run_without_workers(tmp_path, capsys):
    """Bit-equal files for the same size and seed, whoever renders them; the second command reuses the first's."""
    arguments = ["configs/tiny.yaml", f"paths.root={tmp_path}", "cohort.seed=4"]
    main(arguments)
    cohort = tmp_path / "tiny" / "cohort"
    written = content(cohort)
    main(arguments)
    assert "reused" in capsys.readouterr().out
    assert content(cohort) == written
    assert write_cohort(tmp_path / "again", TINY, map)
    assert content(tmp_path / "again") == written
    check_contract(cohort)
    with pytest.raises(ConfigError, match="'seed': 5"):
        main([*arguments[:2], "cohort.seed=5"])


def check_contract(cohort: Path) -> None:
    studies = pl.read_parquet(cohort / "studies.parquet")
    assert studies.schema["study_time"] == pl.Datetime("us")
    assert studies["study_id"].is_unique().all()
    assert studies.group_by("subject_id").agg(pl.col("split").n_unique())["split"].max() == 1
    assert studies["subject_id"].n_unique() < len(studies)
    assert all((cohort / image).exists() for image in studies["image"])
    assert studies["image"].str.ends_with(".nii.gz").n_unique() == 2
    truth = {path.stem: pl.read_parquet(path) for path in (cohort / "truth").iterdir()}
    assert set(truth) == {"latents", "hazards", "oracle"}
    assert truth["latents"]["study_id"].to_list() == studies["study_id"].to_list()
    assert truth["latents"]["damage"].drop_nulls().len() == 2
    assert truth["oracle"].columns == ["study_id", "phenotype", "visible_risk", "full_risk"]
    assert len(truth["oracle"]) == 9 * len(studies)
    events = pl.read_parquet(cohort / "ehr" / "data" / "*" / "*.parquet")
    assert set(events["subject_id"]) == set(studies["subject_id"])
    splits = pl.read_parquet(cohort / "ehr" / "metadata" / "subject_splits.parquet")
    joined = studies.join(splits, on="subject_id", suffix="_ehr")
    assert (joined["split"] == joined["split_ehr"]).all()


def test_an_interrupted_run_leaves_nothing_under_the_name(tmp_path):
    def killed(function, items):
        function(next(iter(items)))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_cohort(tmp_path / "cohort", TINY, killed)
    assert not (tmp_path / "cohort").exists()
    assert len(list(tmp_path.iterdir())) == 1  # the unfinished folder, which the next run removes


def test_a_folder_of_another_origin_is_left_alone(tmp_path):
    (tmp_path / "cohort").mkdir()
    (tmp_path / "cohort" / "mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match="set another name"):
        write_cohort(tmp_path / "cohort", TINY, map)
    assert (tmp_path / "cohort" / "mine.txt").read_text() == "keep"


def test_a_run_with_its_own_input_writes_no_cohort(tmp_path, capsys):
    main(["configs/tiny.yaml", f"paths.root={tmp_path}", "input.studies=/data/studies.parquet", "input.ehr=/data/meds"])
    assert "nothing to write" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
