"""The start from an export of ours: every weight of the same network, or a refusal that names the difference."""

import logging
import re

import numpy as np
import pytest
import torch

from ttepretrain.errors import ConfigError, IntegrityError
from ttepretrain.export.initial_weights import initial_digest, read_initial_weights
from ttepretrain.export.write import write_export
from ttepretrain.files import sha256_of
from ttepretrain.models.config import ModelConfig, ViTConfig
from ttepretrain.models.encoder import Encoder, build_encoder
from ttepretrain.models.model import build_model
from ttepretrain.testing import random_task_set, write_tiny_export
from ttepretrain.volume.spec import VolumeSpec


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start") / "export"
    return folder, write_tiny_export(folder)


def build(config: ModelConfig, channels: int, seed: int = 0) -> Encoder:
    return build_encoder(config, channels, seed, weights=read_initial_weights(config))


def test_random_weights_are_read_from_nowhere():
    assert read_initial_weights(ModelConfig()) is None
    assert initial_digest(ModelConfig()) is None


def test_the_digest_is_that_of_the_exports_manifest_or_of_the_file(export, tmp_path):
    assert initial_digest(ModelConfig(init=str(export[0]))) == sha256_of(export[0] / "manifest.json")
    (tmp_path / "weights.pth").write_bytes(b"weights")
    config = ModelConfig("resnet18", norm="batch", init=f"inflate:{tmp_path / 'weights.pth'}")
    assert initial_digest(config) == sha256_of(tmp_path / "weights.pth")
    (tmp_path / "weights.pth").unlink()
    with pytest.raises(ConfigError, match=r"model.init cannot be read: No such file"):
        initial_digest(config)


def test_init_takes_every_encoder_weight_of_an_export(export):
    folder, model = export
    loaded = build(ModelConfig(init=str(folder)), 2, seed=99).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in model.encoder.state_dict().items())


@pytest.mark.parametrize(
    ("config", "channels", "error", "message"),
    [
        (
            {"encoder": "resnet18"},
            2,
            ConfigError,
            "model.encoder is 'resnet18' and the export in model.init has",
        ),
        ({"norm": "batch"}, 2, ConfigError, "model.norm is 'batch' and the export"),
        ({}, 3, IntegrityError, r"1 weights of another shape or dtype: trunk.conv0.weight float32\[64, 2, 7, 7, 7\]"),
    ],
)
def test_init_from_an_export_of_another_network_is_refused(export, config, channels, error, message):
    with pytest.raises(error, match=message):
        build(ModelConfig(init=str(export[0]), **config), channels)


def test_init_from_a_folder_that_is_no_export_is_refused(tmp_path):
    with pytest.raises(IntegrityError, match=r"no complete export: manifest.json"):
        read_initial_weights(ModelConfig(init=str(tmp_path)))


def test_an_export_says_how_much_of_it_matched(tmp_path, caplog):
    write_tiny_export(tmp_path / "export")
    with caplog.at_level(logging.INFO, "ttepretrain"):
        build(ModelConfig(init=str(tmp_path / "export")), 2)
    assert re.fullmatch(
        r"model.init: trained on HU windows \(\(-600.0, 1500.0\), \(40.0, 400.0\)\) at \(12.0, 11.0, 10.0\) mm, "
        r"preprocessing version \d+\n"
        r"model.init: export: (\d+) weights matched, 0 unexpected, missing: none, left out: none",
        "\n".join(caplog.messages),
    )


def test_an_export_with_other_positions_is_refused_though_its_weights_would_fit(tmp_path):
    spec = VolumeSpec((12.0, 11.0, 10.0), (16, 16, 16), (-1024, 3071), ((40.0, 400.0),))
    sizes = {"patch": [8, 8, 8], "depth": 1, "width": 12, "heads": 2, "block": 2}
    tasks = random_task_set(np.random.default_rng(0), 2)
    theirs = ModelConfig("vit_liere", head_dim=2, vit=ViTConfig(**sizes))
    model = build_model(theirs, spec, torch.zeros(tasks.num_bins, 2), 0)
    write_export(tmp_path / "export", model, theirs, spec, tasks, {"synthetic": True}, min_patients=1)
    ours = ModelConfig("vit_liere", init=str(tmp_path / "export"), vit=ViTConfig(**sizes, extent_mm=300.0))
    with pytest.raises(ConfigError, match=r"model.vit is .*extent_mm=300.* has .*extent_mm=None"):
        read_initial_weights(ours)
