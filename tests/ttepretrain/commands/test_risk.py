"""`ttepretrain risk`: the model's cumulative incidence, and what it warns about and refuses."""

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch

from ttepretrain.commands.main import main, run
from ttepretrain.errors import ConfigError
from ttepretrain.export.folder import read_export
from ttepretrain.export.load import load_model
from ttepretrain.export.write import write_export
from ttepretrain.survival.curves import cumulative_incidence
from ttepretrain.volume import preprocess


def test_risk_is_the_models_cumulative_incidence(export, scans, tmp_path, caplog, quarantine):
    """One row per usable scan, task and horizon; the refused scan is in quarantine; synthetic weights are said so."""
    output = tmp_path / "risks.parquet"
    run(["risk", str(export), str(scans), "--horizons", "30,365", "-o", str(output), "--batch-size", "2"])
    assert "mean nothing for a patient" in caplog.text
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


def test_risk_beyond_the_follow_up_of_training_warns_and_is_written(export, scans, tmp_path, caplog):
    told = read_export(export)
    says = told.provenance | {"follow_up_days": 400.0}
    folder, output = tmp_path / "export", tmp_path / "risks.parquet"
    write_export(folder, load_model(export), told.model, told.spec, told.tasks, says, min_patients=1)
    command = ["risk", str(folder), str(scans / "a.nii.gz"), "-o", str(output)]
    run([*command, "--horizons", "30,400"])
    assert "lie beyond" not in caplog.text
    output.unlink()
    run([*command, "--horizons", "30,401,3650"])
    assert "horizons [401.0, 3650.0] lie beyond the 400 days for which enough" in caplog.text
    assert set(parquet.read_table(output)["horizon_days"].to_pylist()) == {30.0, 401.0, 3650.0}


def test_warnings_go_to_stderr_under_the_name_of_the_command(export, scans, tmp_path, monkeypatch, capsys):
    arguments = ["risk", str(export), str(scans / "a.nii.gz"), "--horizons", "30", "-o", str(tmp_path / "r.parquet")]
    monkeypatch.setattr("sys.argv", ["ttepretrain", *arguments])
    main()
    written = capsys.readouterr()
    assert written.err.startswith("ttepretrain: warning: the model was trained on synthetic data")
    assert written.out == "1 of 1 scans are in r.parquet\n"


def test_risk_of_some_tasks_only_and_what_it_refuses(export, scans, tmp_path):
    output = tmp_path / "risks.parquet"
    command = ["risk", str(export), str(scans / "a.nii.gz"), "-o", str(output)]
    run([*command, "--horizons", "30", "--tasks", "MEDS_DEATH", "TEST/1"])
    assert parquet.read_table(output)["task"].to_pylist() == ["TEST/1", "MEDS_DEATH"]
    with pytest.raises(ConfigError, match=r"--horizons must lie after the blackout of 1 days; got \[0.5\]"):
        run([*command, "--horizons", "0.5,30"])
    with pytest.raises(ConfigError, match="--tasks: TEST/9 is not a task of this export"):
        run([*command, "--horizons", "30", "--tasks", "TEST/9"])
    with pytest.raises(SystemExit):
        run([*command, "--horizons", "soon"])
