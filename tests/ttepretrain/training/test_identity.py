"""What a run is: every field of a configuration is classified, and checkpoints of earlier releases still compare."""

import dataclasses
import types
import typing

import pytest

from ttepretrain.errors import ConfigError
from ttepretrain.models import config as models
from ttepretrain.models.config import ModelConfig, ViTConfig
from ttepretrain.training import config as training
from ttepretrain.training.config import TrainConfig
from ttepretrain.training.identity import check_identity
from ttepretrain.volume.dicom.choice import Reading
from ttepretrain.volume.spec import PRESETS

# These names stand in checkpoints. A new field belongs here if it decides the weights, else in NOT_IDENTITY of its
# module; renaming one is another run to every checkpoint.
TRAIN = {
    "epochs", "batch_size", "lr", "head_lr", "warmup_fraction", "head_fit_studies", "head_fit_deviation",
    "weight_decay", "grad_clip", "precision", "augment", "augment_flip", "augment_blur", "seed",
}  # fmt: skip
MODEL = {"encoder", "init", "norm", "head_dim", "vit"}
VIT = {"patch", "depth", "width", "heads", "block", "extent_mm"}
DEFAULTS = {"train.blur": 0.0, "train.seed": 0, "model.vit": {"depth": 12, "gate": False}}


def names(schema) -> set[str]:
    return {field.name for field in dataclasses.fields(schema)}


@pytest.mark.parametrize(
    ("schema", "decides", "does_not"),
    [
        (TrainConfig, TRAIN, training.NOT_IDENTITY),
        (ModelConfig, MODEL, models.NOT_IDENTITY),
        (ViTConfig, VIT, frozenset()),
    ],
)
def test_every_field_is_classified_as_deciding_the_weights_or_not(schema, decides, does_not):
    assert not decides & does_not
    assert decides | does_not == names(schema), "say of the new field whether it decides the weights"


def test_the_identity_holds_the_fields_that_decide():
    assert TrainConfig().resolve("resnet18", "fp32").identity().keys() == TRAIN
    assert ModelConfig("vit_liere").identity().keys() == MODEL
    assert ModelConfig("vit_liere").identity()["vit"].keys() == VIT
    assert ModelConfig("resnet18").identity().keys() == MODEL - {"vit"}  # which that encoder does not read


def test_the_identity_holds_the_derived_rate_and_the_chosen_precision():
    identity = TrainConfig().resolve("swin_unetr", "bf16").identity()
    assert (identity["lr"], identity["precision"]) == (0.001, "bf16")


@pytest.mark.parametrize(
    "other",
    [
        {"spacing_mm": (9.0, 9.0, 9.0)}, {"shape_DHW": (8, 8, 8)}, {"hu_range": (-1000, 1000)},
        {"windows": ((0.0, 9.0),)}, {"fit": "image"}, {"reading": Reading(min_slices=5)},
    ],
    ids=lambda other: next(iter(other)),
)  # fmt: skip
def test_every_field_of_the_volume_decides(other):
    spec = PRESETS["default"]
    assert dataclasses.replace(spec, **other).identity() != spec.identity()


def test_no_field_of_the_volume_is_left_out_above():
    assert names(type(PRESETS["default"])) == {"spacing_mm", "shape_DHW", "hu_range", "windows", "fit", "reading"}


@pytest.mark.parametrize("schema", [TrainConfig, ModelConfig, ViTConfig])
def test_a_field_that_may_be_null_is_null_by_default(schema):
    """In a checkpoint, null stands for the default."""
    for name, kind in typing.get_type_hints(schema).items():
        if isinstance(kind, types.UnionType) and type(None) in kind.__args__:
            assert getattr(schema(), name) is None, name


@pytest.mark.parametrize("saved", [{"train.seed": 0}, {"train.seed": 0, "train.blur": None}, {}])
def test_a_key_that_a_checkpoint_lacks_has_its_default(saved):
    check_identity(saved, {"train.seed": 0, "train.blur": 0.0}, DEFAULTS, [])
    with pytest.raises(ConfigError, match=r"train.blur: 0.0 in the checkpoint, 1.5 now"):
        check_identity(saved, {"train.seed": 0, "train.blur": 1.5}, DEFAULTS, [])


def test_a_key_that_a_section_of_a_checkpoint_lacks_has_its_default():
    check_identity({"model.vit": {"depth": 3}}, {"model.vit": {"depth": 3, "gate": False}}, DEFAULTS, [])
    with pytest.raises(ConfigError, match=r"model.vit: "):
        check_identity({"model.vit": {"depth": 3}}, {"model.vit": {"depth": 3, "gate": True}}, DEFAULTS, [])


def test_a_key_that_this_release_lacks_is_a_difference():
    with pytest.raises(ConfigError, match=r"train.mixup: 0.2 in the checkpoint, None now"):
        check_identity({"train.mixup": 0.2}, {}, DEFAULTS, [])


def test_permission_is_given_by_name_and_never_for_the_model():
    saved, current = {"train.seed": 1, "model.norm": "group"}, {"train.seed": 2, "model.norm": "group"}
    check_identity(saved, current, DEFAULTS, ["train.seed"])
    with pytest.raises(ConfigError, match=r"or permit it: train.allow_change=\[train.seed\]"):
        check_identity(saved, current, DEFAULTS, [])
    with pytest.raises(ConfigError, match=r"start another run with name=...\n  model.norm: group in"):
        check_identity(saved, current | {"model.norm": "batch"}, DEFAULTS, ["train.seed", "model.norm"])
