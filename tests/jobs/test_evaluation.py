"""jobs.evaluation on a small folder shaped like the contract, with a finding planted in the voxels.

N subjects with one study each: the brightness of a block in the chest drives the hazard of `edema`; `cardiomegaly` is
drawn without it; `rare` hardly happens. The exported encoder is real, never trained, and another one than base_random.
"""

import json
import shutil
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from data.parquet_files import write_parquet
from data.prepared import schema
from data.prepared.opened import PreparedStudies
from data.prepared.random_folder import cached_volume, label_table
from data.prepared.write import volume_table, write_prepared
from data.subjects.keys import fitted_on, key_table
from data.subjects.leakage import check_leakage
from jobs import embedding, evaluation
from jobs.config import RunConfig
from ttepretrain.config import dump_config, load_config
from ttepretrain.errors import ConfigError, IntegrityError, LeakageError
from ttepretrain.evaluation.bootstrap import patient_weights, percentile_interval
from ttepretrain.evaluation.concordance import harrell_c, harrell_c_weighted
from ttepretrain.export.load import load_model
from ttepretrain.export.write import write_export
from ttepretrain.files import sha256_of, write_json
from ttepretrain.labels import LabelTable, Ragged
from ttepretrain.models.encoder import build_encoder
from ttepretrain.models.model import build_model
from ttepretrain.testing import random_task_set
from ttepretrain.volume.spec import VolumeSpec

pytestmark = pytest.mark.slow

N = 240
STUDY_IDS = [f"STUDY-{i:04d}" for i in range(N)]
SPEC = VolumeSpec((5.0, 4.0, 3.0), (16, 18, 20), (-1024, 3071), ((-600.0, 1500.0), (40.0, 400.0)))
SALT = b"s" * 32
CONFIG = """
name: planted
volume: {spacing_mm: [5, 4, 3], shape_DHW: [16, 18, 20], windows: [[-600, 1500], [40, 400]]}
model: {encoder: resnet18, head_dim: 4}
train: {epochs: 1, batch_size: 4, seed: 3}
eval: {bootstraps: 100, horizons_days: [180]}
"""


def studies_frame():
    split = np.repeat(["train", "tuning", "held_out"], [140, 30, 70])
    return pl.DataFrame({"study_id": STUDY_IDS, "subject_id": np.arange(N) + 7_000_000_000, "split": split})


def survival(random, log_hazard):
    time, censor = random.exponential(300 * np.exp(-log_hazard)), 20 + random.exponential(700, size=N)
    return time <= censor, 1 + np.minimum(time, censor)


def phenotype_rows(name, event, time, horizons):
    rows = []
    for horizon in (None, *horizons):
        known = event | (time >= (horizon or 0))
        happened = event & (time <= (horizon or np.inf))
        label = [bool(h) if k else None for k, h in zip(known, happened)]
        rows.append(
            pl.DataFrame(
                {
                    "study_id": STUDY_IDS,
                    "phenotype": name,
                    "kind": "prognosis",
                    "horizon_days": pl.Series([horizon] * N, dtype=pl.Float64),
                    "label": pl.Series(label, dtype=pl.Boolean),
                    "event": event,
                    "competing": False,
                    "time_days": time,
                }
            )
        )
    return pl.concat(rows)


def write_planted(folder, signal, outcome_signal):
    random = np.random.default_rng(4)
    folder.mkdir(parents=True)
    frame = studies_frame()
    volumes = []
    for study_id, value in zip(frame["study_id"], signal):
        hu = random.normal(-700, 40, SPEC.shape_DHW)
        hu[4:12, 5:14, 6:15] += 500 * (1 + value / 2)
        volumes.append(cached_volume(folder, study_id, hu.clip(-1024, 3071).astype(np.int16), SPEC))
    age = pl.Series([None, *random.uniform(30, 90, N - 1)], dtype=pl.Float64)
    sex = pl.Series([None, *random.choice(["F", "M"], N - 1)], dtype=pl.String)
    edema, cardiomegaly = survival(random, 1.5 * outcome_signal), survival(random, random.normal(size=N))
    rare = (np.arange(N) % 60 == 0, np.full(N, 500.0))
    rows = [phenotype_rows("edema", *edema, [180.0]), phenotype_rows("cardiomegaly", *cardiomegaly, [])]
    rows.append(phenotype_rows("rare", *rare, []))
    tasks = replace(
        random_task_set(random, 6), fitted_on=fitted_on(SALT, frame.filter(pl.col("split") == "train")["subject_id"])
    )
    tasks.save(folder / "tasks.json")
    # an event of the first task after twenty days in every row
    nothing = Ragged.of_mask(np.zeros((N, 6), bool))
    first = Ragged.of_mask(np.eye(1, 6, dtype=bool).repeat(N, 0))
    labels = LabelTable(np.full(N, 400.0), first, np.full(N, 20.0), nothing, nothing)
    tables = {
        schema.KEYS: key_table(SALT, frame),
        schema.LABELS: label_table(frame, labels),
        schema.VOLUMES: volume_table(volumes, set()),
        schema.COVARIATES: covariates(frame["study_id"], age, sex),
        schema.PHENOTYPES: pl.concat(rows).sort("study_id", maintain_order=True),
    }
    counts = {"given": N + 15, "NO_SUBJECT": 3, "OUTSIDE_OBSERVATION": 0, "NO_FOLLOW_UP": 12, "labelled": N}
    ready = {"train": 140, "tuning": 30, "held_out": 70}
    summary = {"splits": {"ready": ready}, "labels": {"studies": counts}, "quarantine": {"CRC": 2}}
    summary |= {"volumes": {"flags": {"GANTRY_TILT": 30, "FLIPPED": 4}}}
    write_prepared(folder, tables, ["tasks.json"], SPEC, summary)
    return tasks


def covariates(study_id, age, sex):
    known = {"study_id": study_id, "age_years": age, "sex": sex, "past_codes": [[]] * N}
    types = pl.Schema(schema.COVARIATES.schema)
    frame = pl.DataFrame(known, schema_overrides={"past_codes": types["past_codes"]})
    return frame.with_columns(pl.lit(None, types[name]).alias(name) for name in types if name not in known)


def write_run(root, signal, outcome_signal):
    """Folders cohort, prepared and pretrain/tte of a run; its configuration file."""
    path = root / "planted.yaml"
    path.write_text(CONFIG + f"paths: {{root: {root}}}\n")
    config = load_config(RunConfig, path)
    tasks = write_planted(config.prepared_folder, signal, outcome_signal)
    truth = config.cohort_folder / "truth"
    truth.mkdir(parents=True)
    visible = {"edema": 1.5 * outcome_signal, "cardiomegaly": np.zeros(N), "rare": np.zeros(N)}
    oracle = [
        pl.DataFrame({"study_id": STUDY_IDS, "phenotype": name, "visible_risk": risk}) for name, risk in visible.items()
    ]
    write_parquet(pl.concat(oracle), truth / "oracle.parquet")
    pretrain = config.pretrain_folder("tte")
    model = build_model(config.model, SPEC, torch.zeros(tasks.num_bins, tasks.num_tasks), seed=8)
    write_export(pretrain / "export", model, config.model, SPEC, tasks, {"synthetic": True}, min_patients=3)
    dump_config(config, pretrain / "config.yaml")
    write_json(pretrain / "provenance.json", {"model_init_sha256": None})
    keys = pl.read_parquet(config.prepared_folder / "keys.parquet")
    seen = keys.filter(pl.col("split") != "held_out").select("subject_key", "split").unique().sort("subject_key")
    write_parquet(seen, pretrain / "subjects.parquet")
    lines = [{"step": s, "loss": 1 / (s + 1), "loss_tuning": 0.5 if s % 5 == 0 else None} for s in range(20)]
    (pretrain / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path, config


@pytest.fixture(scope="module")
def signal():
    return np.random.default_rng(9).normal(size=N)


@pytest.fixture(scope="module")
def run(tmp_path_factory, signal):
    path, config = write_run(tmp_path_factory.mktemp("planted"), signal, signal)
    evaluation.main([str(path)])
    return path, config


@pytest.fixture(scope="module")
def metrics(run):
    return pl.read_csv(run[1].eval_folder / "metrics.csv", infer_schema_length=None)


def cell(metrics, split="held_out", baseline=None, metric="harrell_c", **wanted):
    rows = metrics.filter(split=split, metric=metric, **wanted)
    rows = rows.filter(pl.col("baseline").is_null() if baseline is None else pl.col("baseline") == baseline)
    (row,) = rows.to_dicts()
    return row


def test_the_planted_finding_is_found_and_what_is_not_in_the_image_is_not(metrics):
    for arm in ("base_random", "tte", "oracle"):
        assert cell(metrics, arm=arm, phenotype="edema")["value"] > 0.7
        assert cell(metrics, arm=arm, phenotype="edema", metric="auroc")["value"] > 0.7
        assert abs(cell(metrics, arm=arm, phenotype="cardiomegaly")["value"] - 0.5) < 0.12
    assert abs(cell(metrics, arm="demographics", phenotype="edema")["value"] - 0.5) < 0.15


def test_metrics_have_the_columns_splits_and_arms_of_the_contract(run, metrics):
    assert metrics.columns == [
        "split", "arm", "baseline", "probe", "phenotype", "metric", "horizon_days", "value", "lo", "hi", "n", "events",
        "reason",
    ]  # fmt: skip
    assert set(metrics["split"]) == {"train", "tuning", "held_out"}
    assert set(metrics["arm"]) == {"demographics", "base_random", "tte", "oracle"}
    rows = json.loads((run[1].eval_folder / "metrics.json").read_text())
    assert list(rows[0]) == metrics.columns or sorted(rows[0]) == sorted(metrics.columns)
    assert len(rows) == len(metrics)
    valued = metrics.filter(pl.col("value").is_not_null(), pl.col("lo").is_not_null())
    assert (valued["lo"] <= valued["hi"]).all()
    assert metrics.filter(pl.col("value").is_null())["reason"].is_not_null().all()
    rare = cell(metrics, arm="tte", phenotype="rare")
    assert rare["value"] is None
    assert rare["reason"].startswith("fewer than 5 train studies")


def test_metrics_follow_from_predictions_phenotypes_and_keys_alone(run, metrics):
    config = run[1]
    predictions = pl.read_parquet(config.eval_folder / "predictions.parquet")
    assert predictions.columns == [
        "study_key", "subject_key", "split", "arm", "probe", "phenotype", "horizon_days", "risk"
    ]  # fmt: skip
    keys = pl.read_parquet(config.prepared_folder / "keys.parquet").select("study_id", "study_key")
    phenotypes = pl.read_parquet(config.prepared_folder / "phenotypes.parquet").join(keys, on="study_id")
    rows = phenotypes.filter(phenotype="edema").filter(pl.col("horizon_days").is_null())
    risk = {}
    for arm in ("base_random", "tte"):
        chosen = predictions.filter(split="held_out", arm=arm, phenotype="edema")
        joined = rows.join(chosen.filter(pl.col("horizon_days").is_null()), on="study_key").sort("subject_key")
        event, time, risk[arm] = (joined[name].to_numpy() for name in ("event", "time_days", "risk"))
        assert harrell_c(event, time, risk[arm]) == pytest.approx(cell(metrics, arm=arm, phenotype="edema")["value"])
    # The interval too, from the stated seed: resamples are of all subjects, all splits together.
    everyone = predictions.filter(arm="tte", phenotype="edema").filter(pl.col("horizon_days").is_null())
    weights = patient_weights(everyone["subject_key"].to_numpy(), config.eval.bootstraps, config.eval.seed)
    column = {key: i for i, key in enumerate(everyone["study_key"])}
    weights = weights[:, [column[key] for key in joined["study_key"]]]
    c = {arm: harrell_c_weighted(event, time, risk[arm], weights) for arm in risk}
    difference = cell(metrics, arm="tte", baseline="base_random", phenotype="edema")
    lo, hi = percentile_interval((c["tte"] - c["base_random"])[1:])
    assert (difference["lo"], difference["hi"]) == pytest.approx((lo, hi))


def test_every_study_of_every_split_is_embedded_and_predicted(run):
    embeddings = pl.read_parquet(run[1].eval_folder / "embeddings.parquet")
    assert embeddings.schema == {
        "study_key": pl.String, "arm": pl.String, "split": pl.String, "embedding": pl.List(pl.Float32)
    }  # fmt: skip
    assert embeddings.group_by("arm").len()["len"].to_list() == [N, N]
    predictions = pl.read_parquet(run[1].eval_folder / "predictions.parquet")
    assert (predictions.group_by("arm", "phenotype", "horizon_days").len()["len"] == N).all()
    assert predictions["risk"].is_finite().all()


def test_base_random_is_the_encoder_the_run_started_from(run):
    config = run[1]
    arm = embedding.open_start("base_random", [config.pretrain_folder("tte")], SPEC, "cpu")
    start = build_model(config.model, SPEC, torch.zeros(4, 6), seed=config.train.seed).encoder.state_dict()
    ours = arm.embedder.encoder.state_dict()
    assert start.keys() == ours.keys()
    assert all(torch.equal(start[name], ours[name]) for name in start)
    other = build_encoder(config.model, SPEC.num_channels, seed=8).state_dict()
    assert not all(torch.equal(start[name], other[name]) for name in start)


@pytest.fixture
def started_from_export(run, tmp_path):
    """Folder of arm ssl, whose weights started as those that arm tte exported; the copy of that export."""
    config, export, folder = run[1], tmp_path / "first", tmp_path / "ssl"
    shutil.copytree(config.pretrain_folder("tte") / "export", export)
    folder.mkdir()
    dump_config(replace(config, model=replace(config.model, init=str(export))), folder / "config.yaml")
    write_json(folder / "provenance.json", {"model_init_sha256": sha256_of(export / "manifest.json")})
    return folder, export


def test_base_is_the_encoder_with_the_loaded_weights_and_no_step(run, started_from_export):
    folder, export = started_from_export
    tte = run[1].pretrain_folder("tte")
    base = embedding.open_start("base", [tte, folder], SPEC, "cpu")
    expected = load_model(export).encoder.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in base.embedder.encoder.state_dict().items())
    untrained = embedding.open_start("base_random", [tte, folder], SPEC, "cpu")
    assert untrained.made_from != base.made_from


def test_the_start_that_is_asked_for_must_be_the_runs_own(run, started_from_export, tmp_path):
    tte, (folder, export) = run[1].pretrain_folder("tte"), started_from_export
    with pytest.raises(ConfigError, match="started from random weights; name base_random in place of base"):
        embedding.open_start("base", [tte], SPEC, "cpu")
    with pytest.raises(ConfigError, match="started from loaded weights; name base in place of base_random"):
        embedding.open_start("base_random", [folder], SPEC, "cpu")
    other = tmp_path / "visit"
    shutil.copytree(tte, other)
    dump_config(replace(run[1], train=replace(run[1].train, seed=4)), other / "config.yaml")
    with pytest.raises(ConfigError, match="tte and visit started from different encoders"):
        embedding.open_start("base_random", [tte, other], SPEC, "cpu")
    (export / "manifest.json").write_text("{}")
    with pytest.raises(IntegrityError, match=r"model.init of arm ssl has changed"):
        embedding.open_start("base", [folder], SPEC, "cpu")


def test_every_trained_arm_can_be_compared(run, tmp_path):
    """Its encoder is its own export's; one that is not trained yet is asked for by name."""
    path, config = run
    model = build_model(config.model, SPEC, torch.zeros(4, 6), seed=11)
    tasks = PreparedStudies.open(config.prepared_folder, "train").tasks
    export = tmp_path / "visit" / "export"
    write_export(export, model, config.model, SPEC, tasks, {"synthetic": True}, min_patients=3, arm="visit")
    arm = embedding.open_trained(export.parent, SPEC, "cpu")
    expected = model.encoder.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in arm.embedder.encoder.state_dict().items())
    with pytest.raises(ConfigError, match="make pretrain ARM=ssl"):
        evaluation.main([str(path), "eval.arms=[tte,ssl]"])


def test_a_second_run_embeds_nothing_again_and_writes_the_same(run, monkeypatch):
    path, config = run
    before = {name: (config.eval_folder / name).read_bytes() for name in ("metrics.csv", "predictions.parquet")}
    monkeypatch.setattr(embedding, "_embed", lambda *_: pytest.fail("embedded again"))
    evaluation.main([str(path)])
    assert before == {name: (config.eval_folder / name).read_bytes() for name in before}


def test_another_export_is_embedded_again(run, monkeypatch):
    config = run[1]
    splits = [PreparedStudies.open(config.prepared_folder, split) for split in ("train", "tuning", "held_out")]
    asked = []
    monkeypatch.setattr(embedding, "_embed", lambda arm, *_: asked.append(arm.name) or np.zeros((N, 3), np.float32))
    monkeypatch.setattr(embedding, "sha256_of", lambda _: "other weights")
    monkeypatch.setattr(embedding, "_write", lambda *_: None)
    embedding.embed_arms(config, splits, "cpu")
    assert asked == ["tte"]


def test_the_report_stands_alone_and_names_nobody(run):
    page = (run[1].eval_folder / "report.html").read_text()
    assert "http://" not in page
    assert "https://" not in page
    assert "<script" not in page
    assert page.count("data:image/svg+xml") == 2
    assert page.count("data:image/png") == 1
    assert "Synthetic data" in page
    keys = pl.read_parquet(run[1].prepared_folder / "keys.parquet")
    for column in ("study_id", "subject_id", "study_key", "subject_key"):
        assert not any(str(value) in page for value in keys[column])
    assert "&lt; 11" in page  # four studies have the event of `rare`
    # 3, 2 and 12 studies were lost: the small counts stand together, with the one that would tell them
    together = "left out: no record in the EHR, left out: no follow-up after the blackout, refused: CRC"
    assert f"{together}</td><td class=v>17<" in page


def test_shuffled_outcomes_give_about_a_half(tmp_path, signal):
    path, config = write_run(tmp_path, signal, np.random.default_rng(2).permutation(signal))
    evaluation.main([str(path)])
    rows = pl.read_csv(config.eval_folder / "metrics.csv", infer_schema_length=None)
    for arm in ("base_random", "tte"):
        assert abs(cell(rows, arm=arm, phenotype="edema")["value"] - 0.5) < 0.12


def edit_subjects(config, tmp_path, frame):
    """A copy of pretrain/tte with another subjects.parquet."""
    copy = tmp_path / "tte"
    copy.mkdir()
    (copy / "export").symlink_to((config.pretrain_folder("tte") / "export").absolute())
    write_parquet(frame, copy / "subjects.parquet")
    return copy


def test_a_held_out_subject_in_pretraining_is_refused(run, tmp_path):
    config = run[1]
    seen = pl.read_parquet(config.pretrain_folder("tte") / "subjects.parquet")
    keys = pl.read_parquet(config.prepared_folder / "keys.parquet")
    leak = keys.filter(split="held_out").select("subject_key", pl.lit("train").alias("split")).head(2)
    check_leakage(config.prepared_folder, config.pretrain_folder("tte"))
    with pytest.raises(LeakageError, match="2 held-out subjects"):
        check_leakage(config.prepared_folder, edit_subjects(config, tmp_path, pl.concat([seen, leak])))


def test_held_out_subjects_behind_the_weights_a_run_started_from_are_refused(run, tmp_path):
    """arm tte <- its model.init, an export of another run <- that run's subjects."""
    root = tmp_path / "copy"
    shutil.copytree(run[1].folder, root / "planted")
    first, path = tmp_path / "first", tmp_path / "run.yaml"
    first.mkdir()
    keys = pl.read_parquet(run[1].prepared_folder / "keys.parquet")
    write_parquet(
        keys.filter(split="held_out").select("subject_key", split=pl.lit("train")), first / "subjects.parquet"
    )
    dump_config(run[1], first / "config.yaml")
    started = replace(run[1], model=replace(run[1].model, init=str(first / "export")))
    dump_config(started, root / "planted" / "pretrain" / "tte" / "config.yaml")
    path.write_text(CONFIG + f"paths: {{root: {root}}}\n")
    with pytest.raises(LeakageError, match=f"70 held-out subjects of .* in the pretraining of {first}"):
        evaluation.main([str(path)])


def test_subjects_under_another_salt_cannot_be_checked_and_are_refused(run, tmp_path):
    config = run[1]
    frame = studies_frame().filter(pl.col("split") != "held_out")
    other = key_table(b"t" * 32, frame).select("subject_key", "split")
    with pytest.raises(LeakageError, match="its salt is another one"):
        check_leakage(config.prepared_folder, edit_subjects(config, tmp_path, other))


def test_tasks_fitted_on_other_subjects_are_refused(run, tmp_path):
    config = run[1]
    copy = tmp_path / "prepared"
    copy.mkdir()
    (copy / "keys.parquet").symlink_to((config.prepared_folder / "keys.parquet").absolute())
    document = json.loads((config.prepared_folder / "tasks.json").read_text())
    document["fitted_on"]["hash"] = "0" * 32
    (copy / "tasks.json").write_text(json.dumps(document))
    with pytest.raises(LeakageError, match="fitted on 140 train subjects"):
        check_leakage(copy, config.pretrain_folder("tte"))


def test_an_unknown_horizon_and_a_missing_stage_are_answered_with_the_remedy(run, tmp_path):
    path, _ = run
    with pytest.raises(ConfigError, match=r"no phenotype has \[90.0\]; the prepared ones are \[180.0\]"):
        evaluation.main([str(path), "eval.horizons_days=[90]"])
    with pytest.raises(ConfigError, match="make prepare"):
        evaluation.main([str(path), f"paths.root={tmp_path}"])
