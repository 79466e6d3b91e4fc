"""Write an export: the folder that carries a trained model away from its run (layout: folder.py)."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from ttepretrain.errors import LeakageError
from ttepretrain.export.card import model_card
from ttepretrain.export.check import reference_features, versions
from ttepretrain.export.folder import CHECKED, ENCODER, SCHEMA_VERSION, previous_of
from ttepretrain.export.load import encoder_of
from ttepretrain.files import sha256_of, sync, write_json
from ttepretrain.models.config import ModelConfig
from ttepretrain.models.model import ScanModel
from ttepretrain.models.weights import refuse_not_finite
from ttepretrain.tasks import TaskSet
from ttepretrain.volume.spec import VolumeSpec

# Free to redistribute with their texts. SNOMED CT, CPT-4 and the like are licensed, local texts may name people.
OPEN_VOCABULARIES = frozenset({"ICD9CM", "ICD9Proc", "ICD10CM", "ICD10PCS", "LOINC", "RxNorm", "CVX"})


def write_export(
    folder: Path,
    model: ScanModel,
    model_config: ModelConfig,
    spec: VolumeSpec,
    tasks: TaskSet,
    provenance: dict,
    min_patients: int,
    descriptions: bool = False,
    arm: str = "tte",
) -> None:
    """Replace `folder` by an export of the model. `provenance` goes out as it is and has a bool `synthetic`.

    Of an `arm` other than tte only the encoder goes out.
    Raises LeakageError when a task rests on fewer train subjects than `min_patients`, or than its task set was made
    under. The export's task set carries the stricter threshold on.
    """
    refuse_small_counts(tasks, min_patients)
    if not isinstance(provenance.get("synthetic"), bool):
        raise ValueError(f"provenance needs `synthetic`: true or false; got {provenance.get('synthetic')!r}")
    new = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    # Not save_file: its files are readable by their owner alone, under any umask.
    weights = _weights_of(model, arm)
    (new / "model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))
    # Of the encoder as it will be loaded: on the CPU and in fp32.
    own = {name: tensor for name, tensor in weights.items() if name.startswith(ENCODER)}
    reference_F = reference_features(encoder_of(model_config, spec, own, "the model"), spec.windows)
    config = {
        "schema_version": SCHEMA_VERSION,
        "arm": arm,
        # `init` may hold a private path; what matters later is its kind.
        "model": dataclasses.asdict(model_config) | {"init": model_config.init_kind},
        "feature_dim": model.encoder.feature_dim,
        "volume": spec.to_json(),
        "provenance": provenance,
        "versions": versions(),
        "reference_features": " ".join(f"{value:.7g}" for value in reference_F.tolist()),  # one line, not thousands
    }
    write_json(new / "config.json", config)
    published = _publishable(tasks, descriptions or provenance["synthetic"])
    dataclasses.replace(published, min_patients=tasks.least_patients(min_patients)).save(new / "tasks.json")
    write_json(new / "manifest.json", {"sha256": {name: sha256_of(new / name) for name in CHECKED}})
    card = model_card(model_config, model.encoder.feature_dim, spec, tasks, provenance["synthetic"], arm)
    (new / "README.md").write_text(card)
    for path in [*new.iterdir(), new]:
        sync(path)
    _swap(new, folder)


def refuse_small_counts(tasks: TaskSet, min_patients: int) -> None:
    """Raise LeakageError when a task's row would describe few train subjects: fewer than `min_patients`, or than the
    threshold that the task set was made under.
    """
    least = tasks.least_patients(min_patients)
    small = sum(task.patients < least for task in tasks.tasks)
    if small:
        raise LeakageError(
            f"{small} of {tasks.num_tasks} tasks rest on fewer than {least} patients and cannot be exported; prepare "
            "again with more studies, or with a lower ehr.min_patients if you may publish such counts"
        )


def _weights_of(model: ScanModel, arm: str) -> dict[str, Tensor]:
    weights = {
        name: (tensor.float() if tensor.is_floating_point() else tensor).detach().cpu().contiguous().clone()
        for name, tensor in model.state_dict().items()
        if arm == "tte" or name.startswith(ENCODER)
    }
    refuse_not_finite(weights, "the model")
    return weights


def _publishable(tasks: TaskSet, descriptions: bool) -> TaskSet:
    """The task set without the descriptions that may not be passed on."""
    return dataclasses.replace(
        tasks,
        tasks=tuple(
            task
            if descriptions or task.code.partition("/")[0] in OPEN_VOCABULARIES
            else dataclasses.replace(task, description="")
            for task in tasks.tasks
        ),
    )


def _swap(new: Path, folder: Path) -> None:
    """Put `new` in the place of `folder`. At every instant `folder` or its `.previous` is whole."""
    previous = previous_of(folder)
    if folder.exists():
        shutil.rmtree(previous, ignore_errors=True)
        folder.rename(previous)
    new.rename(folder)
    sync(folder.parent)
    shutil.rmtree(previous, ignore_errors=True)
