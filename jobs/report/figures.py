"""Figures of the report as data URIs: vector graphics, and a bitmap for scans."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from jobs.report.tables import COLOUR, is_hidden, title
from ttepretrain.evaluation.table import Metric

if TYPE_CHECKING:  # newer than the oldest matplotlib that draws the figures
    from matplotlib.typing import RcKeyType

PAGE_FONTS = "Inter, 'Helvetica Neue', Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif"
WIDTH = 9.8  # inches: the page's column at 96 pixels an inch, so that 9 points stay 9 points
INK, FAINT = "#1d2530", "#c9ced6"
STYLE: dict[RcKeyType, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib; the page's own fonts take its place below
    "font.size": 9,
    "svg.fonttype": "none",  # text stays text: small, sharp, selectable
    "svg.hashsalt": "report",
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
}


def forest(rows: Sequence[Metric], metric: str, least: int) -> str | None:
    """Value and interval of every arm per phenotype; None when every row is a small cell or has no value."""
    rows = [row for row in rows if row.metric == metric and row.baseline is None]
    rows = [row for row in rows if not is_hidden(row, least) and not math.isnan(row.value)]
    phenotypes = list(dict.fromkeys(row.phenotype for row in rows))
    arms = list(dict.fromkeys(row.arm for row in rows))
    if not rows:
        return None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.5 * len(phenotypes) + 0.9))
        axes = figure.add_axes((0.2, 0.55 / figure.get_figheight(), 0.785, 1 - 0.9 / figure.get_figheight()))
        for row in rows:
            arm = arms.index(row.arm)
            y = -phenotypes.index(row.phenotype) + 0.62 * (0.5 - (arm + 0.5) / len(arms))
            colour = COLOUR[row.arm]
            if not math.isnan(row.lo):
                axes.plot([row.lo, row.hi], [y, y], color=colour, linewidth=1.6, solid_capstyle="round", alpha=0.55)
            axes.plot(row.value, y, "o", color=colour, markersize=5)
        axes.axvline(0.5, color=INK, linewidth=0.8, linestyle=(0, (2, 3)))
        axes.set_yticks([-i for i in range(len(phenotypes))], [title(name) for name in phenotypes])
        axes.set_ylim(-len(phenotypes) + 0.4, 0.6)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x", color=FAINT, linewidth=0.5)
        axes.set_axisbelow(True)
        axes.set_xlabel("Harrell's C, held out (.5 = chance)" if metric == "harrell_c" else "AUROC, held out")
        return _svg(figure)


def training_curve(records: Sequence[dict]) -> str | None:
    """Loss per step (faint), its running median, and the tuning loss; None without finite values."""
    train = np.array([(r["step"], r["loss"]) for r in records if _finite(r.get("loss"))], float).reshape(-1, 2)
    tuning = np.array([(r["step"], r["loss_tuning"]) for r in records if _finite(r.get("loss_tuning"))], float)
    if not len(train):
        return None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.2))
        axes = figure.add_axes((0.075, 0.15, 0.91, 0.82))
        axes.plot(*train.T, color=COLOUR["tte"], linewidth=0.7, alpha=0.3)
        half = max(1, len(train) // 60)
        smooth = [np.median(train[max(0, i - half) : i + half + 1, 1]) for i in range(len(train))]
        axes.plot(train[:, 0], smooth, color=COLOUR["tte"], linewidth=1.6, label="train")
        if len(tuning):
            axes.plot(*tuning.T, "o-", color=COLOUR["base_random"], linewidth=1.2, markersize=4, label="tuning")
        shown = np.concatenate([train[:, 1], tuning.reshape(-1, 2)[:, 1]])
        low, high = np.percentile(shown, [0.5, 99.5])
        margin = 0.06 * (high - low) or 1e-3
        axes.set_ylim(low - margin, high + margin)
        axes.set_xlabel("step")
        axes.set_ylabel("negative log-likelihood per cell")
        axes.legend(frameon=False, loc="upper right")
        return _svg(figure)


def montage(volumes: Sequence[np.ndarray], spacing_mm: Sequence[float], centre: float, width: float) -> str:
    """Middle axial, coronal and sagittal slices of each int16 HU volume [D, H, W], in one window."""
    depth, row, column = spacing_mm
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.78 * WIDTH), facecolor="black")
        grid = figure.subplots(3, len(volumes), gridspec_kw={"wspace": 0.02, "hspace": 0.02})
        figure.subplots_adjust(0, 0, 1, 1)
        for across, hu_DHW in enumerate(volumes):
            d, h, w = (size // 2 for size in hu_DHW.shape)
            # Axes run to superior, anterior and right or left: shown as a reader looks at them, front and head up.
            planes = (
                (hu_DHW[d, ::-1], row / column),
                (hu_DHW[::-1, h], depth / column),
                (hu_DHW[::-1, :, w], depth / row),
            )
            for down, (plane, aspect) in enumerate(planes):
                axes = grid.reshape(3, -1)[down, across]
                axes.imshow(
                    plane, cmap="gray", vmin=centre - width / 2, vmax=centre + width / 2, aspect=aspect,
                    interpolation="bilinear",
                )  # fmt: skip
                axes.set_axis_off()
        buffer = BytesIO()
        figure.savefig(buffer, format="png", dpi=120, facecolor="black")
        return _uri("image/png", buffer.getvalue())


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _svg(figure: Figure) -> str:
    buffer = BytesIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _uri("image/svg+xml", buffer.getvalue().replace(b"'DejaVu Sans'", PAGE_FONTS.encode()))


def _uri(mime: str, data: bytes) -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"
