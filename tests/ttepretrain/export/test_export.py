"""Exports: the same model bit for bit, whole or absent, strict, without private counts or texts, and never code."""

import dataclasses
import json
import os
import pickle
import re
import shutil
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save
from torch import nn

from ttepretrain import load_encoder, load_model
from ttepretrain.errors import ExitCode, IntegrityError, LeakageError
from ttepretrain.export import write as export_module
from ttepretrain.export.folder import read_export, read_weights
from ttepretrain.export.write import write_export
from ttepretrain.files import sha256_of
from ttepretrain.models.config import ModelConfig
from ttepretrain.models.encoder import TRUNKS
from ttepretrain.models.networks.densenet import densenet121_trunk
from ttepretrain.tasks import Task
from ttepretrain.testing import random_task_set, write_tiny_export
from ttepretrain.volume.spec import PREPROCESS_VERSION


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written") / "export"
    return folder, write_tiny_export(folder, seed=3)


@pytest.fixture
def copy(written, tmp_path):
    """A copy to damage. Its files are links: replace them, never write into them."""
    return shutil.copytree(written[0], tmp_path / "export", copy_function=os.link)


def replace(folder, name: str, content: bytes, trusted: bool = True) -> None:
    """Put other bytes in a file; `trusted` corrects the manifest, as an attacker would."""
    (folder / name).unlink()
    (folder / name).write_bytes(content)
    if trusted:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        manifest["sha256"][name] = sha256_of(folder / name)
        (folder / "manifest.json").unlink()
        (folder / "manifest.json").write_text(json.dumps(manifest))


def edit(folder, name: str, change) -> None:
    document = json.loads((folder / name).read_bytes())
    change(document)
    replace(folder, name, json.dumps(document).encode())


def config_of(folder) -> dict:
    return json.loads((folder / "config.json").read_bytes())


def volume(seed: int = 0) -> torch.Tensor:
    return torch.randint(-1024, 1500, (2, 29, 30, 31), dtype=torch.int16, generator=torch.Generator().manual_seed(seed))


def test_a_reloaded_model_is_the_written_one_bit_for_bit(written):
    folder, model = written
    again = load_model(folder)
    assert not again.training
    expected, found = model.state_dict(), again.state_dict()
    assert list(expected) == list(found)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    with torch.no_grad():
        assert torch.equal(model(volume()), again(volume()))


def test_an_encoder_embeds_batches_as_the_model_does(written):
    folder, model = written
    encoder = load_encoder(folder)
    features_BF = encoder.embed_hu(volume())
    with torch.no_grad():
        assert torch.equal(features_BF, model.features(volume()))
    assert features_BF.dtype == torch.float32
    assert features_BF.shape == (2, encoder.feature_dim) == (2, 1024)


def test_volumes_on_another_grid_are_refused(written):
    with pytest.raises(ValueError, match=r"must be \[B, \(29, 30, 31\)\]; got \(1, 30, 29, 31\)"):
        load_encoder(written[0]).embed_hu(torch.zeros(1, 30, 29, 31, dtype=torch.int16))


def test_no_scan_gives_no_row(written):
    assert load_encoder(written[0]).embed([]).shape == (0, 1024)


def test_the_description_tells_what_was_written(written):
    export = read_export(written[0])
    assert export.model == ModelConfig(head_dim=3)
    assert export.spec.shape_DHW == (29, 30, 31)
    assert export.preprocess_version == PREPROCESS_VERSION
    assert export.tasks.num_tasks == 5
    assert export.provenance == {"synthetic": True, "seed": 3}
    assert set(export.versions) == {"ttepretrain", "torch", "monai"}
    assert re.fullmatch("[0-9a-f]{64}", export.fingerprint)


def test_weights_from_half_precision_or_another_memory_format_are_written_as_plain_fp32(written, tmp_path):
    model = load_model(written[0]).to(memory_format=torch.channels_last_3d).bfloat16()
    rewrite(written[0], tmp_path / "half", model)
    weights = read_weights(read_export(tmp_path / "half"))
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    load_model(tmp_path / "half")


def rewrite(source, folder, model=None, tasks=None, provenance=None, min_patients=11, config=None, **options):
    export = read_export(source)
    write_export(
        folder, model or load_model(source), config or export.model, export.spec, tasks or export.tasks,
        provenance or export.provenance, min_patients, **options
    )  # fmt: skip


class TestPrivacy:
    def test_a_task_with_too_few_patients_is_refused_with_the_number_of_such_tasks(self, written, tmp_path):
        tasks = read_export(written[0]).tasks
        rare = tuple(dataclasses.replace(task, patients=10) for task in tasks.tasks[:2])
        tasks = dataclasses.replace(tasks, tasks=(*rare, *tasks.tasks[2:]), min_patients=None)
        with pytest.raises(LeakageError, match="2 of 5 tasks rest on fewer than 11 patients") as caught:
            rewrite(written[0], tmp_path / "export", tasks=tasks)
        assert caught.value.exit_code == ExitCode.LEAKAGE
        assert not list(tmp_path.iterdir())
        rewrite(written[0], tmp_path / "export", tasks=tasks, min_patients=10)
        assert read_export(tmp_path / "export").tasks.min_patients == 10

    @pytest.mark.parametrize(("made_under", "configured"), [(11, 2), (2, 11), (11, 11), (None, 11)])
    def test_the_stricter_of_the_tasks_own_and_the_configured_threshold_holds(
        self, written, tmp_path, made_under, configured
    ):
        """Lowering ehr.min_patients after `prepare` weakens nothing; raising it is honoured."""
        tasks = read_export(written[0]).tasks
        rare = dataclasses.replace(tasks.tasks[0], patients=10)
        tasks = dataclasses.replace(tasks, tasks=(rare, *tasks.tasks[1:]), min_patients=made_under)
        with pytest.raises(LeakageError, match="1 of 5 tasks rest on fewer than 11 patients"):
            rewrite(written[0], tmp_path / "export", tasks=tasks, min_patients=configured)

    @pytest.mark.parametrize(("made_under", "configured"), [(5, 11), (11, 5), (None, 11)])
    def test_an_export_carries_the_stricter_threshold_on(self, written, tmp_path, made_under, configured):
        tasks = dataclasses.replace(read_export(written[0]).tasks, min_patients=made_under)
        rewrite(written[0], tmp_path / "export", tasks=tasks, min_patients=configured)
        assert read_export(tmp_path / "export").tasks.min_patients == 11

    @pytest.mark.parametrize(
        ("synthetic", "asked", "kept"),
        [(False, False, ["ICD10CM/I27.0"]), (False, True, "all"), (True, False, "all")],
    )
    def test_descriptions_of_closed_and_local_vocabularies_stay_at_home(
        self, written, tmp_path, synthetic, asked, kept
    ):
        tasks = read_export(written[0]).tasks
        codes = ["ICD10CM/I27.0", "SNOMED/70995007", "LOCAL/seen by Dr Canary", "CPT4/71250", "MEDS_DEATH"]
        named = tuple(
            dataclasses.replace(task, code=code, description="text") for code, task in zip(codes, tasks.tasks)
        )
        tasks = dataclasses.replace(tasks, tasks=named)
        rewrite(written[0], tmp_path / "export", tasks=tasks, provenance={"synthetic": synthetic}, descriptions=asked)
        found = read_export(tmp_path / "export").tasks
        assert [task.code for task in found.tasks if task.description] == (codes if kept == "all" else kept)
        assert found.codes == tasks.codes

    def test_the_path_of_initial_weights_is_not_told(self, written, tmp_path):
        rewrite(written[0], tmp_path / "export", config=ModelConfig(head_dim=3, init="/home/canary/export"))
        assert json.loads((tmp_path / "export/config.json").read_text())["model"]["init"] == "export"
        for file in (tmp_path / "export").glob("*.[jm]*"):
            assert b"canary" not in file.read_bytes()
        load_model(tmp_path / "export")

    def test_provenance_must_say_whether_the_data_are_synthetic(self, written, tmp_path):
        with pytest.raises(ValueError, match="provenance needs `synthetic`: true or false; got None"):
            rewrite(written[0], tmp_path / "export", provenance={"arm": "tte"})

    def test_the_card_is_generic_and_says_synthetic_only_when_it_is(self, written, tmp_path):
        card = (written[0] / "README.md").read_text()
        assert card.startswith("---\nlibrary_name: ttepretrain\npipeline_tag: image-feature-extraction\n")
        assert "Trained on synthetic data" in card
        assert not re.search(r"\b(19|20)\d\d\b|hospital|universit|institut", card, re.IGNORECASE)
        rewrite(written[0], tmp_path / "export", provenance={"synthetic": False})
        assert "synthetic" not in (tmp_path / "export/README.md").read_text()


class TestWholeOrAbsent:
    def test_writing_again_replaces_the_folder_and_leaves_nothing_beside_it(self, written, copy):
        (copy / "stray.txt").write_text("from an older release")
        rewrite(written[0], copy, provenance={"synthetic": True, "step": 2})
        assert read_export(copy).provenance["step"] == 2
        assert [path.name for path in copy.parent.iterdir()] == ["export"]
        names = {path.name for path in copy.iterdir()}
        assert names == {"model.safetensors", "config.json", "tasks.json", "manifest.json", "README.md"}

    @pytest.mark.parametrize("renames_done", [0, 1])
    def test_a_writer_that_dies_while_swapping_leaves_a_whole_export(self, written, copy, monkeypatch, renames_done):
        """Before the first rename, and between the two."""
        real, calls = type(copy).rename, []

        def rename(path, target):
            if len(calls) == renames_done:
                raise KeyboardInterrupt
            calls.append(target)
            return real(path, target)

        with monkeypatch.context() as patch:
            patch.setattr(type(copy), "rename", rename)
            with pytest.raises(KeyboardInterrupt):
                rewrite(written[0], copy, provenance={"synthetic": True, "step": 2})
        assert read_export(copy).provenance == {"synthetic": True, "seed": 3}
        rewrite(written[0], copy, provenance={"synthetic": True, "step": 3})
        assert read_export(copy).provenance["step"] == 3
        assert [path.name for path in copy.parent.iterdir()] == ["export"]

    def test_a_model_with_nan_is_not_written(self, written, tmp_path):
        model = load_model(written[0])
        with torch.no_grad():
            model.head.bias_TK[1, 2] = float("nan")
        with pytest.raises(IntegrityError, match=r"1 weights hold NaN or infinity: head.bias_TK"):
            rewrite(written[0], tmp_path / "export", model)
        assert not (tmp_path / "export").exists()


class TestDamage:
    @pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tasks.json"])
    def test_one_flipped_bit_is_an_integrity_error(self, copy, name):
        content = bytearray((copy / name).read_bytes())
        content[len(content) // 2] ^= 1
        replace(copy, name, bytes(content), trusted=False)
        with pytest.raises(IntegrityError, match=f"{name} does not match manifest.json") as caught:
            load_encoder(copy)
        assert caught.value.exit_code == ExitCode.INTEGRITY

    @pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tasks.json", "manifest.json"])
    def test_a_missing_file_is_named(self, copy, name):
        (copy / name).unlink()
        with pytest.raises(IntegrityError, match=f"no complete export: {name}: No such file"):
            load_model(copy)

    def test_an_edited_model_card_is_fine(self, copy):
        (copy / "README.md").unlink()
        (copy / "README.md").write_text("completed by the publisher")
        read_export(copy)

    @pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"null", b"\xff\xfe", b'{"sha256": 3}', b"[" * 100_000])
    @pytest.mark.parametrize("name", ["manifest.json", "config.json", "tasks.json"])
    def test_documents_that_are_something_else_are_declared_errors(self, copy, name, content):
        replace(copy, name, content, trusted=name != "manifest.json")
        with pytest.raises(IntegrityError):
            read_export(copy)

    def test_a_newer_schema_is_refused(self, copy):
        edit(copy, "config.json", lambda document: document.update(schema_version=2))
        with pytest.raises(IntegrityError, match="schema_version 2, this release reads 1"):
            read_export(copy)

    def test_an_unknown_encoder_is_refused_with_the_known_ones(self, copy):
        edit(copy, "config.json", lambda document: document["model"].update(encoder="os.system"))
        with pytest.raises(IntegrityError, match=r"model.encoder must be one of densenet121, "):
            load_model(copy)

    def test_other_preprocessing_is_described_but_not_used(self, copy):
        edit(copy, "config.json", lambda document: document["volume"].update(preprocess_version=0))
        read_export(copy)
        for load in (load_encoder, load_model):  # the one embeds, the other tells risks
            with pytest.raises(IntegrityError, match="trained on preprocessing version 0"):
                load(copy)


class TestOtherLibraries:
    """The network's code is not in the export: another MONAI or torch may build another network of the same weights."""

    @pytest.fixture
    def other_monai(self, monkeypatch):
        """The same names and shapes, another slope below zero."""

        def trunk(request):
            trunk = densenet121_trunk(request)
            for module in trunk.layers.modules():
                if isinstance(module, nn.ReLU):
                    module.__class__, module.negative_slope = nn.LeakyReLU, 0.01
            return trunk

        monkeypatch.setitem(TRUNKS, "densenet121", trunk)

    @pytest.mark.usefixtures("other_monai")
    def test_other_features_of_the_same_weights_are_refused_with_the_versions_to_install(self, written):
        torch_said = re.escape(f"torch {torch.__version__} (here {torch.__version__})")
        for load in (load_encoder, load_model):
            with pytest.raises(IntegrityError, match=rf"differ by .* of their norm .* 0\.001 is allowed.*{torch_said}"):
                load(written[0])

    @pytest.mark.usefixtures("other_monai")
    def test_exports_from_before_features_were_told_still_load(self, copy):
        edit(copy, "config.json", lambda document: document.pop("reference_features"))
        load_encoder(copy)
        assert load_model(copy).encoder.feature_dim == 1024

    def test_an_encoder_alone_is_checked_too(self, written, tmp_path, request):
        rewrite(written[0], tmp_path / "export", arm="visit")
        load_encoder(tmp_path / "export")
        request.getfixturevalue("other_monai")
        with pytest.raises(IntegrityError, match="install what it was exported with: ttepretrain"):
            load_encoder(tmp_path / "export")

    @pytest.mark.parametrize(("factor", "refused"), [(1 + 1e-4, False), (1 + 3e-3, True), (0.0, True)])
    def test_rounding_is_allowed_and_no_more(self, copy, factor, refused):
        features = [float(word) * factor for word in config_of(copy)["reference_features"].split()]
        edit(copy, "config.json", lambda document: document.update(reference_features=" ".join(map(str, features))))
        if not refused:
            load_encoder(copy)
            return
        with pytest.raises(IntegrityError, match="features of the reference volume differ"):
            load_encoder(copy)

    @pytest.mark.parametrize("content", ["", "1 2 3", "a " * 1024, [0.5] * 1024, 7, "nan " * 1024])
    def test_features_that_are_none_are_declared_errors(self, copy, content):
        edit(copy, "config.json", lambda document: document.update(reference_features=content))
        with pytest.raises(IntegrityError):
            load_encoder(copy)


class TestHostileWeights:
    @staticmethod
    def header(document: str, tensors: bytes = b"\0" * 16) -> bytes:
        return struct.pack("<Q", len(document)) + document.encode() + tensors

    def contents(self) -> dict[str, bytes]:
        def tensor(start: int) -> str:
            return f'{{"dtype":"F32","shape":[4],"data_offsets":[{start},{start + 16}]}}'

        return {
            "header of 2^62 bytes": struct.pack("<Q", 2**62) + b"{}",
            "truncated": self.header(f'{{"a":{tensor(0)}}}', b"\0" * 8),
            "overlap": self.header(f'{{"a":{tensor(0)},"b":{tensor(0)}}}'),
            "duplicate keys": self.header(f'{{"a":{tensor(0)},"a":{tensor(16)}}}', b"\0" * 32),
            "beyond the end": self.header(f'{{"a":{tensor(2**40)}}}'),
            "not json": self.header("os.abort()"),
            "empty": b"",
            "pickle": pickle.dumps(Canary()),
            "other names": save({"a": torch.zeros(4)}),
        }

    def test_every_odd_file_is_refused_and_none_runs(self, copy):
        for name, content in self.contents().items():
            replace(copy, "model.safetensors", content)
            message = r"0 of \d+ weights match" if name == "other names" else "model.safetensors cannot be read"
            with pytest.raises(IntegrityError, match=message):
                load_model(copy)
            assert not Canary.sung, name

    def test_files_that_could_run_code_are_never_opened(self, copy):
        (copy / "pytorch_model.bin").write_bytes(pickle.dumps(Canary()))
        (copy / "modeling.py").write_text("raise SystemExit('imported')")
        load_model(copy)
        assert not Canary.sung

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda w: w.pop("head.bias_TK"), "missing: head.bias_TK; unknown: none"),
            (lambda w: w.update(extra=torch.zeros(1)), "missing: none; unknown: extra"),
            (lambda w: w.update({"head.tias": w.pop("head.bias_TK")}), "missing: head.bias_TK; unknown: head.tias"),
            (
                lambda w: w.update({"head.bias_TK": torch.zeros(4, 6)}),
                r"head.bias_TK is F32\[4, 6\], expected \[4, 5\]: the bins and tasks",
            ),
            (lambda w: w.update({"head.bias_TK": torch.zeros(4, 5, dtype=torch.float16)}), "head.bias_TK float16"),
            (lambda w: w.update({"head.bias_TK": torch.full((4, 5), torch.nan)}), "NaN or infinity: head.bias_TK"),
        ],
        ids=["missing", "extra", "misnamed", "width", "dtype", "nan"],
    )
    def test_weights_of_another_model_are_refused_with_names(self, copy, change, message):
        weights = load_file(copy / "model.safetensors")
        change(weights)
        replace(copy, "model.safetensors", save(weights))
        with pytest.raises(IntegrityError, match=message):
            load_model(copy)


class Canary:
    sung = False

    def __reduce__(self):
        return (setattr, (Canary, "sung", True))


def test_open_vocabularies_are_spelt_as_task_codes_are():
    """`vocabulary/concept_code`, before the slash."""
    assert not any("/" in name for name in export_module.OPEN_VOCABULARIES)
    task = Task("LOINC/2160-0", "Creatinine", 0.1, -0.2, 50, 60, 1e-3)
    tasks = dataclasses.replace(random_task_set(np.random.default_rng(0), 1), tasks=(task,))
    assert export_module._publishable(tasks, False) == tasks


def test_a_model_card_has_no_text_of_health_records(tmp_path):
    """Only names we chose and numbers: nothing in it can be markup of somebody else's."""
    tasks = random_task_set(np.random.default_rng(0), 5)
    hostile = dataclasses.replace(tasks.tasks[0], code="A/<script>", description="[click](http://a) <script>\x1b[2J")
    write_tiny_export(tmp_path / "export", tasks=dataclasses.replace(tasks, tasks=(hostile, *tasks.tasks[1:])))
    card = (tmp_path / "export" / "README.md").read_text()
    assert not {"script", "click", "A/<", "\x1b"} & set(re.findall(r"script|click|A/<|\x1b", card))
    assert read_export(tmp_path / "export").tasks.tasks[0] == hostile


def test_an_export_from_before_arms_features_and_thresholds_were_stored_loads_as_ever(written, copy):
    """The first exports of schema version 1; what they lack has one meaning."""

    def older(config):
        for key in ("arm", "reference_features"):
            del config[key]
        for key in ("vit", "activation_checkpointing"):
            del config["model"][key]

    edit(copy, "config.json", older)
    edit(copy, "tasks.json", lambda tasks: tasks.pop("min_patients"))
    expected, found = load_model(written[0]).state_dict(), load_model(copy).state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert read_export(copy).tasks.min_patients is None
