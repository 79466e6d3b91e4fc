"""Exports with a right manifest and impossible content: refused in one line, before anything is built or allocated."""

import dataclasses
import json
import math
import os
import resource
import shutil
import struct
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save

from ttepretrain import load_encoder, load_model
from ttepretrain.commands import info
from ttepretrain.errors import DeclaredError, ExitCode, ExportError
from ttepretrain.export import folder as folder_module
from ttepretrain.export import header as header_module
from ttepretrain.export.folder import read_export
from ttepretrain.export.write import write_export
from ttepretrain.files import sha256_of
from ttepretrain.models.config import ModelConfig, ViTConfig
from ttepretrain.models.model import build_model
from ttepretrain.survival.curves import cumulative_incidence
from ttepretrain.testing import random_task_set
from ttepretrain.volume.spec import LUNG, SOFT_TISSUE, VolumeSpec

DESCRIBED = ("config.json", "tasks.json")
MIB = 1 << 20
HERE = "@here@"  # stands for the JSON text of a mutation


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Export of a transformer of a few thousand weights."""
    folder = tmp_path_factory.mktemp("tiny") / "export"
    rng = np.random.default_rng(0)
    tasks = dataclasses.replace(random_task_set(rng, num_tasks=3), min_patients=11)
    spec = VolumeSpec((12.0, 11.0, 10.0), (29, 30, 31), (-1024, 3071), (LUNG, SOFT_TISSUE))
    config = ModelConfig("vit_liere", head_dim=3, vit=ViTConfig([16, 16, 16], 1, 8, 2, 2, 300.0))
    bias_TK = torch.from_numpy(rng.normal(-8, 1, (tasks.num_bins, tasks.num_tasks)).astype(np.float32))
    model = build_model(config, spec, bias_TK, seed=0).eval()
    with torch.no_grad():
        model.head.project.weight.normal_()
    provenance = {"synthetic": True, "seed": 3, "follow_up_days": 300.0, "packages": {"torch": "2"}}
    write_export(folder, model, config, spec, tasks, provenance, min_patients=11)
    return folder


@pytest.fixture
def copy(tiny, tmp_path):
    return shutil.copytree(tiny, tmp_path / "export")


def seal(folder: Path) -> None:
    """The manifest of what lies there, as its author would write it."""
    digests = {name: sha256_of(folder / name) for name in folder_module.CHECKED}
    (folder / "manifest.json").write_text(json.dumps({"sha256": digests}))


def volume() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(-1024, 1500, (1, 29, 30, 31), dtype=torch.int16, generator=generator)


def paths_of(document, path=()):
    """Places of all values of a JSON document, lists' elements by their first and last."""
    yield path
    if isinstance(document, dict):
        for key, value in document.items():
            yield from paths_of(value, (*path, key))
    elif isinstance(document, list):
        for index in sorted({0, len(document) - 1}) if document else ():
            yield from paths_of(document[index], (*path, index))


VALUES = {
    "null": "null", "true": "true", "text": '"os.system"', "number in text": '"3"', "empty text": '""',
    "NaN": "NaN", "Infinity": "-Infinity", "1e999": "1e999", "1e308": "1e308", "-1e308": "-1e308", "1e-320": "1e-320",
    "-1": "-1", "0": "0", "-0.0": "-0.0", "0.5": "0.5", "2^63": str(2**63), "10^400": "1" + "0" * 400,
    "10^5000": "1" + "0" * 5000, "empty list": "[]", "empty mapping": "{}", "list": "[3]", "mapping": '{"a": 3}',
    "long list": json.dumps([0] * 50_000), "deep list": "[" * 900 + "]" * 900, "deeper list": "[" * 50_000,
    "long text": json.dumps("x" * MIB), "escapes": r'"\u001b[2J\u001b]8;;http://a\u0007\r\n\u0000\u202e\b"',
    "half a character": r'"\ud800"', "twice": '{"a": 1, "a": 1}',
}  # fmt: skip
# The free-form places: any finite JSON in them changes nothing that is computed. Of the numbers, those in range.
FREE = ("seed", "packages", "versions", "description", "code", "hash", "count", "score", "prevalence", "patients",
        "events", "rate_per_day", "min_patients", "blackout_days", "death_task", "follow_up_days", "synthetic", "init",
        "activation_checkpointing", "hu_range", "fitted_on", "reference_features")  # fmt: skip


# Left out it means what the export had; or it is another spelling of it.
SAME = {"['arm'] left out", "['model', 'vit', 'patch'] left out", "['time_unit'] left out", "['bin_edges_days', 0] = 0",
        "['bin_edges_days', 0] = -0.0", "['bin_edges_days', 4] = null"}  # fmt: skip
# What else tells of a value that is possible but not this export's.
OTHERWISE = ("weights match", "of another shape", "of their norm", "preprocessing version", "is F32[")


def mutations(text: str):
    """(name, text) of every value replaced by every one of VALUES, of every key doubled, misnamed, left out."""
    document = json.loads(text)
    for path in paths_of(document):
        for name, value in VALUES.items():
            yield f"{list(path)} = {name}", path, _with(document, path, HERE).replace(f'"{HERE}"', value)
        if path and isinstance(path[-1], str):
            yield f"{list(path)} left out", path, _without(document, path)
            twin = {path[-1].swapcase(): 1, f"{path[-1]}\u0000": 1, "__proto__": 1, "x" * 100_000: 1}
            for key, value in twin.items():
                yield f"{list(path[:-1])} + {key[:20]!r}", path, _with(document, (*path[:-1], key), value)
            doubled = _with(document, path, HERE).replace(f'"{HERE}"', f"1, {json.dumps(path[-1])}: 1", 1)
            yield f"{list(path)} twice", path, doubled


def _with(document, path, value) -> str:
    if not path:
        return json.dumps(value)
    changed = json.loads(json.dumps(document))
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return json.dumps(changed)


def _without(document, path) -> str:
    changed = json.loads(json.dumps(document))
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return json.dumps(changed)


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def outcome(folder):
    """(export, model), or (what it is refused with, None)."""
    try:
        return read_export(folder), load_model(folder)
    except DeclaredError as error:
        return error, None


@pytest.mark.parametrize("name", DESCRIBED)
def test_every_field_is_in_its_range_or_refused_in_one_line(tiny, copy, name, capsys):
    """Every value of the file replaced by every kind of nonsense. What is accepted computes what the original does."""
    with torch.inference_mode():
        expected = load_model(tiny)(volume())
    before, refused, wrong = peak_mib(), 0, []
    for what, path, text in mutations((copy / name).read_text()):
        (copy / name).write_text(text)
        seal(copy)
        start = time.process_time()
        export, found = outcome(copy)
        if isinstance(export, DeclaredError):
            line = str(export)
            assert isinstance(export, ValueError), what
            assert export.exit_code == ExitCode.INTEGRITY, what
            assert line.isprintable(), what
            assert len(line) < 1500, what
            assert any(words in line for words in (name, *OTHERWISE)), (what, line)
            refused += 1
        else:
            if not any(part in FREE for part in path):
                wrong.append(what)
            with torch.inference_mode():
                assert torch.equal(found(volume()), expected), what
            tasks = export.tasks
            info.run(Namespace(export=copy))
            printed = capsys.readouterr().out
            assert all(line.isprintable() for line in printed.splitlines()), what
            assert len(printed) < 20_000, what
            days = tasks.blackout_days + 100
            risk = cumulative_incidence(expected, days, tasks.bin_edges_days, tasks.blackout_days, tasks.death_task)
            assert ((risk >= 0) & (risk <= 1)).all(), what
        assert time.process_time() - start < 1, what
    assert peak_mib() - before < 200
    assert refused > 500
    assert not set(wrong) - SAME


@pytest.mark.parametrize(
    ("section", "value"),
    [
        ("model", {"encoder": "resnet152", "vit": None}),  # 470 MiB
        ("model", {"head_dim": 16_384}),
        ("vit", {"depth": 128, "width": 8192, "heads": 128, "block": 64}),  # 400 GiB
        ("vit", {"patch": [1, 1, 8]}),
        ("volume", {"windows": [[0.0, 100.0]] * 16}),
    ],
)
def test_a_network_of_another_size_than_the_weights_is_never_built(copy, section, value):
    config = json.loads((copy / "config.json").read_text())
    place = config["model"]["vit"] if section == "vit" else config[section]
    place.update({key: v for key, v in value.items() if v is not None})
    if section == "vit":
        config["feature_dim"] = place["width"]
        del config["reference_features"]
    (copy / "config.json").write_text(json.dumps(config))
    seal(copy)
    before, start = peak_mib(), time.process_time()
    for load in (load_model, load_encoder):
        with pytest.raises(ExportError, match=r"expected \[|weights match|of another shape|feature_dim must be"):
            load(copy)
    assert peak_mib() - before < 200
    assert time.process_time() - start < 5


def test_more_tokens_than_are_computed_are_refused_with_the_patch_and_the_volume(copy):
    """One-voxel patches of the reference volume took 9.5 GB."""
    for shape_DHW, patch, message in (
        ([29, 30, 31], [1, 1, 1], "model.vit.patch must be three whole numbers .* of 8 voxels or more"),
        ([400, 400, 400], [2, 2, 2], "model.vit.patch makes 8000000 tokens of volumes of 400 x 400 x 400 voxels; at"),
    ):
        config = json.loads((copy / "config.json").read_text())
        config["model"]["vit"]["patch"], config["volume"]["shape_DHW"] = patch, shape_DHW
        (copy / "config.json").write_text(json.dumps(config))
        seal(copy)
        with pytest.raises(ExportError, match=message):
            read_export(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape_DHW": [1024, 1024, 1024]}, "volume.shape_DHW must be at most 134217728 voxels"),
        ({"shape_DHW": [29, 30, 1024], "spacing_mm": [12.0, 11.0, 10.0]}, "at most 5000 mm along each axis"),
        ({"shape_DHW": [3, 30, 31]}, "whole numbers .* between 4 and 1024; got \\[3, 30, 31\\]"),
        ({"shape_DHW": [29.0, 30, 31]}, "volume.shape_DHW must be 3 values, each a whole number"),
        ({"spacing_mm": [12.0, 11.0]}, "volume.spacing_mm must be 3 values, each a finite number"),
        ({"windows": [[40.0, 0.0], [40.0, 400.0]]}, "volume.windows must be .* positive widths"),
        ({"windows": [[40.0, 1e-30], [40.0, 400.0]]}, "volume.windows must be .* positive widths"),
        ({"windows": [[9000.0, 400.0], [40.0, 400.0]]}, "volume.windows must each have some of hu_range"),
        ({"windows": [[40.0, 400.0]] * 17}, "1 to 16 of them"),
        ({"hu_range": [3071, -1024]}, "volume.hu_range must be two increasing int16"),
        ({"fit": "../../etc"}, "volume.fit must be one of body, image, stretch"),
        ({"reading": {"prefer": ["original"] * 50_000}}, "volume.series.prefer must name each criterion once"),
        ({"reading": {"max_gap_mm": True}}, "volume.series.max_gap_mm must be a finite number; got True"),
        ({"spacing": 1}, "volume has the unknown key 'spacing'; did you mean 'spacing_mm'"),
        ({"preprocess_version": 6}, "was trained on preprocessing version 6, this release has"),
    ],
)
def test_a_volume_is_checked_as_the_configuration_is(copy, change, message):
    config = json.loads((copy / "config.json").read_text())
    config["volume"] |= change
    (copy / "config.json").write_text(json.dumps(config))
    seal(copy)
    with pytest.raises(ExportError, match=message):
        load_encoder(copy)


class TestFiles:
    @pytest.mark.parametrize("name", [*folder_module.CHECKED, "manifest.json"])
    def test_what_is_no_regular_file_of_a_sensible_size_is_never_read(self, copy, name):
        """A pipe would block, /dev/zero never ends, a sparse terabyte takes an hour to hash."""
        path = copy / name
        far = copy.parent / "terabyte"
        far.touch()
        os.truncate(far, 1 << 40)
        makes = {
            "pipe": lambda: os.mkfifo(path),
            "endless": lambda: path.symlink_to("/dev/zero"),
            "terminal": lambda: path.symlink_to("/dev/tty"),
            "folder": path.mkdir,
            "loop": lambda: path.symlink_to(name),
            "nowhere": lambda: path.symlink_to(copy / "nowhere"),
            "terabyte": lambda: path.symlink_to(far),
        }
        path.unlink()
        for kind, make in makes.items():
            make()
            start = time.process_time()
            with pytest.raises(ExportError, match=rf"{name}"):
                read_export(copy)
            assert time.process_time() - start < 1, kind
            path.rmdir() if kind == "folder" else path.unlink()

    def test_links_to_regular_files_are_read(self, tiny, tmp_path):
        """The Hub's cache is made of them."""
        (tmp_path / "snapshot").mkdir()
        for path in tiny.iterdir():
            (tmp_path / "snapshot" / path.name).symlink_to(path)
        assert read_export(tmp_path / "snapshot").fingerprint == read_export(tiny).fingerprint

    def test_files_of_other_names_are_never_opened(self, copy):
        for name in ("Config.json", "MODEL.SAFETENSORS", "pytorch_model.bin"):
            os.mkfifo(copy / name)
        load_model(copy)

    @pytest.mark.parametrize(
        "change",
        [
            {"../../../etc/passwd": "0" * 64},
            {"/etc/passwd": "0" * 64},
            {"model.safetensors": "0" * 63},
            {"model.safetensors": "A" * 64},
            {"model.safetensors": None},
            {"tasks.json": ["0" * 64]},
        ],
    )
    def test_a_manifest_names_the_three_files_and_nothing_else(self, copy, change):
        manifest = json.loads((copy / "manifest.json").read_text())
        manifest["sha256"] |= change
        (copy / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(ExportError, match=r"manifest.json: sha256(\.[a-z.]+ must be 64 hex| has the unknown key)"):
            read_export(copy)

    @pytest.mark.parametrize("name", DESCRIBED)
    def test_a_file_of_millions_of_values_is_refused_unparsed(self, copy, name):
        (copy / name).write_text('{"a": [' + "[]," * 1_300_000 + "0]}")
        seal(copy)
        before = peak_mib()
        with pytest.raises(ExportError, match=f"{name}: holds more than 2000000 values"):
            read_export(copy)
        assert peak_mib() - before < 100


def entry(shape, begin, end, dtype="F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


class TestHeader:
    @staticmethod
    def write(path: Path, header: object, data: bytes = b"\0" * 16) -> None:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data)

    @pytest.mark.parametrize(
        ("header", "message"),
        [
            ({"a": entry([4], 0, 16), "b": entry([4], 0, 16)}, "overlap"),
            ({"a": entry([1], 0, 4), "b": entry([2], 8, 16)}, "gaps"),
            ({"a": entry([4], 16, 32)}, "gaps"),
            ({"a": entry([2], 0, 8)}, "it has 85 bytes and its header describes 77"),
            ({"a": entry([2**40], 0, 2**42)}, "impossible shape"),
            ({"a": entry([0, 2**62], 0, 0)}, "impossible shape"),
            ({"a": entry([-4], 0, -16)}, "impossible shape"),
            ({"a": entry([True], 0, 4)}, "impossible shape"),
            ({"a": entry([1] * 9, 0, 4)}, "impossible shape"),
            ({"a": entry("4", 0, 16)}, "impossible shape"),
            ({"a": entry([5], 0, 16)}, r"of shape \[5\] in F32 does not take \[0, 16\]"),
            ({"a": entry([4], 0, 16, "F4")}, "unknown dtype 'F4'"),
            ({"a": entry([4], 0, 16, ["F32"])}, "unknown dtype"),
            ({"a": entry([4], 0, 16) | {"code": "os.abort()"}}, "unknown key 'code'"),
            ({"a": {"dtype": "F32"}}, "no key 'shape'"),
            ({"a": [4]}, "must be a mapping"),
            ([1], "no mapping"),
            (b'{"a": 1, "a": 1}', "'a' twice"),
            (b'{"a": NaN}', "NaN"),
            (b"[" * 50_000, "not JSON"),
            (b"\xff\xff", "not Unicode"),
            ({f"{i}": entry([0], 0, 0) for i in range(20_001)}, "at most 20000 tensors"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_an_impossible_header_is_refused_before_any_weight(self, copy, header, message):
        self.write(copy / "model.safetensors", header)
        seal(copy)
        with pytest.raises(ExportError, match=f"model.safetensors cannot be read: .*{message}"):
            load_model(copy)

    @pytest.mark.parametrize("length", [0, 1, 2**62, 2**64 - 1, 100 << 20])
    def test_the_length_of_a_header_is_bounded(self, copy, length):
        path = copy / "model.safetensors"
        path.write_bytes(struct.pack("<Q", length))
        os.truncate(path, 200 << 20)
        with pytest.raises(ExportError, match="its header takes"):
            read_export(copy)

    def test_a_sound_header_is_read_as_safetensors_reads_it(self, copy):
        tensors = load_file(copy / "model.safetensors")
        found = header_module.read_header(copy / "model.safetensors")
        assert {name: stored.shape for name, stored in found.items()} == {k: tuple(v.shape) for k, v in tensors.items()}
        assert {stored.dtype for stored in found.values()} == {"F32"}

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_weights_that_are_no_numbers_are_refused_as_a_value_error(self, copy, value):
        weights = load_file(copy / "model.safetensors")
        weights["head.expand.bias"][2] = value
        (copy / "model.safetensors").write_bytes(save(weights))
        seal(copy)
        with pytest.raises(ValueError, match=r"1 weights hold NaN or infinity: head\.expand") as caught:
            load_encoder(copy)
        assert caught.value.exit_code == ExitCode.INTEGRITY


def test_names_of_weights_move_no_cursor(copy):
    weights = load_file(copy / "model.safetensors")
    weights["\x1b[2J\r\u202e"] = torch.zeros(1)
    (copy / "model.safetensors").write_bytes(save(weights))
    seal(copy)
    with pytest.raises(ExportError, match=r"unknown: .x1b.2J.r.u202e") as caught:
        load_model(copy)
    assert str(caught.value).isprintable()


def test_info_of_any_export_imports_no_torch(tiny, copy):
    config = (copy / "config.json").read_text()
    (copy / "config.json").write_text(config.replace("29", str(2**63), 1))
    seal(copy)
    script = (
        "import sys\nfrom ttepretrain.commands.main import run\nfrom ttepretrain.errors import ExportError\n"
        "run(['info', sys.argv[1]])\n"
        "try: run(['info', sys.argv[2]])\nexcept ExportError as error: print(error)\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script, tiny, copy], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "vit_liere, norm group, 8 features" in done.stdout
    assert "volume.shape_DHW must be three whole numbers (D H W) between 4 and 1024" in done.stdout


@pytest.mark.parametrize("name", [*folder_module.CHECKED, "manifest.json"])
def test_a_file_that_git_lfs_has_not_downloaded_is_called_so(copy, name):
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n"
    (copy / name).write_text(pointer)
    with pytest.raises(ExportError, match=rf"{name} is a Git LFS pointer, not the file itself; run `git lfs pull`"):
        read_export(copy)


def without_reference(folder: Path, change) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["reference_features"]
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    change(weights)
    (folder / "model.safetensors").write_bytes(save(weights))
    seal(folder)


def test_finite_weights_whose_features_are_not_are_refused_where_no_reference_tells(copy):
    def overflow(weights):
        for name, tensor in weights.items():
            weights[name] = torch.full_like(tensor, 1e30) if name.startswith("encoder.") else tensor

    without_reference(copy, overflow)
    with pytest.raises(ExportError, match="features are not finite"):
        load_encoder(copy)
    with pytest.raises(ExportError, match="features are not finite"):
        load_model(copy)


def test_an_export_that_is_replaced_while_it_is_read_mixes_nothing(copy):
    export = read_export(copy)
    without_reference(copy, lambda _: None)
    with pytest.raises(ExportError, match="was replaced while it was read; run the command again"):
        folder_module.read_weights(export)
