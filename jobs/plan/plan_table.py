"""What `jobs.prepare --plan` tells: the numbers without small cells, and lines of them for a person."""

from __future__ import annotations

from jobs.report.tables import MIN_CELL
from ttepretrain.splits import SPLITS

LEFT_OUT = {
    "NO_SUBJECT": "no record in the EHR",
    "OUTSIDE_OBSERVATION": "outside observation",
    "NO_FOLLOW_UP": "no follow-up after the blackout",
}


def publishable(document: dict) -> dict:
    """The document without counts of fewer than MIN_CELL people: None, or added to the next larger one."""
    told = dict(document)
    for name in ("rows", "splits", "images"):
        if name in told:
            told[name] = _merged(told[name])
    if "labels" in told:
        labels = dict(told["labels"])
        left_out = {LEFT_OUT[code]: count for code, count in labels.pop("left_out").items()}
        labels["phenotypes"] = [_without_small(row, labels["labelled"]) for row in labels["phenotypes"]]
        labels["studies"] = _merged(labels.pop("labelled") | left_out)
        del told["splits"]  # their differences to the labelled ones are small
        told["labels"] = labels
    return told


def _merged(parts: dict[str, int]) -> dict[str, int | None]:
    """Counts that add up to a known total: small ones stand with the largest, or together where they are not small."""
    kept = {name: count for name, count in parts.items() if count}
    small = [name for name, count in kept.items() if count < MIN_CELL]
    if small and sum(kept[name] for name in small) < MIN_CELL:
        small = list(dict.fromkeys([max(kept, key=kept.get), *small]))
    merged = {" with ".join(small): sum(map(kept.pop, small))} if small else {}
    return {name: count if count >= MIN_CELL else None for name, count in (merged | kept).items()}


def _without_small(answers: dict, labelled: dict[str, int]) -> dict:
    """Positives, and the known answers as a share: their number would tell how many studies are left out."""
    told = dict(answers)
    for split, studies in labelled.items():
        known, positive = (answers[split][name] for name in ("known", "positive"))
        tells = any(0 < count < MIN_CELL for count in (positive, known - positive))
        share = round(known / studies, 2) if studies >= MIN_CELL else None
        told[split] = {"positive": None if tells else positive, "known_share": share}
    return told


def table(told: dict) -> list[str]:
    """Lines for a person."""
    lines = [_line("rows", _counts(told["rows"]))]
    if "splits" in told:
        lines.append(_line("splits", _counts(told["splits"])))
    if "labels" in told:
        lines += _label_lines(told["labels"])
    if "volumes" in told:
        lines += [_line("images", _counts(told["images"])), *_volume_lines(told["volumes"])]
    needed, free = (size_text(told["disk"][key]) for key in ("needed_bytes", "free_bytes"))
    return [*lines, _line("disk", f"{needed} needed at once, {free} free")]


def _label_lines(labels: dict) -> list[str]:
    days, events = (_quartiles(labels[name]) for name in ("follow_up_days", "train_events_per_task"))
    lines = [
        _line("studies", _counts(labels["studies"])),
        _line("follow-up", f"{days} days (quartiles), {labels['followed_over_a_year']:.0%} more than a year"),
        _line("tasks", f"{labels['tasks']:,} of {events} train events (quartiles); {labels['events']:,} events in all"),
        _line("labels", f"{_duration(labels['seconds'])}, {size_text(labels['bytes'])}"),
        f"{'positive answers':42}" + "".join(f"{split:>18}" for split in SPLITS),
    ]
    for row in labels["phenotypes"]:
        horizon = f"{row['horizon_days']:g} d" if row["horizon_days"] is not None else "to event"
        horizon = "" if row["kind"] == "diagnosis" else horizon
        cells = (_told(row[split]["positive"]) + _known(row[split]["known_share"]) for split in SPLITS)
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


def _quartiles(values: dict[str, float]) -> str:
    return " / ".join(f"{value:,.0f}" for value in values.values())


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{seconds / 60:.1f} min"


def size_text(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:,.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"


def _counts(parts: dict[str, int | None]) -> str:
    return ", ".join(f"{name} {_told(count)}" for name, count in parts.items())


def _told(count: int | None) -> str:
    return f"< {MIN_CELL}" if count is None else f"{count:,}"


def _line(title: str, text: str) -> str:
    return f"{title:11}{text}"
