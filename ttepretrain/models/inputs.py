"""First layers of a trunk: sizes it can divide, and the axes and range a published network was trained on.

B batch, C channel, D H W slices rows columns.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

AIR = -1.0  # the lowest value of every window
OURS = "SAR"  # directions in which indices along D, H, W grow: superior, anterior, right
OPPOSITE = dict(zip("SIAPRL", "ISPALR"))


class PadToMultiple(nn.Module):
    """Air at both ends of every axis, up to the next multiple; the odd voxel at the far end."""

    def __init__(self, multiple_DHW: Sequence[int]):
        super().__init__()
        self.multiple_DHW = tuple(multiple_DHW)

    def forward(self, x_BCDHW: Tensor) -> Tensor:
        missing_DHW = [-size % multiple for size, multiple in zip(x_BCDHW.shape[2:], self.multiple_DHW)]
        if not any(missing_DHW):
            return x_BCDHW
        ends = [(missing // 2, missing - missing // 2) for missing in reversed(missing_DHW)]
        return functional.pad(x_BCDHW, [end for pair in ends for end in pair], value=AIR)


class ReadAs(nn.Module):
    """The input as a published network reads it: axes growing in the directions of `orientation`, values in [0, 1].

    Public weights then see a body in the pose they were trained on, and zero padding means what it meant there.
    """

    def __init__(self, orientation: str):
        super().__init__()
        axes = [OURS.find(code) if code in OURS else OURS.find(OPPOSITE[code]) for code in orientation]
        self.order = (0, 1, *(2 + axis for axis in axes))
        self.flipped = tuple(2 + i for i, code in enumerate(orientation) if code not in OURS)

    def forward(self, x_BCDHW: Tensor) -> Tensor:
        x = x_BCDHW.permute(self.order)
        if self.flipped:
            x = x.flip(self.flipped)
        return (x + 1) / 2

    def undo(self, x: Tensor) -> Tensor:
        """Axes of a map made from the output, back in our order and directions."""
        if self.flipped:
            x = x.flip(self.flipped)
        return x.permute([self.order.index(axis) for axis in range(5)])
