"""Every arm starts from what its train studies say on their own, counted here row by row in the files of prepared/."""

import json
import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from data.prepared.opened import PreparedStudies
from data.testing import load_module
from data.volumes.cache import read_volume
from ehr.config import EhrConfig
from jobs.config import RunConfig
from jobs.objectives import objective_of
from ttepretrain.models.config import ModelConfig
from ttepretrain.training.config import TrainConfig

small = load_module(Path(__file__).with_name("small_prepared.py"))
BINS = ((1.0, 30.0), (30.0, 180.0), (180.0, 365.0), (365.0, math.inf))  # days; the blackout is the first


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("objectives") / "prepared"
    small.write_prepared(folder)
    return folder


def first_head(arm: str, prepared: Path, **ehr) -> torch.nn.Module:
    """Its last layer is zero, so that it says its bias of every scan."""
    config = RunConfig(model=ModelConfig(head_dim=3), train=TrainConfig(arm=arm), ehr=EhrConfig(**ehr))
    return objective_of(config, PreparedStudies.open(prepared, "train")).model.head


def train_rows(prepared: Path, name: str) -> pl.DataFrame:
    train = pl.read_parquet(prepared / "labels.parquet").filter(split="train").select("study_id")
    return pl.read_parquet(prepared / f"{name}.parquet").join(train, on="study_id", how="semi")


def log_hazards(days: list[float], happened: list[bool], rate_per_day: float, start: float = 1.0) -> list[float]:
    """Of every bin, with one more event and the days that one takes at the overall rate."""
    logs = []
    for low, high in BINS:
        at_risk = sum(max(0.0, min(end, high) - max(low, start)) for end in days)
        events = sum(yes and low < end <= high for end, yes in zip(days, happened))
        logs.append(math.log((events + 1) / (at_risk + 1 / rate_per_day)))
    return logs


def test_hazards_start_from_the_train_studies_events(prepared):
    bias_TK = first_head("tte", prepared).bias_TK.detach().numpy()
    labels = train_rows(prepared, "labels").to_dicts()
    for k, task in enumerate(json.loads((prepared / "tasks.json").read_text())["tasks"]):
        events = [dict(zip(row["task_index"], row["event_days"])) for row in labels]
        days = [of_row.get(k, row["censor_days"]) for of_row, row in zip(events, labels)]
        expected_T = log_hazards(days, [k in of_row for of_row in events], task["rate_per_day"])
        np.testing.assert_allclose(bias_TK[:, k], expected_T, rtol=1e-6)


def test_visit_codes_start_from_their_share_of_the_train_studies(prepared):
    bias_1K = first_head("visit", prepared).bias_TK.detach().numpy()
    visits = train_rows(prepared, "labels")["visit_index"].to_list()
    coded_K = [sum(k in visit for visit in visits) for k in range(bias_1K.shape[1])]
    expected_K = [math.log((coded + 0.5) / (len(visits) - coded + 0.5)) for coded in coded_K]
    assert len(set(expected_K)) > 1
    np.testing.assert_allclose(bias_1K, [expected_K], rtol=1e-6)


def test_phenotypes_start_from_the_train_studies_answers_and_events(prepared):
    head = first_head("mtl", prepared)
    answers = train_rows(prepared, "phenotypes").filter(horizon_days=30.0)["label"].to_list()
    expected = math.log((answers.count(True) + 0.5) / (answers.count(False) + 0.5))
    assert head.answers.bias_TK.tolist() == [[pytest.approx(expected, rel=1e-6)]]
    timed = train_rows(prepared, "phenotypes").filter(pl.col("horizon_days").is_null())
    days, happened = timed["time_days"].to_list(), timed["event"].to_list()
    expected_T = log_hazards(days, happened, sum(happened) / (sum(days) - len(days)))
    np.testing.assert_allclose(head.hazards.bias_TK.detach().numpy()[:, 0], expected_T, rtol=1e-6)


def test_phenotypes_that_start_later_are_at_risk_from_then_on(prepared, tmp_path):
    """The days between the blackout and `start_days` are nobody's exposure."""
    start = 4.0
    (tmp_path / "phenotypes.yaml").write_text(f"phenotypes: {{edema: {{codes: [E], start_days: {start}}}}}")
    head = first_head("mtl", prepared, phenotypes=str(tmp_path / "phenotypes.yaml"))
    timed = train_rows(prepared, "phenotypes").filter(pl.col("horizon_days").is_null())
    days, happened = timed["time_days"].to_list(), timed["event"].to_list()
    rate = sum(happened) / sum(max(0.0, end - start) for end in days)
    found = head.hazards.bias_TK.detach().numpy()[:, 0]
    np.testing.assert_allclose(found, log_hazards(days, happened, rate, start), rtol=1e-6)
    assert found[0] - first_head("mtl", prepared).hazards.bias_TK[0, 0] > 0.03


def test_reconstruction_starts_from_the_mean_of_the_train_volumes(prepared):
    volumes = train_rows(prepared, "volumes")
    hu_NDHW = np.stack([read_volume(prepared / path, sha) for path, sha in volumes.select("path", "checksum").rows()])
    [(centre, width)] = small.SPEC.windows
    expected = np.clip((hu_NDHW.astype(float) - centre) / (width / 2), -1, 1).mean()
    bias = first_head("ssl", prepared).project.bias.detach().numpy()
    np.testing.assert_allclose(bias, np.full(8**3, expected), rtol=1e-5)
