"""benchmarks.gpu on a CPU, at a size a test can wait for: all but the device is real."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import PUBLISHED_EPOCHS, PUBLISHED_STUDIES, best_batches, main
from ttepretrain.errors import ConfigError

pytestmark = pytest.mark.slow

# A GPU machine has torch, numpy and safetensors; these may not be there.
ABSENT = ("monai", "omegaconf", "pyarrow", "pandas", "scipy", "deepspeed", "blosc2", "pydicom", "polars", "ray", "rich")


@pytest.fixture(scope="module")
def measured(tmp_path_factory, repository):
    """Arguments and result of a run without those packages: one encoder of MONAI, one of our own."""
    folder = tmp_path_factory.mktemp("gpu")
    for name in ABSENT:
        (folder / f"{name}.py").write_text(f"raise ModuleNotFoundError('No module named {name}', name='{name}')\n")
    arguments = ["--device", "cpu", "--size", "32", "--encoders", "resnet18", "vit_liere", "--variants"]
    arguments += ["--largest-batch", "1", "--tasks", "64", "--repeats", "1", "--output", str(folder / "out.json")]
    environment = os.environ | {"PYTHONPATH": f"{folder}:{repository}"}
    command = [sys.executable, "-m", "benchmarks.gpu", *arguments]
    subprocess.run(command, check=True, cwd=folder, env=environment, capture_output=True)
    return arguments, json.loads((folder / "out.json").read_text())


def test_every_measurement_says_what_was_measured_and_against_which_peak(measured):
    _, result = measured
    assert result["peak_tflops"] == result["matmul_tflops"]["256"] > 0
    assert result["loss"]["milliseconds"].keys() == {"ours", "dense", "head step"}
    steps = {step["variant"]: step for step in result["steps"] if step["encoder"] == "vit_liere"}
    assert steps.keys() == {"reference", "as_trained"}
    assert (steps["reference"]["precision"], steps["as_trained"]["precision"]) == ("fp32", "bf16")
    for step in steps.values():
        assert step["shape_DHW"] == [32, 32, 32]
        assert step["cts_per_second"] == pytest.approx(1 / step["seconds"]["median"], rel=0.01)
        assert step["tflops"] == pytest.approx(step["cts_per_second"] * step["tflop_per_ct"], rel=0.01)
    # 8 tokens of 16^3 voxels, 85.1 M weights in 12 layers: six operations per weight and token, forward and backward
    assert steps["as_trained"]["tflop_per_ct"] == pytest.approx(6 * 8 * 88e6 / 1e12, rel=0.05)

    of_encoder = result["summary"]["vit_liere 32x32x32"]
    hours = PUBLISHED_STUDIES * PUBLISHED_EPOCHS / steps["as_trained"]["cts_per_second"] / 3600
    assert of_encoder["gpu_hours"] == pytest.approx(hours, abs=0.01)
    assert best_batches(result["steps"]) == [("vit_liere", (32, 32, 32), 1)]


def test_an_encoder_without_its_package_is_left_out_with_the_reason(measured):
    steps = [step for step in measured[1]["steps"] if step["encoder"] == "resnet18"]
    assert [step["reason"] for step in steps] == ["ModuleNotFoundError: No module named monai"] * 2


def test_what_is_in_the_file_is_not_measured_again(measured, capsys):
    arguments, result = measured
    main([*arguments, "--resume"])
    assert capsys.readouterr().out == ""
    again = json.loads(Path(arguments[-1]).read_text())
    assert again["steps"] == result["steps"]


def test_a_cpus_figures_never_take_the_place_of_a_gpus():
    with pytest.raises(ConfigError, match=r"gpu.json is for GPUs; name another file with --output"):
        main(["--device", "cpu"])
