"""Configuration of the network, and of what an export describes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from ttepretrain.config import check_types, require, require_choice
from ttepretrain.documents import require_keys

CONVOLUTIONAL = ("densenet121", "resnet18", "resnet50", "resnet152", "i3resnet152", "segresnet")
TRANSFORMERS = ("swin_unetr", "vit_liere")  # always LayerNorm; model.norm has no effect
ENCODERS = CONVOLUTIONAL + TRANSFORMERS
NORMS = ("group", "group_ws", "batch")
MOST_WEIGHT_BYTES = 16 << 30  # of a weight file: four thousand million weights in fp32
# Of the volume whose features an export holds: the least that every encoder takes, no two axes alike.
REFERENCE_DHW = (29, 32, 37)
LARGEST_HEAD = 16_384  # rank
# Of vit_liere. Its largest tensors are the rotations of one layer: tokens x width x block.
MOST_TOKENS = 1 << 16
MOST_IN_ROTATIONS = 1 << 30  # 4 GiB
# Layouts of weight files (models/initial.py) and the encoders that have such weights.
WEIGHT_FILES = {
    "inflate": ("densenet121", "resnet18", "resnet50", "resnet152"),
    "medicalnet": ("resnet50", "resnet152"),
    "merlin": ("i3resnet152",),
    "ctfm": ("segresnet",),
    "swinvit": ("swin_unetr",),
}


@dataclass
class ViTConfig:
    """Sizes of encoder vit_liere."""

    patch: list[int] = field(default_factory=lambda: [16, 16, 16])  # voxels per token, D H W
    depth: int = 12  # number of layers
    width: int = 768  # features per token
    heads: int = 12  # attention heads; must divide the width
    block: int = 8  # b of LieRE's rotations: 2 is RoPE-Mixed, width / heads is dense; must divide width / heads
    extent_mm: float | None = None  # positions are mm over this; None: patch index over the number of patches

    def __post_init__(self) -> None:
        check_types(self, "model.vit")
        require(
            len(self.patch) == 3 and all(1 <= p <= 64 for p in self.patch) and math.prod(self.patch) >= 8,
            "model.vit.patch", self.patch, "must be three whole numbers (D H W) between 1 and 64, of 8 voxels or more",
        )  # fmt: skip
        require(1 <= self.depth <= 128, "model.vit.depth", self.depth, "must lie between 1 and 128")
        require(1 <= self.heads <= 256, "model.vit.heads", self.heads, "must lie between 1 and 256")
        require(
            self.width % self.heads == 0 and self.heads <= self.width <= 8192,
            "model.vit.width", self.width, f"must be a multiple of model.vit.heads = {self.heads}, at most 8192",
        )  # fmt: skip
        per_head = self.width // self.heads
        require(
            2 <= self.block <= min(per_head, 256) and per_head % self.block == 0,
            "model.vit.block", self.block, f"must lie between 2 and 256 and divide width / heads = {per_head}",
        )  # fmt: skip
        require(
            self.extent_mm is None or 1 <= self.extent_mm <= 100_000,
            "model.vit.extent_mm", self.extent_mm, "must lie between 1 and 100000, or be null",
        )  # fmt: skip

    def require_computable(self, shape_DHW: Sequence[int]) -> None:
        """ConfigError where volumes of this shape make more tokens or larger rotations than are computed."""
        tokens = math.prod(-(-size // patch) for size, patch in zip(shape_DHW, self.patch))
        require(
            tokens <= MOST_TOKENS and tokens * self.width * self.block <= MOST_IN_ROTATIONS,
            "model.vit.patch", self.patch,
            f"makes {tokens} tokens of volumes of {' x '.join(map(str, shape_DHW))} voxels; at most {MOST_TOKENS}, and "
            f"tokens x width x block at most {MOST_IN_ROTATIONS}, are computed",
        )  # fmt: skip


# Fields of ModelConfig that may change between two starts of a run; every other one decides the weights.
NOT_IDENTITY = frozenset({"activation_checkpointing"})


@dataclass
class ModelConfig:
    encoder: str = "densenet121"  # name of the network (docs/reference/encoders.md)
    init: str = "random"  # random | path of an export | LAYOUT:PATH of a weight file (docs/how-to/load-weights.md)
    # group: GroupNorm; group_ws: GroupNorm and standardised kernels; batch: BatchNorm, frozen when weights are loaded
    norm: str = "group"
    head_dim: int = 512  # D, the rank of the head's factorisation
    activation_checkpointing: bool = False  # less memory, one more forward pass; same features and gradients
    vit: ViTConfig = field(default_factory=ViTConfig)  # encoder vit_liere

    def __post_init__(self) -> None:
        check_types(self, "model")
        require_choice("model.encoder", self.encoder, ENCODERS)
        require_choice("model.norm", self.norm, NORMS)
        require(self.init != "", "model.init", self.init, "must be 'random', an export's folder or LAYOUT:PATH")
        require(
            1 <= self.head_dim <= LARGEST_HEAD,
            "model.head_dim", self.head_dim, f"must lie between 1 and {LARGEST_HEAD}",
        )  # fmt: skip
        if self.init_kind in WEIGHT_FILES:
            self._check_weight_file()

    @classmethod
    def from_json(cls, document: object) -> ModelConfig:
        """The model of an export's config.json. Its `init` says where the weights once came from; they are there."""
        keys = [f.name for f in dataclasses.fields(cls)]
        values = require_keys("model", document, ["encoder", "init", "norm", "head_dim"], keys) | {"init": "random"}
        if "vit" in values:
            sizes = [f.name for f in dataclasses.fields(ViTConfig)]
            values["vit"] = ViTConfig(**require_keys("model.vit", values["vit"], (), sizes))
        return cls(**values)

    def require_computable(self, shape_DHW: Sequence[int]) -> None:
        """ConfigError where volumes of this shape, or an export's reference volume, are more than is computed."""
        if self.encoder == "vit_liere":
            for shape in (shape_DHW, REFERENCE_DHW):
                self.vit.require_computable(shape)

    @property
    def init_kind(self) -> str:
        """`random`, `export`, or the layout of the weight file: what may be published where the path may not."""
        if self.init == "random":
            return "random"
        layout, colon, _ = self.init.partition(":")
        if not colon or not layout.isalnum():
            return "export"
        require_choice("model.init", layout, tuple(WEIGHT_FILES))
        return layout

    def identity(self) -> dict[str, object]:
        """The values that decide the weights: without NOT_IDENTITY, and without `vit` for an encoder not made of it."""
        values = {key: value for key, value in dataclasses.asdict(self).items() if key not in NOT_IDENTITY}
        if self.encoder != "vit_liere":
            del values["vit"]
        return values

    def _check_weight_file(self) -> None:
        layout = self.init_kind
        require(self.init != f"{layout}:", "model.init", self.init, "needs a path after the colon")
        require(
            self.encoder in WEIGHT_FILES[layout],
            "model.encoder", self.encoder, f"must be one of {', '.join(WEIGHT_FILES[layout])} for model.init={layout}:",
        )  # fmt: skip
        require(
            self.encoder in TRANSFORMERS or self.norm == "batch",
            "model.norm", self.norm, f"must be batch for model.init={layout}: which brings its statistics",
        )  # fmt: skip


@dataclass
class ExportConfig:
    descriptions: bool = False  # export descriptions of licensed and local vocabularies too (synthetic data: always)
