"""Small cells: a count of few people is neither shown nor recoverable by subtraction from what is shown.

    parts of a known total     100, 40, 5, 3          least 11
    5 and 3 are small          8 together, which total - 100 - 40 would reveal
    the smallest other joins   100, 48                48 is of three parts; which is which stays unknown

`least` is the smallest count that may be shown: `TaskSet.least_patients` of the run. A zero may be shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """One part of a total, or several that stand together."""

    names: tuple[str, ...]  # in the order of the parts, which says nothing about their sizes
    count: int | None  # of all of them; None: small


def hide_small(parts: Mapping[str, int], least: int) -> list[Cell]:
    """Cells that add up to the total of `parts`, largest first; parts of zero are left out.

    All small parts stand together with the smallest of the others: of small parts alone, a large sum would reveal the
    counts (20 of two parts below 11). Only a total that is small itself remains small. To exchange the counts within a
    cell changes no cell.
    """
    counts = {name: count for name, count in parts.items() if count}
    together = {name for name, count in counts.items() if count < least}
    if together:
        others = [count for name, count in counts.items() if name not in together]
        # all that are equally small: the choice of one would tell which part it is
        together |= {name for name, count in counts.items() if others and count == min(others)}
    groups: list[tuple[str, ...]] = [(name,) for name in counts if name not in together]
    if together:
        groups.append(tuple(name for name in counts if name in together))
    sums = {group: sum(counts[name] for name in group) for group in groups}
    ordered = sorted(groups, key=lambda group: -sums[group])
    return [Cell(group, sums[group] if sums[group] >= least else None) for group in ordered]


def is_small(count: int, least: int) -> bool:
    return 0 < count < least


def may_show(part: int, whole: int, least: int) -> bool:
    """Neither the part nor the rest of a whole that is known is small."""
    return not is_small(part, least) and not is_small(whole - part, least)


def count_text(count: int | None, least: int) -> str:
    """`1,234`, or `< 11` for a small count."""
    return f"< {least}" if count is None or is_small(count, least) else f"{count:,}"
