"""The compact table that a command leaves on the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ttepretrain.evaluation.table import TRAINED, Metric
from ttepretrain.plain_text import plain
from ttepretrain.training.config import STARTS

WIDTH = 17


def print_table(rows: Sequence[Metric]) -> None:
    """Held-out C of every arm with its interval, the paired difference and the closed gap."""
    rows = [row for row in rows if row.split == "held_out" and row.metric in ("harrell_c", "closed_gap")]
    c_rows = [row for row in rows if row.metric == "harrell_c"]
    arms = list(dict.fromkeys(row.arm for row in c_rows if row.baseline is None))
    phenotypes = list(dict.fromkeys(row.phenotype for row in c_rows))
    cells = {(row.phenotype, row.arm, row.baseline): row for row in c_rows}
    columns: list[tuple[str, str | None]] = [(arm, None) for arm in arms]
    columns += [(TRAINED, start) for start in STARTS if {TRAINED, start} <= set(arms)]
    titles = [arm if baseline is None else f"- {baseline}" for arm, baseline in columns]
    print("Harrell's C, held out [95 %]   " + "".join(title.rjust(WIDTH) for title in titles))
    for phenotype in phenotypes:
        texts = [_cell(cells.get((phenotype, *column))) for column in columns]
        print(plain(phenotype)[:30].ljust(31) + "".join(text.rjust(WIDTH) for text in texts))
    for row in rows:
        if row.metric == "closed_gap":
            value = f"{interval_text(row)}  ({row.arm} - {row.baseline}) / (oracle - {row.baseline})"
            print("closed gap".ljust(31) + (value if row.reason is None else f"-  {row.reason}"))


def interval_text(row: Metric, digits: int = 2) -> str:
    value = short(row.value, digits)
    if math.isnan(row.lo):
        return value
    return f"{value} [{short(row.lo, digits)}, {short(row.hi, digits)}]"


def short(value: float, digits: int = 2) -> str:
    """`.71`, `-.03`, `1.20`: no zero before the point."""
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return text.replace("0.", ".", 1) if abs(float(text)) < 1 else text


def _cell(row: Metric | None) -> str:
    return "-" if row is None or math.isnan(row.value) else interval_text(row)
