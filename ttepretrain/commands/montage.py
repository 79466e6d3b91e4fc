"""A PNG of some scans as the network will see them: three planes in every window, one row per scan.

    #0   axial axial axial   coronal coronal coronal   sagittal sagittal sagittal
         lung  soft  bone    ...

The patient's right is on the left and the head is up. The front is up (axial) or on the left (sagittal).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ttepretrain.errors import ConfigError
from ttepretrain.files import replacing
from ttepretrain.volume.body import BODY_HU
from ttepretrain.volume.spec import VolumeSpec
from ttepretrain.volume.windows import apply_windows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLANES = ("axial", "coronal", "sagittal")
# Width of a body: the distance between the outermost columns with 60 mm of tissue, so that couch and headrest are
# left out.
BODY_DEPTH_MM, HEAD_WIDTH_MM = 60.0, 230.0
INCHES = 1.3  # height of an axial picture


class Montage:
    """Keeps the middle planes of `shown` evenly spread scans of `num_scans`. Call `add` in the order of the scans.

    Scans no wider than a head are left out, because the outline of a head is a face.
    """

    def __init__(self, spec: VolumeSpec, num_scans: int, shown: int):
        try:
            import matplotlib  # noqa: F401  fail now rather than after hours of reading
        except ImportError:
            raise ConfigError("--montage needs matplotlib; install it, or omit the option") from None
        if spec.fit == "stretch":  # without HU and millimetres, a head cannot be recognised
            raise ConfigError("--montage: a preset that stretches scans cannot be shown; use another --preset")
        self._spec = spec
        self._wanted = [n * num_scans // shown for n in range(min(shown, num_scans))]
        self.planes: dict[int, list[np.ndarray]] = {}  # position -> int16 per plane, oriented as on the screen
        self.heads = 0

    def add(self, position: int, hu_DHW: np.ndarray) -> None:
        """Keep this usable scan if one is due. The turn of a refused scan passes to the next usable one."""
        if len(self.planes) >= len(self._wanted) or position < self._wanted[len(self.planes)]:
            return
        if _body_width_mm(hu_DHW, self._spec) < HEAD_WIDTH_MM:
            self.heads += 1
            return
        middle = [size // 2 for size in hu_DHW.shape]
        self.planes[position] = [
            hu_DHW[middle[0], ::-1, ::-1].copy(),
            hu_DHW[::-1, middle[1], ::-1].copy(),
            hu_DHW[::-1, ::-1, middle[2]].copy(),
        ]

    def save(self, path: Path) -> str:
        """Write the PNG and return a line that describes it. Nothing is written when no scan can be shown."""
        left_out = f"; {self.heads} no wider than a head left out" if self.heads else ""
        if not self.planes:
            return f"no montage: no scan to show{left_out}"
        with replacing(path) as sibling:
            _figure(self.planes, self._spec).savefig(
                sibling, format="png", dpi=100, metadata={"Software": "ttepretrain doctor"}
            )
        return f"{len(self.planes)} scans are in {path.name}{left_out}"


def _body_width_mm(hu_DHW: np.ndarray, spec: VolumeSpec) -> float:
    deep_DW = (hu_DHW > BODY_HU).sum(1) * spec.spacing_mm[1] >= BODY_DEPTH_MM
    columns = np.flatnonzero(deep_DW.any(0))
    return float((columns[-1] - columns[0] + 1) * spec.spacing_mm[2]) if len(columns) else 0.0


def _figure(planes: dict[int, list[np.ndarray]], spec: VolumeSpec) -> Figure:
    from matplotlib.figure import Figure

    d, h, w = (size * mm for size, mm in zip(spec.shape_DHW, spec.spacing_mm))
    sizes_mm = [(h, w), (d, w), (d, h)]  # of a picture: height, width
    num_windows = len(spec.windows)
    widths = [width for _, width in sizes_mm for _ in range(num_windows)]
    scale = INCHES / h
    height = max(d, h) * scale
    figure = Figure(figsize=(sum(widths) * scale + 0.4, height * len(planes) + 0.4), facecolor="black")
    axes = figure.subplots(len(planes), len(widths), squeeze=False, width_ratios=widths)
    figure.subplots_adjust(left=0.35 / figure.get_figwidth(), right=1, bottom=0, wspace=0.02, hspace=0.02,
                           top=1 - 0.4 / figure.get_figheight())  # fmt: skip
    for row, (position, pictures) in zip(axes, planes.items()):
        for plane, picture in enumerate(pictures):
            seen_C = apply_windows(torch.from_numpy(picture)[None, None], spec.windows)[0, :, 0].numpy()
            for channel, seen in enumerate(seen_C):
                axis = row[plane * num_windows + channel]
                axis.imshow(seen, cmap="gray", vmin=-1, vmax=1, extent=(0, sizes_mm[plane][1], 0, sizes_mm[plane][0]))
                axis.set_axis_off()
                if axis in axes[0]:
                    centre, width = spec.windows[channel]
                    axis.set_title(f"{PLANES[plane]}\n{centre:g} / {width:g} HU", color="white", fontsize=6, pad=2)
        row[0].text(-0.04, 0.5, f"#{position}", transform=row[0].transAxes, color="white", fontsize=7, ha="right",
                    va="center")  # fmt: skip
    return figure
