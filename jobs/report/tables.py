"""HTML tables of the report. `least`: the smallest count of people that may be shown (jobs/small_cells.py)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from jobs.report.console import short
from jobs.small_cells import count_text, is_small, may_show
from ttepretrain.evaluation.table import Metric, pairs_of

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


def is_hidden(row: Metric, least: int) -> bool:
    """The value rests on fewer than `least` people, or on fewer with the event."""
    return row.phenotype != "mean" and (row.n < least or row.events < least)


def count_html(count: int | None, least: int) -> str:
    return escape(count_text(count, least))


def events_html(row: Metric, least: int) -> str:
    """The number of events, unless it or the number without the event is small."""
    if row.n < least or is_small(row.events, least):
        return count_html(None, least)
    return str(row.events) if may_show(row.events, row.n, least) else f"&gt; {row.n - least}"


def minus_html(value: float) -> str:
    return short(value).replace("-", "&minus;")


def value_html(row: Metric | None, least: int) -> str:
    if row is None:
        return "<td class='v'></td>"
    if is_hidden(row, least):
        return "<td class='v off' title='small cell'>&ndash;</td>"
    if math.isnan(row.value):
        return f"<td class='v off' title='{escape(row.reason or '')}'>&ndash;</td>"
    interval = "" if math.isnan(row.lo) else f"<span>{minus_html(row.lo)} to {minus_html(row.hi)}</span>"
    value = minus_html(row.value)
    sign = "+" if row.baseline and row.metric != "closed_gap" and row.value > 0 else ""
    clear = " clear" if row.baseline and not row.lo <= 0 <= row.hi and not math.isnan(row.lo) else ""
    return f"<td class='v{clear}'>{sign}{value}{interval}</td>"


def metric_table(rows: Sequence[Metric], metric: str, least: int) -> str:
    """Phenotypes down, arms and paired differences across; the mean last."""
    rows = [row for row in rows if row.metric == metric]
    arms = list(dict.fromkeys(row.arm for row in rows if row.baseline is None))
    columns: list[tuple[str, str | None]] = [(arm, None) for arm in arms]
    columns += pairs_of(arms)
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
        counts = (count_html(first.n, least), events_html(first, least))
        line += "<td></td><td></td>" if mean else "".join(f"<td class='v'>{count}</td>" for count in counts)
        line += "".join(value_html(cells.get((phenotype, horizon, *column)), least) for column in columns)
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
