"""HTML tables of the report, with small cells suppressed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from jobs.report.console import short
from ttepretrain.evaluation.table import Metric, pairs_of

MIN_CELL = 11  # smaller counts of people are not published (faults.md section 5)
HIDDEN = f"&lt; {MIN_CELL}"
NAMES = {
    "demographics": "Age and sex",
    "base_random": "Untrained encoder",
    "base": "Loaded weights",
    "tte": "TTE pretrained",
    "visit": "Visit codes",
    "mtl": "Phenotypes",
    "ssl": "Reconstruction",
    "oracle": "Oracle",
    "mean": "Mean",
}
# The same in every report, told apart also by readers who see no red or green.
COLOUR = {
    "demographics": "#8a8f98", "base_random": "#d08700", "base": "#7a5230", "tte": "#0b5fa5", "visit": "#7b4ab0",
    "mtl": "#c2437a", "ssl": "#45a6d6", "oracle": "#1a8a6a",
}  # fmt: skip


def title(name: str) -> str:
    text = NAMES.get(name, name.replace("_", " "))
    return text[:1].upper() + text[1:]


def is_small(row: Metric) -> bool:
    """A value computed from fewer than MIN_CELL people with the event is not published either."""
    return row.phenotype != "mean" and (row.n < MIN_CELL or row.events < MIN_CELL)


def events_text(row: Metric) -> str:
    """The number of events; neither it nor its complement may give away a small cell."""
    if is_small(row):
        return HIDDEN
    return str(row.events) if row.n - row.events >= MIN_CELL else f"&gt; {row.n - MIN_CELL}"


def minus_html(value: float) -> str:
    return short(value).replace("-", "&minus;")


def value_html(row: Metric | None) -> str:
    if row is None:
        return "<td class='v'></td>"
    if is_small(row):
        return "<td class='v off' title='small cell'>&ndash;</td>"
    if math.isnan(row.value):
        return f"<td class='v off' title='{escape(row.reason or '')}'>&ndash;</td>"
    interval = "" if math.isnan(row.lo) else f"<span>{minus_html(row.lo)} to {minus_html(row.hi)}</span>"
    value = minus_html(row.value)
    sign = "+" if row.baseline and row.metric != "closed_gap" and row.value > 0 else ""
    clear = " clear" if row.baseline and not row.lo <= 0 <= row.hi and not math.isnan(row.lo) else ""
    return f"<td class='v{clear}'>{sign}{value}{interval}</td>"


def metric_table(rows: Sequence[Metric], metric: str) -> str:
    """Phenotypes down, arms and paired differences across; the mean last."""
    rows = [row for row in rows if row.metric == metric]
    arms = list(dict.fromkeys(row.arm for row in rows if row.baseline is None))
    columns = [(arm, None) for arm in arms] + list(pairs_of(arms))
    cells = {(row.phenotype, row.horizon_days, row.arm, row.baseline): row for row in rows}
    horizons = any(row.horizon_days is not None for row in rows)
    head = "<th>Phenotype</th>" + ("<th>Horizon</th>" if horizons else "")
    head += "<th class='v'>n</th><th class='v'>Events</th>"
    head += "".join(f"<th class='v{' d' if base else ''}'>{_column(arm, base)}</th>" for arm, base in columns)
    body = []
    for phenotype, horizon in dict.fromkeys((row.phenotype, row.horizon_days) for row in rows):
        first = cells[phenotype, horizon, arms[0], None]
        mean = phenotype == "mean"
        line = f"<th>{escape(title(phenotype))}</th>"
        if horizons:
            line += f"<td>{f'{horizon:g} d' if horizon is not None else ''}</td>"
        n = HIDDEN if first.n < MIN_CELL else first.n
        line += "<td></td><td></td>" if mean else f"<td class='v'>{n}</td><td class='v'>{events_text(first)}</td>"
        line += "".join(value_html(cells.get((phenotype, horizon, *column))) for column in columns)
        body.append(f"<tr{' class=mean' if mean else ''}>{line}</tr>")
    return f"<table class='metrics'><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def arm_label(arm: str) -> str:
    """Name with the arm's colour in figures."""
    return f"<i class=dot style='background: {COLOUR[arm]}'></i>{escape(title(arm))}"


def _column(arm: str, baseline: str | None) -> str:
    if baseline is None:
        return arm_label(arm)
    return f"{escape(title(arm))} &minus; {escape(title(baseline).lower())}"


def facts(pairs: Sequence[tuple[str, object]]) -> str:
    """Definition list: name and value side by side."""
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in pairs) + "</dl>"


def merge_small(parts: dict[str, int]) -> list[tuple[str, int]]:
    """Counts that add up to a known total, largest first; small ones stand together until they are not small.

    The smallest of the others joins them where they alone would be told by the difference to the total.
    """
    kept = sorted(((count, name) for name, count in parts.items() if count), reverse=True)
    merged, names = 0, []
    while kept and (kept[-1][0] < MIN_CELL or 0 < merged < MIN_CELL):
        count, name = kept.pop()
        merged, names = merged + count, [name, *names]
    return [(name, count) for count, name in kept] + ([(", ".join(names), merged)] if names else [])


def count_text(count: int) -> str:
    return HIDDEN if 0 < count < MIN_CELL else f"{count:,}"
