"""`ttepretrain info`, `embed` and `risk`: output files, quarantine, resuming, exit codes."""

import os
import subprocess
import sys

import nibabel
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch

from ttepretrain import load_encoder
from ttepretrain.commands import batches
from ttepretrain.commands.main import run
from ttepretrain.errors import BadDataError, BadStudy, ConfigError, IntegrityError
from ttepretrain.export.folder import read_export
from ttepretrain.export.write import load_model, write_export
from ttepretrain.survival.curves import cumulative_incidence
from ttepretrain.testing import write_tiny_export
from ttepretrain.volume import preprocess


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "export"
    write_tiny_export(folder)
    return folder


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Three phantoms, oblique and anisotropic, and a file that is none."""
    folder = tmp_path_factory.mktemp("scans")
    for i, name in enumerate(["a.nii.gz", "sub/b.nii", "sub/c.nii.gz"]):
        shape = (56, 47, 41)
        grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
        radius = np.sqrt(((grid / np.array([0.8, 0.6 - 0.1 * i, 0.9])[:, None, None, None]) ** 2).sum(0))
        hu = np.where(radius < 0.4, -800, np.where(radius < 1, 40 + 20 * i, -1000)).astype(np.int16)
        affine = np.diag([5.0, 6.0, 7.0, 1.0])
        affine[0, 1] = 0.3
        (folder / name).parent.mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(hu, affine), folder / name)
    (folder / "bad.nii").write_bytes(b"not a scan")
    return folder


def embed(export, *inputs, output, options=()) -> dict[str, np.ndarray]:
    run(["embed", str(export), *map(str, inputs), "-o", str(output), *options])
    return read(output)


def read(output) -> dict[str, np.ndarray]:
    table = parquet.read_table(output)
    assert [str(field.type) for field in table.schema] == ["string", "list<element: float>"]
    return dict(zip(table["key"].to_pylist(), table["embedding"].to_numpy()))


def quarantine(output) -> list[dict]:
    return parquet.read_table(output.with_name("quarantine.parquet")).to_pylist()


def test_every_usable_scan_is_embedded_and_the_others_are_in_quarantine(export, scans, tmp_path, capsys):
    output = tmp_path / "embeddings.parquet"
    rows = embed(export, scans, output=output, options=["--batch-size", "2"])
    assert list(rows) == ["a.nii.gz", "sub/b.nii", "sub/c.nii.gz"]
    expected_NF = load_encoder(export).embed([scans / key for key in rows], batch_size=2)
    np.testing.assert_array_equal(np.stack(list(rows.values())), expected_NF)
    assert len(np.unique(expected_NF.round(4), axis=0)) == 3
    assert [(row["key"], row["code"]) for row in quarantine(output)] == [("bad.nii", "NOT_NIFTI")]
    assert "3 of 4 scans are in embeddings.parquet" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["embeddings.parquet", "quarantine.parquet"]


def test_a_table_brings_its_own_keys(export, scans, tmp_path):
    table = tmp_path / "scans.csv"
    table.write_text(f"key,image\nS-02,{scans / 'a.nii.gz'}\nS-01,{os.path.relpath(scans / 'sub/b.nii', tmp_path)}\n")
    assert list(embed(export, table, output=tmp_path / "e.parquet")) == ["S-02", "S-01"]
    assert not (tmp_path / "quarantine.parquet").exists()


def test_running_again_reads_only_what_is_missing(export, scans, tmp_path, monkeypatch, capsys):
    output = tmp_path / "e.parquet"
    first = embed(export, scans / "sub", output=output)
    seen = []

    def reading(path, spec, real=preprocess.preprocess_ct):
        seen.append(path.name)
        return real(path, spec)

    monkeypatch.setattr(batches, "preprocess_ct", reading)
    again = embed(export, scans / "sub", scans / "a.nii.gz", output=output)
    assert seen == ["a.nii.gz"]
    assert "3 scans, 2 of them embedded before" in capsys.readouterr().out
    assert list(again) == ["b.nii", "c.nii.gz", "a.nii.gz"]
    assert all(np.array_equal(first[key], again[key]) for key in first)
    embed(export, scans / "sub", output=output)
    assert seen == ["a.nii.gz"]


def test_a_killed_run_keeps_what_it_saved(export, scans, tmp_path, monkeypatch):
    output = tmp_path / "e.parquet"
    monkeypatch.setattr("ttepretrain.commands.main.SAVE_SECONDS", 0.0)

    def reading(path, spec, real=preprocess.preprocess_ct):
        if path.name == "c.nii.gz":
            raise KeyboardInterrupt
        return real(path, spec)

    with monkeypatch.context() as patch:
        patch.setattr(batches, "preprocess_ct", reading)
        with pytest.raises(KeyboardInterrupt):
            embed(export, scans / "sub", output=output, options=["--batch-size", "1"])
    assert list(read(output)) == ["b.nii"]
    assert list(embed(export, scans / "sub", output=output)) == ["b.nii", "c.nii.gz"]


def test_rows_of_another_export_are_computed_again(export, scans, tmp_path, capsys):
    output = tmp_path / "e.parquet"
    first = embed(export, scans / "sub", output=output)
    write_tiny_export(tmp_path / "other", seed=1)
    other = embed(tmp_path / "other", scans / "sub/b.nii", output=output)
    assert "2 rows in e.parquet are of another export and will be replaced" in capsys.readouterr().out
    assert list(other) == ["b.nii"]
    assert not np.array_equal(other["b.nii"], first["b.nii"])


def test_quarantine_follows_the_latest_attempt_and_keeps_the_scans_not_tried(export, scans, tmp_path):
    output, broken = tmp_path / "e.parquet", tmp_path / "later.nii.gz"
    broken.write_bytes(b"still copying")
    with pytest.raises(BadDataError, match=r"none of 2 scans can be used; quarantine.parquet has the reasons"):
        embed(export, scans / "bad.nii", broken, output=output)
    assert {row["key"] for row in quarantine(output)} == {"bad.nii", "later.nii.gz"}
    broken.write_bytes((scans / "a.nii.gz").read_bytes())
    assert list(embed(export, broken, output=output)) == ["later.nii.gz"]
    assert [row["key"] for row in quarantine(output)] == ["bad.nii"]


def test_output_that_is_not_ours_is_never_overwritten(export, scans, tmp_path):
    theirs = tmp_path / "e.parquet"
    theirs.write_text("my notes")
    with pytest.raises(ConfigError, match="exists and is not a parquet file; name another"):
        embed(export, scans / "a.nii.gz", output=theirs)
    assert theirs.read_text() == "my notes"
    parquet.write_table(pa.table({"key": ["a"]}), theirs)
    with pytest.raises(ConfigError, match="exists and was not written by this command; name another"):
        embed(export, scans / "a.nii.gz", output=theirs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch-size", "0"], "--batch-size must be at least 1; got 0"),
        (["-o", "/nowhere/e.parquet"], "does not exist"),
    ],
)
def test_impossible_options_are_refused_before_any_work(export, scans, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        run(["embed", str(export), str(scans), "-o", str(tmp_path / "e.parquet"), *options])


def test_info_describes_the_export(export, capsys):
    run(["info", str(export)])
    text = capsys.readouterr().out
    for expected in (
        "densenet121, norm group, 1024 features", "29 x 30 x 31 voxels", "12 x 11 x 10 mm", "centre -600 width 1500",
        "5; the first: TEST/0, TEST/1, TEST/2", "0, 30, 180, 365, inf days", "100 train subjects",
        "Trained on synthetic data",
    ):  # fmt: skip
        assert expected in text


def test_a_folder_that_is_no_export_is_an_integrity_error(tmp_path, scans):
    with pytest.raises(IntegrityError, match="is no complete export"):
        run(["info", str(tmp_path)])
    with pytest.raises(IntegrityError, match="is no complete export"):
        run(["embed", str(tmp_path), str(scans), "-o", str(tmp_path / "e.parquet")])


def test_a_refused_scan_stops_the_library_call_by_name(export, scans):
    with pytest.raises(BadStudy, match="NOT_NIFTI"):
        load_encoder(export).embed([scans / "a.nii.gz", scans / "bad.nii"])


@pytest.mark.parametrize(
    ("arguments", "code"),
    [([], 2), (["info"], 2), (["info", "nowhere"], 4), (["--help"], 0), (["embed", "x", "y"], 2)],
)
def test_exit_codes_of_the_command(arguments, code, tmp_path):
    command = [sys.executable, "-c", "from ttepretrain.commands.main import main; main()", *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=path_to_library(), capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr


def path_to_library() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def test_risk_is_the_models_cumulative_incidence(export, scans, tmp_path, capsys):
    """One row per usable scan, task and horizon; the refused scan is in quarantine; synthetic weights are said so."""
    output = tmp_path / "risks.parquet"
    run(["risk", str(export), str(scans), "--horizons", "30,365", "-o", str(output), "--batch-size", "2"])
    assert "mean nothing for a patient" in capsys.readouterr().err
    table = parquet.read_table(output).to_pandas()
    model, spec = load_model(export), read_export(export).spec
    tasks = read_export(export).tasks
    keys = ["a.nii.gz", "sub/b.nii", "sub/c.nii.gz"]
    assert list(table["key"].unique()) == keys
    for key in keys:
        with torch.inference_mode():
            z_BTK = model(torch.from_numpy(preprocess.preprocess_ct(scans / key, spec).hu_DHW)[None])
        for days in (30.0, 365.0):
            rows = table[(table["key"] == key) & (table["horizon_days"] == days)]
            expected = cumulative_incidence(z_BTK, days, tasks.bin_edges_days, tasks.blackout_days, tasks.death_task)
            assert list(rows["task"]) == list(tasks.codes)
            np.testing.assert_allclose(rows["risk"], expected[0].numpy(), rtol=1e-4)
    assert [record["key"] for record in quarantine(output)] == ["bad.nii"]


def test_risk_beyond_the_follow_up_of_training_warns_and_is_written(export, scans, tmp_path, capsys):
    told = read_export(export)
    says = told.provenance | {"follow_up_days": 400.0}
    folder, output = tmp_path / "export", tmp_path / "risks.parquet"
    write_export(folder, load_model(export), told.model, told.spec, told.tasks, says, min_patients=1)
    command = ["risk", str(folder), str(scans / "a.nii.gz"), "-o", str(output)]
    run([*command, "--horizons", "30,400"])
    assert "lie beyond" not in capsys.readouterr().err
    run([*command, "--horizons", "30,401,3650"])
    assert "warning: horizons [401.0, 3650.0] lie beyond the 400 days for which enough" in capsys.readouterr().err
    assert set(parquet.read_table(output)["horizon_days"].to_pylist()) == {30.0, 401.0, 3650.0}


def test_risk_of_some_tasks_only_and_what_it_refuses(export, scans, tmp_path):
    output = tmp_path / "risks.parquet"
    command = ["risk", str(export), str(scans / "a.nii.gz"), "-o", str(output)]
    run([*command, "--horizons", "30", "--tasks", "MEDS_DEATH", "TEST/1"])
    assert parquet.read_table(output)["task"].to_pylist() == ["TEST/1", "MEDS_DEATH"]
    with pytest.raises(ConfigError, match=r"--horizons must lie after the blackout of 1 days; got \[0.5\]"):
        run([*command, "--horizons", "0.5,30"])
    with pytest.raises(ConfigError, match="--tasks: TEST/9 is no task of the export"):
        run([*command, "--horizons", "30", "--tasks", "TEST/9"])
    with pytest.raises(SystemExit):
        run([*command, "--horizons", "soon"])
