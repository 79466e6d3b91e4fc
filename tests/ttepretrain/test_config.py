"""Configuration: defaults <- YAML <- arguments; everything wrong is named with its full key."""

import subprocess
import sys

import pytest

from jobs.config import RunConfig, without_input_paths
from ttepretrain.config import dump_config, load_config, valid_keys
from ttepretrain.errors import ConfigError


def yaml_file(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


def test_arguments_win_over_the_file_and_the_file_over_the_defaults(tmp_path):
    path = yaml_file(tmp_path, "name: mine\ntrain:\n  epochs: 7\n  lr: 1e-3\n")
    config = load_config(RunConfig, path, ["train.epochs=9", "volume.shape_DHW=[16,24,32]"])
    assert (config.name, config.train.epochs, config.train.lr, config.train.batch_size) == ("mine", 9, 1e-3, 8)
    assert config.volume.resolve().shape_DHW == (16, 24, 32)


def test_the_encoder_has_a_say_in_its_rate_unless_one_is_given():
    def rate(*overrides):
        config = load_config(RunConfig, None, overrides)
        return config.train.resolve(config.model.encoder, "fp32").encoder_lr

    assert (rate(), rate("model.encoder=swin_unetr")) == (0.01, 0.001)
    assert rate("model.encoder=swin_unetr", "train.lr=.01") == 0.01


def test_what_is_derived_is_not_written_back(tmp_path):
    config = load_config(RunConfig, None)
    config.train.resolve(config.model.encoder, "fp32")
    dump_config(config, tmp_path / "config.yaml")
    assert config.train.lr is None
    assert "lr: null" in (tmp_path / "config.yaml").read_text()


def test_a_dumped_configuration_reads_back_equal(tmp_path):
    config = load_config(RunConfig, None, ["ehr.exclude=[SNOMED/1]", "train.max_steps=3"])
    dump_config(config, tmp_path / "config.yaml")
    assert load_config(RunConfig, tmp_path / "config.yaml") == config


def test_outside_prepared_the_paths_of_the_input_are_hidden_and_all_else_reads_back(tmp_path):
    config = load_config(RunConfig, None, ["input.studies=/home/canary/studies.csv", "input.keep_rsna=true"])
    dump_config(without_input_paths(config), tmp_path / "config.yaml")
    again = load_config(RunConfig, tmp_path / "config.yaml").input
    assert (again.studies, again.ehr, again.keep_rsna) == ("see prepared/config.yaml", None, True)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=3", r"unknown key train\.epoch; did you mean train\.epochs\?"),
        ("trian.lr=1e-3", r"unknown key trian\.lr; did you mean train\.lr\?"),
        ("volume.spacng_mm=[1,1,1]", r"unknown key volume\.spacng_mm; did you mean volume\.spacing_mm\?"),
        ("train.epochs=many", r"train\.epochs: .*could not be converted to Integer"),
        ("train.epochs=0", r"train\.epochs must be at least 1; got 0"),
        ("train.lr=nan", r"train\.lr must lie between 0 and 1; got nan"),
        ("train.lr=.inf", r"train\.lr must be a finite number"),
        ("ehr.followup=cutof", r"ehr\.followup must be one of .*did you mean 'cutoff'"),
        ("ehr.followup=cutoff", r"ehr\.cutoff_date is required by"),
        ("name=${oc.env:HOME}", r"name: interpolation is not allowed"),
        ("name=../elsewhere", r"name must be a folder name"),
        ("train.lr", r"arguments are key=value; got 'train\.lr'"),
        ("train=3", r"unknown key train"),
        ("ehr.label_tables=x.csv", r"ehr\.label_tables: a list is needed; write \[x\.csv\]"),
    ],
)
def test_a_wrong_argument_is_refused_with_its_key(override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(RunConfig, None, [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!python/object/apply:os.system ['touch canary']", "YAML tags are not allowed"),
        ("name: a\nname: b\n", "duplicate key"),
        ("name: &a x\n" + "".join(f"k{i}: *a\n" for i in range(30)), "more than 20 aliases"),
        ("[" * 60 + "]" * 60, "levels"),
        ("- name\n", "expected `key: value` lines"),
        ("name:\n\t- x\n", "not valid YAML"),
        ("name: " + "x" * (1 << 20), "bytes; a configuration file has at most"),
    ],
)
def test_a_hostile_file_is_refused_before_anything_is_built(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        load_config(RunConfig, yaml_file(tmp_path, text))
    assert not (tmp_path / "canary").exists()


def test_an_empty_file_and_a_byte_order_mark_are_fine(tmp_path):
    assert load_config(RunConfig, yaml_file(tmp_path, "")) == load_config(RunConfig, None)
    assert load_config(RunConfig, yaml_file(tmp_path, "\ufeffname: x\n")).name == "x"


def test_every_key_is_listed_once():
    keys = list(valid_keys(RunConfig))
    assert len(keys) == len(set(keys))
    assert {"name", "paths.root", "cohort.size", "ehr.blackout_days", "train.arm", "eval.bootstraps"} <= set(keys)


@pytest.mark.parametrize("job", ["cohort", "prepare", "pretrain", "evaluation"])
def test_every_command_answers_a_typo_with_exit_2_before_any_slow_import(repository, job):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", f"jobs.{job}", "configs/tiny.yaml", "train.epohcs=3"],
        cwd=repository, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    message = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert len(message) == 1
    assert "did you mean train.epochs?" in message[0]
    assert "omegaconf" in imported
    assert not imported & {"torch", "ray", "polars", "deepspeed", "monai", "sklearn", "pandas", "pydicom"}


def test_a_missing_configuration_file_is_named(repository):
    done = subprocess.run(
        [sys.executable, "-m", "jobs.prepare", "configs/nowhere.yaml"],
        cwd=repository, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert "configs/nowhere.yaml" in done.stderr
