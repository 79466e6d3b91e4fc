"""What the trainer asks of an arm. B studies, D H W slices rows columns, F features.

batch --augment--> HU --example--> (network's input, target) ; network(input) --loss_sum(., target)--> sum, cells
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from torch import Tensor

from ttepretrain.batch import Batch
from ttepretrain.models.model import ScanModel
from ttepretrain.training.distributed import Ranks

Features = Callable[[Tensor], Tensor]  # HU [B, D, H, W] -> [B, F], in the run's precision


class Objective(ABC):
    """One arm: the model it trains and its loss. An export holds the whole model for `tte`, else its encoder."""

    arm: ClassVar[str]
    unit: ClassVar[str]  # of the loss, for the picture
    reference: ClassVar[str]  # what the loss before the first step is the loss of
    starts_from_features: ClassVar[bool] = True  # `start` does something

    def __init__(self, model: ScanModel):
        self.model = model  # its last layer starts at zero, but for a bias

    def example(self, hu_BDHW: Tensor, seeds_B: Tensor, batch: Batch) -> tuple[Tensor, Any]:
        """What the network is given and what `loss_sum` compares its output with. seeds_B: one int64 a study."""
        del seeds_B
        return hu_BDHW, batch

    @abstractmethod
    def loss_sum(self, output: Any, target: Any) -> tuple[Tensor, Tensor]:
        """Loss summed over the cells of these studies that count, and their number (int64)."""

    def start(self, features: Features, batches: Iterable[Batch], ranks: Ranks) -> bool:
        """Set the head by the untrained encoder's features of some train studies; whether that changes the loss.

        batches: this rank's share. Collective.
        """
        del features, batches, ranks
        return False
