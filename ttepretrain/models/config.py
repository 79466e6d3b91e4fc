"""Configuration of the network, and of what an export describes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from ttepretrain.config import require, require_choice

CONVOLUTIONAL = ("densenet121", "resnet18", "resnet50", "resnet152", "i3resnet152", "segresnet")
TRANSFORMERS = ("swin_unetr", "vit_liere")  # always LayerNorm; model.norm has no effect
ENCODERS = CONVOLUTIONAL + TRANSFORMERS
NORMS = ("group", "group_ws", "batch")
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
        require(
            len(self.patch) == 3 and all(1 <= p <= 64 for p in self.patch),
            "model.vit.patch", self.patch, "must be three whole numbers (D H W) between 1 and 64",
        )  # fmt: skip
        require(self.depth >= 1, "model.vit.depth", self.depth, "must be at least 1")
        require(self.heads >= 1, "model.vit.heads", self.heads, "must be at least 1")
        require(
            self.width >= self.heads and self.width % self.heads == 0,
            "model.vit.width", self.width, f"must be a multiple of model.vit.heads = {self.heads}",
        )  # fmt: skip
        per_head = self.width // self.heads
        require(
            2 <= self.block <= per_head and per_head % self.block == 0,
            "model.vit.block", self.block, f"must be at least 2 and divide width / heads = {per_head}",
        )  # fmt: skip
        require(self.extent_mm is None or self.extent_mm > 0, "model.vit.extent_mm", self.extent_mm, "must be positive")


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
        require_choice("model.encoder", self.encoder, ENCODERS)
        require_choice("model.norm", self.norm, NORMS)
        require(self.init != "", "model.init", self.init, "must be 'random', an export's folder or LAYOUT:PATH")
        require(self.head_dim >= 1, "model.head_dim", self.head_dim, "must be at least 1")
        if self.init_kind in WEIGHT_FILES:
            self._check_weight_file()

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> ModelConfig:
        """The model of an export's config.json."""
        vit = {"vit": ViTConfig(**document["vit"])} if "vit" in document else {}
        return cls(**document | vit)

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
