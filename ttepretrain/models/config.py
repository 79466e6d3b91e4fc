"""What the network is and what an export says about its tasks."""

from __future__ import annotations

from dataclasses import dataclass

from ttepretrain.config import require, require_choice

ENCODERS = ("densenet121", "resnet18", "resnet50", "resnet152")
NORMS = ("group", "batch")


@dataclass
class ModelConfig:
    encoder: str = "densenet121"
    init: str = "random"  # random | path of an export whose encoder weights start the run
    norm: str = "group"  # group: no dependence between the studies of a batch; batch: frozen statistics when loaded
    head_dim: int = 512  # D: rank of the head's factorisation

    def __post_init__(self) -> None:
        require_choice("model.encoder", self.encoder, ENCODERS)
        require_choice("model.norm", self.norm, NORMS)
        require(self.init != "", "model.init", self.init, "must be 'random' or the folder of an export")
        require(self.head_dim >= 1, "model.head_dim", self.head_dim, "must be at least 1")


@dataclass
class ExportConfig:
    descriptions: bool = False  # task descriptions of licensed or local vocabularies too (synthetic data: always)
