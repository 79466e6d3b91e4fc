"""ModelConfig: what it tells of where weights start, what makes two runs the same, and nothing heavy to import."""

import subprocess
import sys

import pytest

from ttepretrain.config import load_config
from ttepretrain.models.config import ModelConfig, ViTConfig


@pytest.mark.parametrize(
    ("init", "kind"),
    [
        ("random", "random"),
        ("runs/default/pretrain/tte/export", "export"),
        ("/data/a:b/export", "export"),
        ("inflate:/data/resnet50.pth", "inflate"),
    ],
)
def test_the_kind_of_start_is_told_without_its_path(init, kind):
    assert ModelConfig(encoder="resnet50", norm="batch", init=init).init_kind == kind


def test_a_run_stays_the_same_under_checkpointing_and_under_sizes_it_does_not_read():
    same = [ModelConfig(), ModelConfig(activation_checkpointing=True), ModelConfig(vit=ViTConfig(depth=3))]
    assert len({str(config.identity()) for config in same}) == 1
    assert (
        ModelConfig(encoder="vit_liere").identity()
        != ModelConfig(encoder="vit_liere", vit=ViTConfig(depth=3)).identity()
    )


def test_sizes_are_read_from_arguments():
    config = load_config(ModelConfig, None, ["encoder=vit_liere", "vit.patch=[8,16,16]", "vit.extent_mm=480"])
    assert config.vit == ViTConfig(patch=[8, 16, 16], extent_mm=480.0)


def test_configuration_imports_no_torch():
    code = "import sys, ttepretrain.models.config; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
