"""The plan as it may be shown: numbers without small cells, and a table of them for a person."""

from __future__ import annotations

from collections.abc import Mapping

from jobs.small_cells import count_text, hide_small, is_small, may_show
from ttepretrain.splits import SPLITS

LEFT_OUT = {
    "NO_SUBJECT": "no record in the EHR",
    "OUTSIDE_OBSERVATION": "outside observation",
    "NO_FOLLOW_UP": "no follow-up after the blackout",
}


def publishable(document: dict, least: int) -> dict:
    """The numbers of `measure` without counts of fewer than `least` people.

    Rows are divided first, then the usable ones: by what becomes of them, and by their images. Where few rows are not
    usable, they stay a part of each division: the total of one would otherwise give them away.
    """
    shown = dict(document)
    rows = document["rows"]
    beside = {name: rows[name] for cell in hide_small(rows, least) if "usable" in cell.names for name in cell.names}
    beside.pop("usable", None)
    shown["rows"] = _cells(rows, least)
    for name in ("splits", "images"):
        if name in shown:
            shown[name] = _cells(shown[name] | beside, least)
    if "labels" in shown:
        del shown["splits"]  # the differences to the labelled studies may be small
        shown["labels"] = _publishable_labels(document["labels"], beside, least)
    if "volumes" in shown:
        shown["volumes"] = _rounded_up(document["volumes"], least)
    return shown


def _publishable_labels(labels: dict, beside: dict[str, int], least: int) -> dict:
    shown = dict(labels)
    labelled = shown.pop("labelled")
    left_out = {LEFT_OUT[code]: count for code, count in shown.pop("left_out").items()}
    shown["studies"] = _cells(labelled | left_out | beside, least)
    rows = [_without_small(row, labelled, least) for row in labels["phenotypes"]]
    shown["phenotypes"] = _without_small_differences(rows, least)
    total = sum(labelled.values())
    followed = round(labels["followed_over_a_year"] * total)
    # two digits: more would give away the exact number of studies
    shown["followed_over_a_year"] = round(followed / total, 2) if may_show(followed, total, least) else None
    if is_small(total, least):
        shown["follow_up_days"] = None
    return shown


def _cells(parts: Mapping[str, int], least: int) -> dict[str, int | None]:
    return {" with ".join(cell.names): cell.count for cell in hide_small(parts, least)}


def _without_small(answers: dict, labelled: dict[str, int], least: int) -> dict:
    """Positives, and the known answers as a share: their exact number would give away how many are unknown."""
    shown = dict(answers)
    for split, studies in labelled.items():
        known, positive = (answers[split][name] for name in ("known", "positive"))
        tells_known = studies < least or not may_show(known, studies, least)
        shown[split] = {
            "positive": positive if may_show(positive, known, least) else None,
            "known_share": None if tells_known else round(known / studies, 2),
        }
    return shown


def _without_small_differences(rows: list[dict], least: int) -> list[dict]:
    """A positive answer of one horizon is one of each longer horizon too: a small difference would be shown.

    The longer horizon's number is hidden then.
    """
    shown = [dict(row) for row in rows]
    for split in SPLITS:
        last: dict[tuple[str, str], int] = {}
        for row in shown:  # of a phenotype by horizon, the time to event last
            positive, which = row[split]["positive"], (row["phenotype"], row["kind"])
            if positive is None:
                continue
            if which in last and is_small(abs(positive - last[which]), least):
                row[split] = row[split] | {"positive": None}
            else:
                last[which] = positive
    return shown


def _rounded_up(volumes: dict, least: int) -> dict:
    """For the next multiple of `least` images: their exact number would give away how many studies have none."""
    images = -(-volumes["images"] // least) * least
    scale = images / volumes["images"]
    scaled = {"hours": volumes["hours"] * scale, "bytes": round(volumes["bytes"] * scale)}
    return volumes | {"images": images} | scaled


def table(shown: dict, least: int) -> list[str]:
    """Lines for a person."""
    lines = [_line("rows", _counts(shown["rows"], least))]
    if "splits" in shown:
        lines.append(_line("splits", _counts(shown["splits"], least)))
    if "labels" in shown:
        lines += _label_lines(shown["labels"], least)
    if "volumes" in shown:
        lines += [_line("images", _counts(shown["images"], least)), *_volume_lines(shown["volumes"])]
    needed, free = (size_text(shown["disk"][key]) for key in ("needed_bytes", "free_bytes"))
    return [*lines, _line("disk", f"{needed} at its peak, {free} free")]


def _label_lines(labels: dict, least: int) -> list[str]:
    days, events = (_quartiles(labels[name]) for name in ("follow_up_days", "train_events_per_task"))
    share = labels["followed_over_a_year"]
    over_a_year = "" if share is None else f", {share:.0%} more than a year"
    lines = [
        _line("studies", _counts(labels["studies"], least)),
        _line("follow-up", f"{days} days (quartiles){over_a_year}"),
        _line("tasks", f"{labels['tasks']:,} of {events} train events (quartiles); {labels['events']:,} events in all"),
        _line("labels", f"{_duration(labels['seconds'])}, {size_text(labels['bytes'])}"),
        f"{'positive answers':42}" + "".join(f"{split:>18}" for split in SPLITS),
    ]
    for row in labels["phenotypes"]:
        horizon = f"{row['horizon_days']:g} d" if row["horizon_days"] is not None else "to event"
        horizon = "" if row["kind"] == "diagnosis" else horizon
        cells = (count_text(row[split]["positive"], least) + _known(row[split]["known_share"]) for split in SPLITS)
        lines.append(f"  {row['phenotype'][:30]:30}{horizon:>10}" + "".join(f"{cell:>18}" for cell in cells))
    return lines


def _known(share: float | None) -> str:
    return "" if share in (1, None) else f", {share:.0%} known"


def _volume_lines(volumes: dict) -> list[str]:
    refused = f" ({', '.join(volumes['refused'])})" if volumes["refused"] else ""
    usable = f"{volumes['usable']} of {volumes['sampled']} scans usable{refused}"
    size = _spread(volumes["bytes_per_volume"], 1e6, "MB") if volumes["bytes_per_volume"] else "no volume"
    cost = f"{_duration(3600 * volumes['hours'])} with {volumes['workers']} workers, {size_text(volumes['bytes'])}"
    return [
        _line("sample", f"{usable}, {_spread(volumes['seconds_per_scan'], 1, 's')}, {size} each (mean, extremes)"),
        _line("volumes", cost),
    ]


def _spread(values: dict[str, float], unit: float, name: str) -> str:
    lowest, mean, highest = (values[key] / unit for key in ("lowest", "mean", "highest"))
    return f"{mean:.2f} {name} ({lowest:.2f} to {highest:.2f})"


def _quartiles(values: dict[str, float] | None) -> str:
    return "too few studies to show" if values is None else " / ".join(f"{value:,.0f}" for value in values.values())


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{seconds / 60:.1f} min"


def size_text(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:,.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"


def _counts(parts: dict[str, int | None], least: int) -> str:
    return ", ".join(f"{name} {count_text(count, least)}" for name, count in parts.items())


def _line(title: str, text: str) -> str:
    return f"{title:11}{text}"
