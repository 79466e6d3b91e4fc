"""Outputs: one writer, one kind, nothing of somebody else's replaced, everything checked before the work."""

import errno
import json
import os
import shutil
import stat
import subprocess
import sys

import nibabel
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch

from ttepretrain.commands import batches, outputs, refused
from ttepretrain.commands.main import run
from ttepretrain.commands.scans import Scan
from ttepretrain.errors import BadStudy, ConfigError, ExportError, IntegrityError, ResourceError
from ttepretrain.lock import file_lock


@pytest.fixture
def reading(monkeypatch):
    """A reader that gives empty volumes at once; names of the scans that were read."""
    seen = []

    def read(path, spec):
        seen.append(path.name)
        if "bad" in path.name:
            raise BadStudy("NOT_NIFTI", "bad")
        values = np.full(spec.shape_DHW, -1000, np.int16)
        values[5:-5, 5:-5, 5:-5] = sum(os.fsencode(path.name))

        class Read:
            hu_DHW = values

        return Read

    monkeypatch.setattr(batches, "preprocess_ct", read)
    return seen


@pytest.fixture
def few(tmp_path):
    """Seven files for `reading`."""
    folder = tmp_path / "few"
    folder.mkdir()
    for name in ("a.nii", "b.nii", "bad.nii", "c.nii", "d.nii", "e.nii", "f.nii"):
        (folder / name).touch()
    return folder


def embed(export, scans, output, *options):
    run(["embed", str(export), str(scans), "-o", str(output), "--batch-size", "2", *options])


def risk(export, scans, output, *options, horizons="30,365"):
    options = ["--batch-size", "2", *options]
    run(["risk", str(export), str(scans), "-o", str(output), "--horizons", horizons, *options])


COMMANDS = {"embed": embed, "risk": risk}
pytestmark = pytest.mark.usefixtures("reading")


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def keys(output) -> list[str]:
    return list(dict.fromkeys(parquet.read_table(output)["key"].to_pylist()))


@pytest.mark.parametrize("first", COMMANDS)
def test_the_output_of_another_command_is_kept(export, few, tmp_path, first):
    output = tmp_path / "x.parquet"
    COMMANDS[first](export, few, output)
    before = output.read_bytes()
    with pytest.raises(ConfigError, match=r"has the columns key, .*; name another file"):
        COMMANDS["risk" if first == "embed" else "embed"](export, few, output)
    assert output.read_bytes() == before


@pytest.mark.parametrize(
    ("horizons", "options"), [("30", []), ("365,30", []), ("30,365", ["--tasks", "MEDS_DEATH"])], ids=str
)
def test_risks_of_other_horizons_or_tasks_are_kept(export, few, tmp_path, horizons, options):
    output = tmp_path / "r.parquet"
    risk(export, few, output)
    before = output.read_bytes()
    with pytest.raises(ConfigError, match="other --horizons or --tasks; name another file, or remove it"):
        risk(export, few, output, *options, horizons=horizons)
    assert output.read_bytes() == before


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("stop", ["d.nii", "a.nii", "f.nii"])
def test_a_stopped_run_keeps_whole_batches_and_ends_with_the_same_bytes(
    export, few, tmp_path, reading, monkeypatch, command, stop, quarantine
):
    def stopping(path, spec, read=batches.preprocess_ct):
        if path.name == stop:
            raise KeyboardInterrupt
        return read(path, spec)

    for name in ("whole", "out"):
        (tmp_path / name).mkdir()
    whole, output = tmp_path / "whole/x.parquet", tmp_path / "out/x.parquet"
    COMMANDS[command](export, few, whole)
    with monkeypatch.context() as patch:
        patch.setattr(batches, "preprocess_ct", stopping)
        with pytest.raises(KeyboardInterrupt):
            COMMANDS[command](export, few, output)
    done = {"d.nii": ["a.nii", "b.nii"], "a.nii": [], "f.nii": ["a.nii", "b.nii", "c.nii", "d.nii"]}[stop]
    assert (keys(output) if done else output.exists()) == (done or False)
    if done:
        assert [record["key"] for record in quarantine(output)] == ["bad.nii"]
    reading.clear()
    COMMANDS[command](export, few, output)
    assert not set(done) & set(reading)
    assert output.read_bytes() == whole.read_bytes()
    assert keys(output) == ["a.nii", "b.nii", "c.nii", "d.nii", "e.nii", "f.nii"]
    assert names(output.parent) == names(whole.parent)


def test_row_groups_do_not_depend_on_when_a_run_was_saved(export, few, tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "GROUP_ROWS", 3)
    embed(export, few, tmp_path / "whole.parquet")
    monkeypatch.setattr(outputs, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(outputs, "SAVE_SHARE", 0.0)
    embed(export, few, tmp_path / "often.parquet")
    assert parquet.ParquetFile(tmp_path / "often.parquet").num_row_groups == 2
    assert (tmp_path / "often.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_an_interruption_just_after_a_save_doubles_no_row(export, few, tmp_path, monkeypatch):
    """The file has its name already, but the rows still count as unsaved."""

    class Interrupted(Exception):
        pass

    def replacing(path, real=outputs.replacing):
        class Replacing:
            def __enter__(self):
                self.real = real(path)
                return self.real.__enter__()

            def __exit__(self, *error):
                self.real.__exit__(*error)
                if path.name == "e.parquet" and not error[0]:
                    monkeypatch.setattr(outputs, "replacing", real)
                    raise Interrupted

        return Replacing()

    monkeypatch.setattr(outputs, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(outputs, "replacing", replacing)
    with pytest.raises(Interrupted):
        embed(export, few, tmp_path / "e.parquet")
    assert parquet.read_table(tmp_path / "e.parquet")["key"].to_pylist() == ["a.nii", "b.nii"]
    embed(export, few, tmp_path / "e.parquet")
    assert parquet.read_table(tmp_path / "e.parquet").num_rows == 6


@pytest.mark.parametrize("command", COMMANDS)
def test_a_second_writer_is_refused_with_the_name_of_the_first(export, few, tmp_path, reading, command):
    (tmp_path / "link.parquet").symlink_to("x.parquet")
    with file_lock(tmp_path / "x.parquet"):
        for name in ("x.parquet", "link.parquet"):
            with pytest.raises(IntegrityError, match=rf"x\.parquet is in use by process {os.getpid()} on ") as refused:
                COMMANDS[command](export, few, tmp_path / name)
            assert refused.value.exit_code == 4
    assert reading == []


def test_runs_with_outputs_of_their_own_share_a_folder_and_its_quarantine(export, few, tmp_path, quarantine):
    (few / "other").mkdir()
    (few / "other" / "bad2.nii").touch()
    (few / "other" / "g.nii").touch()
    with file_lock(tmp_path / "r.parquet"):
        embed(export, few, tmp_path / "e.parquet")
    risk(export, few / "other", tmp_path / "r.parquet")
    assert {record["key"] for record in quarantine(tmp_path / "e.parquet")} == {"bad.nii", "bad2.nii", "other/bad2.nii"}


def test_a_scan_that_changed_under_its_key_is_read_again_and_one_that_is_gone_keeps_its_row(
    export, few, tmp_path, reading, caplog
):
    """Another folder with the same names must not get the rows of this one."""
    output = tmp_path / "e.parquet"
    embed(export, few, output)
    (few / "b.nii").write_bytes(b"another")
    table = tmp_path / "t.csv"
    table.write_text("key,image\na.nii,few/gone.nii\nb.nii,few/b.nii\nc.nii,few/c.nii\n")
    reading.clear()
    embed(export, table, output)
    assert reading == ["b.nii"]
    assert "1 scans changed since their rows in e.parquet were made" in caplog.text
    assert keys(output) == ["a.nii", "c.nii", "d.nii", "e.nii", "f.nii", "b.nii"]


def test_a_link_is_followed_and_stays(export, few, tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "e.parquet").symlink_to("store/x.parquet")
    embed(export, few, tmp_path / "e.parquet")
    assert (tmp_path / "e.parquet").is_symlink()
    assert names(tmp_path / "store") == ["quarantine.parquet", "x.parquet"]


def theirs(path):
    parquet.write_table(pa.table({"study_id": ["1"], "stage": ["read"]}), path)


PLACES = {
    "a folder": (lambda at: at.mkdir(), "is a folder; name a file"),
    "a pipe": (os.mkfifo, "is a pipe, socket or device"),
    "a device": (lambda at: at.symlink_to("/dev/null"), "is a pipe, socket or device"),
    "text": (lambda at: at.write_text("notes"), "exists and is not a parquet file; name another"),
    "their table": (theirs, "exists and was not written by this command; name another"),
    "their quarantine": (lambda at: theirs(at.with_name("quarantine.parquet")), "was not written by this command; wri"),
    "notes as quarantine": (lambda at: at.with_name("quarantine.parquet").write_text("n"), "was not written by this"),
    "a pipe as quarantine": (lambda at: os.mkfifo(at.with_name("quarantine.parquet")), "was not written by this"),
    "link into nothing": (lambda at: at.symlink_to("no/x.parquet"), "the folder .*no does not exist"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("place", PLACES)
def test_what_is_not_ours_is_refused_before_any_work(export, few, tmp_path, reading, command, place):
    output = tmp_path / "out" / "x.parquet"
    output.parent.mkdir()
    make, message = PLACES[place]
    make(output)
    before = names(output.parent)
    with pytest.raises(ConfigError, match=message):
        COMMANDS[command](export, few, output)
    assert (reading, names(output.parent)) == ([], before)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("quarantine.parquet", "the reasons of refused scans go to quarantine.parquet; name another"),
        ("Quarantine.Parquet", "the reasons of refused scans go to quarantine.parquet; name another"),
        ("e.csv", r"--output is a parquet file: name it \.parquet; got e\.csv"),
        ("scan.nii.gz", r"name it \.parquet"),
        ("e" * 240 + ".parquet", "the name of .* is too long"),
        ("few/case/x.parquet", "lies in the export or in the folder of a scan"),
        ("few/case/deeper/x.parquet", "lies in the export or in the folder of a scan"),
        ("link/x.parquet", "lies in the export or in the folder of a scan"),
    ],
)
def test_impossible_names_and_places_are_refused_before_any_work(
    export, few, tmp_path, reading, command, name, message
):
    (few / "case" / "deeper").mkdir(parents=True)
    (few / "case" / "IM1").write_bytes(b"\0" * 128 + b"DICM")
    (tmp_path / "link").symlink_to(export)
    with pytest.raises(ConfigError, match=message):
        COMMANDS[command](export, few, tmp_path / name)
    assert reading == []
    assert not [path for path in (tmp_path / name).parent.iterdir() if path.name.startswith(".")]


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(export, few, tmp_path, reading, monkeypatch):
    def fail(_path):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("ttepretrain.commands.arguments.file_lock", fail)
    with pytest.raises(ConfigError, match=r"--output: the folder .* cannot be written: Permission denied"):
        embed(export, few, tmp_path / "e.parquet")
    assert reading == []


@pytest.mark.parametrize("device", ["cuda", "gpu", "mps", "meta", "xla", "hpu", "", "cpu:x"])
def test_a_device_that_is_not_there_is_refused_before_any_work(export, few, tmp_path, reading, device):
    import torch

    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ConfigError, match=rf"--device {device} is not there; use cpu"):
        embed(export, few, tmp_path / "e.parquet", "--device", device)
    assert reading == []


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_keeps_the_rows_of_the_last_save(export, few, tmp_path, monkeypatch, command):
    output, writes = tmp_path / "x.parquet", []

    class Full(parquet.ParquetWriter):
        def write_table(self, *arguments, **options):
            writes.append(1)
            if len(writes) > 1:
                raise OSError(errno.ENOSPC, "No space left on device")
            super().write_table(*arguments, **options)

    monkeypatch.setattr(outputs, "SAVE_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(outputs.parquet, "ParquetWriter", Full)
        with pytest.raises(ResourceError, match="disk full"):
            COMMANDS[command](export, few, output)
    assert keys(output) == ["a.nii", "b.nii"]
    COMMANDS[command](export, few, output)
    assert keys(output) == ["a.nii", "b.nii", "c.nii", "d.nii", "e.nii", "f.nii"]


def test_what_killed_runs_left_is_removed_at_the_next_start_and_nothing_else(export, few, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    kept = [".r.parquet.77.tmp", ".e.parquet.tmp", "e.parquet.77.tmp", ".notes.tmp"]
    for name in [*kept, ".e.parquet.77.tmp", ".e.parquet.123456.tmp", ".quarantine.parquet.77.tmp", ".e.parquet.lock"]:
        (out / name).touch()
    embed(export, few, out / "e.parquet")
    assert names(out) == sorted([*kept, "e.parquet", "quarantine.parquet"])


@pytest.mark.parametrize("command", COMMANDS)
def test_outputs_follow_the_umask(export, few, tmp_path, command):
    before = os.umask(0o077)
    try:
        COMMANDS[command](export, few, tmp_path / "x.parquet")
    finally:
        os.umask(before)
    modes = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("x.parquet", "quarantine.parquet")}
    assert modes == {"x.parquet": 0o600, "quarantine.parquet": 0o600}


@pytest.mark.parametrize("command", COMMANDS)
def test_names_that_are_not_utf_8_are_keys_with_their_bytes_in_hexadecimal(export, few, tmp_path, command, quarantine):
    for name in (b"\xe9l\xe8ve.nii", b"bad\xff.nii"):
        (tmp_path / "few" / os.fsdecode(name)).touch()
    COMMANDS[command](export, few, tmp_path / "x.parquet")
    assert r"\xe9l\xe8ve.nii" in keys(tmp_path / "x.parquet")
    assert r"bad\xff.nii" in [record["key"] for record in quarantine(tmp_path / "x.parquet")]


def test_an_output_whose_name_is_not_utf_8_is_reported(export, scans, tmp_path):
    name = os.fsencode(tmp_path) + b"/\xe9.parquet"
    script = "from ttepretrain.commands.main import main; main()"
    arguments = ["embed", str(export), str(scans / "a.nii.gz"), "-o", name]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    told = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, check=True, env=environment)
    assert told.stdout == b"1 of 1 scans are in \\udce9.parquet\n"


def mine(path):
    path.write_text(json.dumps({"a": 1}))


@pytest.mark.parametrize(
    ("option", "make", "message"),
    [
        ("--json", mine, "--json .* exists and was not written by this command; name another"),
        ("--json", lambda at: at.write_bytes(b"\x5c\x01\0\0"), "--json .* was not written by this command"),
        ("--json", lambda at: at.mkdir(), "--json .* is a folder"),
        ("--json", os.mkfifo, "--json .* is a pipe, socket or device"),
        ("--montage", lambda at: at.write_bytes(b"\x89PNG"), "--montage .* was not written by this command"),
    ],
)
def test_doctor_replaces_nothing_but_its_own_files(few, tmp_path, option, make, message):
    make(tmp_path / "x")
    with pytest.raises(ConfigError, match=message):
        run(["doctor", str(few), "--preset", "small", option, str(tmp_path / "x")])
    assert names(tmp_path) == ["few", "x"]


def test_doctor_replaces_its_own_files_and_takes_one_file_for_one_option(tmp_path):
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 60)] * 3, indexing="ij"))
    radius = np.sqrt((grid**2).sum(0))
    hu = np.where(radius < 0.4, -800, np.where(radius < 1, 40, -1000)).astype(np.int16)
    (tmp_path / "in").mkdir()
    nibabel.save(nibabel.Nifti1Image(hu, np.diag([7.0, 7.0, 7.0, 1])), tmp_path / "in" / "a.nii")
    command = ["doctor", str(tmp_path / "in"), "--preset", "small"]
    for _ in range(2):
        run([*command, "--json", str(tmp_path / "x"), "--montage", str(tmp_path / "y.png")])
    with pytest.raises(ConfigError, match="--json and --montage name the same file"):
        run([*command, "--json", str(tmp_path / "z"), "--montage", str(tmp_path / "z")])
    assert names(tmp_path) == ["in", "x", "y.png"]


@pytest.mark.parametrize("command", COMMANDS)
def test_values_that_are_no_numbers_are_never_written(export, few, tmp_path, monkeypatch, command):
    weights = "ttepretrain.models.encoder.Encoder.features"
    monkeypatch.setattr(weights, lambda self, volume: torch.full((len(volume), self.feature_dim), torch.nan))
    monkeypatch.setattr("ttepretrain.export.load.check_features", lambda *_: None)
    output = tmp_path / "o.parquet"
    with pytest.raises(ExportError, match="values that are not finite"):
        COMMANDS[command](export, few, output)
    assert not output.exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_that_is_removed_meanwhile_is_said_in_one_line(export, few, tmp_path, monkeypatch, command):
    folder = tmp_path / "out"
    folder.mkdir()
    read = batches.preprocess_ct

    def remove(path, spec):
        shutil.rmtree(folder, ignore_errors=True)
        return read(path, spec)

    monkeypatch.setattr(batches, "preprocess_ct", remove)
    with pytest.raises(ResourceError, match=r"o\.parquet can no longer be written: No such file or directory"):
        COMMANDS[command](export, few, folder / "o.parquet")


@pytest.mark.parametrize("command", COMMANDS)
def test_reasons_that_could_not_be_written_at_the_end_are_refused_before_any_work(
    export, few, tmp_path, reading, command
):
    (tmp_path / refused.QUARANTINE_NAME).symlink_to(tmp_path / "gone" / "quarantine.parquet")
    with pytest.raises(ConfigError, match="cannot be written: No such file or directory; write --output to another"):
        COMMANDS[command](export, few, tmp_path / "o.parquet")
    assert reading == []


def with_metadata(path, change) -> None:
    table = parquet.read_table(path)
    parquet.write_table(table.replace_schema_metadata(change(dict(table.schema.metadata))), path)


def test_an_output_of_an_earlier_release_is_called_so(export, few, tmp_path):
    output = tmp_path / "o.parquet"
    embed(export, few, output)
    with_metadata(output, lambda said: {outputs.FINGERPRINT: said[outputs.FINGERPRINT]})
    with pytest.raises(ConfigError, match="written by an earlier release; remove it, or name another"):
        embed(export, few, output)


@pytest.mark.parametrize("scans", [b"[]", b"{", b"{}", b"\xff", b'{"a.nii": null}'])
def test_an_output_that_does_not_say_whose_rows_it_has_is_refused(export, few, tmp_path, scans):
    output = tmp_path / "o.parquet"
    embed(export, few, output)
    with_metadata(output, lambda said: said | {outputs.SCANS: scans})
    with pytest.raises(IntegrityError, match="not those of the scans it lists; remove it"):
        embed(export, few, output)


@pytest.mark.parametrize("command", COMMANDS)
def test_damaged_rows_are_not_copied(export, few, tmp_path, command):
    output = tmp_path / "o.parquet"
    COMMANDS[command](export, few, output)
    content = bytearray(output.read_bytes())
    place = parquet.ParquetFile(output).metadata.row_group(0).column(0)
    content[place.data_page_offset + place.total_compressed_size // 2] ^= 1
    output.write_bytes(content)
    (few / "g.nii").touch()
    with pytest.raises(IntegrityError, match="is damaged; remove it"):
        COMMANDS[command](export, few, output)
    assert output.read_bytes() == content


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # files between open and close
def test_a_signal_between_any_two_lines_of_a_save_loses_and_doubles_no_row(few, tmp_path, monkeypatch):
    """An interruption at every line of `add` and `save` in turn; the next run ends with the bytes of a whole one."""
    monkeypatch.setattr(outputs, "SAVE_SECONDS", 0)
    monkeypatch.setattr(outputs, "SAVE_SHARE", 0)
    schema = outputs.EMBEDDINGS
    keys = [f"k{n}" for n in range(3)]
    scans = [Scan(key, few / "a.nii") for key in keys]

    def fill(path, stop_at: int) -> bool:
        """Whether the run ended before the line."""
        left = stop_at

        def trace(frame, event, _argument):
            nonlocal left
            if frame.f_code.co_name not in ("add", "save") or frame.f_code.co_filename != outputs.__file__:
                return None
            if event == "line":
                left -= 1
                if left == 0:
                    raise KeyboardInterrupt
            return trace

        results = outputs.ResultFile(path, schema, "export", {}, 1)
        try:
            sys.settrace(trace)
            for scan in results.missing(scans):
                results.add([scan.key], outputs.embedding_table([scan.key], np.ones((1, 2), np.float32)))
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
            results.save()
        return left > 0

    whole = tmp_path / "whole.parquet"
    fill(whole, stop_at=0)
    for stop_at in range(1, 1000):
        path = tmp_path / f"{stop_at}.parquet"
        ended = fill(path, stop_at)
        fill(path, stop_at=0)
        assert path.read_bytes() == whole.read_bytes(), stop_at
        if ended:
            break
    assert 20 < stop_at < 1000
