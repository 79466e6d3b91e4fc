"""`ttepretrain embed`: features, quarantine, resuming."""

import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from ttepretrain import load_encoder
from ttepretrain.commands import batches
from ttepretrain.commands.main import run
from ttepretrain.errors import BadDataError, BadStudy, ConfigError
from ttepretrain.testing import write_tiny_export
from ttepretrain.volume import preprocess


def embed(export, *inputs, output, options=()) -> dict[str, np.ndarray]:
    run(["embed", str(export), *map(str, inputs), "-o", str(output), *options])
    return read(output)


def read(output) -> dict[str, np.ndarray]:
    table = parquet.read_table(output)
    assert [str(field.type) for field in table.schema] == ["string", "list<element: float>"]
    return dict(zip(table["key"].to_pylist(), table["embedding"].to_numpy()))


def test_every_usable_scan_is_embedded_and_the_others_are_in_quarantine(export, scans, tmp_path, capsys, quarantine):
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
    assert "3 scans, 2 of them already done" in capsys.readouterr().out
    assert list(again) == ["b.nii", "c.nii.gz", "a.nii.gz"]
    assert all(np.array_equal(first[key], again[key]) for key in first)
    embed(export, scans / "sub", output=output)
    assert seen == ["a.nii.gz"]


def test_a_killed_run_keeps_what_it_saved(export, scans, tmp_path, monkeypatch):
    output = tmp_path / "e.parquet"
    monkeypatch.setattr("ttepretrain.commands.outputs.SAVE_SECONDS", 0.0)

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


def test_rows_of_another_export_are_kept_and_the_file_is_refused(export, scans, tmp_path):
    output = tmp_path / "e.parquet"
    embed(export, scans / "sub", output=output)
    before = output.read_bytes()
    write_tiny_export(tmp_path / "other", seed=1)
    with pytest.raises(ConfigError, match="has rows of another export; name another file, or remove it"):
        embed(tmp_path / "other", scans / "sub/b.nii", output=output)
    assert output.read_bytes() == before


def test_quarantine_follows_the_latest_attempt_and_keeps_the_scans_not_tried(export, scans, tmp_path, quarantine):
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


def test_a_refused_scan_stops_the_library_call_by_name(export, scans):
    with pytest.raises(BadStudy, match="NOT_NIFTI"):
        load_encoder(export).embed([scans / "a.nii.gz", scans / "bad.nii"])


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "nosuch:0"])
def test_a_device_that_is_not_there_is_a_usage_error(export, scans, tmp_path, device):
    with pytest.raises(ConfigError, match=f"--device {device} is not there"):
        embed(export, scans, output=tmp_path / "e.parquet", options=["--device", device])
