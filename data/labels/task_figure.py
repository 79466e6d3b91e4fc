"""`prepared/tasks.png`: the chosen tasks at a glance: ranking, events per task, event times."""

from __future__ import annotations

import textwrap
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from ehr.choice.bins import EventTimes
from ttepretrain.tasks import TaskSet

if TYPE_CHECKING:  # it may be absent
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

EDGES_WIDTH = 48  # letters in a line; longer ones leave the panel
INK, FAINT, BLUE = "#1d2530", "#c9ced6", "#0b5fa5"
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def draw_tasks(tasks: TaskSet, event_times: EventTimes, frozen: bool = False) -> bytes | None:
    """PNG of three panels; None without matplotlib.

    frozen: the tasks were fitted on another cohort; the first two panels, which are of it, say so.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        return None
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]  # its type lists every name of a style
        figure = Figure(figsize=(16, 5))
        figure.subplots_adjust(left=0.045, right=0.99, bottom=0.18, top=0.93, wspace=0.2)
        ranking, counts, times = figure.subplots(1, 3)
        fitted = ", as fitted" if frozen else ""
        _draw_ranking(figure, ranking, tasks, fitted)
        _draw_counts(counts, tasks, fitted)
        _draw_times(times, tasks, event_times)
        content = BytesIO()
        figure.savefig(content, format="png", dpi=110)
    return content.getvalue()


def _draw_ranking(figure: Figure, axes: Axes, tasks: TaskSet, fitted: str) -> None:
    """Score over prevalence. Below the line nothing can lie: it is the score of a code without parents."""
    prevalence, score, events = (
        np.array([getattr(task, name) for task in tasks.tasks if task.score == task.score], float)  # death has none
        for name in ("prevalence", "score", "events")
    )
    p = np.geomspace(max(prevalence[prevalence > 0].min(initial=0.5) / 2, 1e-6), 1 - 1e-9, 400)
    axes.plot(p, p * np.log(p) + (1 - p) * np.log1p(-p), color=INK, linewidth=0.8, label="parent in everybody (b = 1)")
    if len(events):
        dots = axes.scatter(prevalence, score, c=events, norm="log", s=14, cmap="viridis", linewidths=0)
        ticks = np.unique(np.round(np.geomspace(events.min(), events.max(), 5)))
        bar = figure.colorbar(dots, ax=axes, label="train events")
        bar.set_ticks(ticks.tolist(), labels=[f"{tick:,.0f}" for tick in ticks])
        bar.ax.minorticks_off()
    axes.set(xscale="log", xlabel="prevalence in train subjects", ylabel="score (lowest is chosen first)")
    _plain_numbers(axes)
    axes.set_title(f"{tasks.num_tasks:,} tasks: score and prevalence{fitted}")
    axes.legend(loc="upper center", frameon=False)


def _draw_counts(axes: Axes, tasks: TaskSet, fitted: str) -> None:
    events = np.array([task.events for task in tasks.tasks])
    # edges between whole numbers: small counts would leave gaps
    edges = np.unique(np.round(np.geomspace(events.min(), events.max() + 1, 31))) - 0.5
    axes.hist(events, bins=edges.tolist(), color=BLUE)
    median = np.median(events)
    axes.axvline(median, color=INK, linestyle="--", linewidth=1, label=f"median {median:,.0f}")
    if tasks.death_task is not None:
        death = events[tasks.death_task]
        axes.axvline(death, color="#d08700", linewidth=1.5, label=f"death {death:,}")
    axes.set(xscale="log", xlabel="train events in the risk set (studies)", ylabel="tasks")
    _plain_numbers(axes)
    axes.set_title(f"Events per task{fitted}")
    axes.set_ylim(top=axes.get_ylim()[1] * 1.12)
    axes.legend(facecolor="white", edgecolor="none", framealpha=1, loc="upper center", ncols=2)


def _draw_times(axes: Axes, tasks: TaskSet, event_times: EventTimes) -> None:
    """Bars count events per stretch of a logarithmic time axis; the lines are the bin edges of the model."""
    inner = tasks.bin_edges_days[1:-1]
    for edge in inner:
        axes.axvline(edge, color=INK, linewidth=1, linestyle="--")
    if len(event_times):
        seen = np.flatnonzero(event_times.counts)
        count, edges = np.histogram(np.log(event_times.edges[seen]), bins=60, weights=event_times.counts[seen])
        axes.stairs(count, np.exp(edges), fill=True, color=BLUE, alpha=0.75)
        axes.set_xscale("log")
        _plain_numbers(axes)
    written = ", ".join(f"{edge:,.0f}" if edge >= 10 else f"{edge:.2g}" for edge in inner)
    written = textwrap.fill(f"inner bin edges: {written}", EDGES_WIDTH)
    axes.set(xlabel=f"days from the scan\n{written}", ylabel="train events, all tasks")
    axes.set_title(f"{len(event_times):,} event times, {tasks.num_bins} bins")


def _plain_numbers(axes: Axes) -> None:
    """Numbers without exponents on a logarithmic x axis, at 1, 2, 5 of a decade while there are few."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    lo, hi = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if hi / lo < 300 else (1.0,), numticks=12))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.xaxis.set_minor_locator(NullLocator())
