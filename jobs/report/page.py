"""`eval/report.html`: one file, no network, made from the files of the run alone."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

from jobs.config import RunConfig
from jobs.plan.plan_table import LEFT_OUT
from jobs.provenance import provenance
from jobs.report import figures
from jobs.report.console import short
from jobs.report.tables import arm_label, count_html, facts, metric_table, minus_html, title
from jobs.small_cells import Cell, hide_small
from ttepretrain.evaluation.table import ORACLE, TRAINED, Metric
from ttepretrain.files import write_atomic
from ttepretrain.plain_text import plain
from ttepretrain.splits import SPLITS
from ttepretrain.tasks import TaskSet
from ttepretrain.training.config import STARTS

MONTAGE_STUDIES = 4
TOP_TASKS = 12
SYNTHETIC = (
    "Synthetic data. The scans are drawn phantoms and the records are simulated: the numbers show that the pipeline "
    "works and how much of a known signal it finds. They say nothing about patients."
)
METHOD = (
    "<h2>Method</h2><p>Encoders are frozen. Scaler, principal components and probes are fitted on train; the ridge is "
    "chosen on tuning from one grid for all arms; held-out studies are scored once. "
    "Closed gap = (mean C of the arm &minus; mean C at its start) / (mean C oracle &minus; mean C at its start) over "
    "the phenotypes, death apart. The oracle ranks by the true log-hazard of what a scan shows. "
    "Counts below {least}, and values of phenotypes with fewer events, are not shown.</p>"
)


def write_report(config: RunConfig) -> Path:
    """The path of the report."""
    rows = read_metrics(config.eval_folder / "metrics.json")
    held_out = [row for row in rows if row.split == "held_out"]
    summary = json.loads((config.prepared_folder / "summary.json").read_text())
    least = TaskSet.load(config.prepared_folder / "tasks.json").least_patients(config.ehr.min_patients)
    flow = flow_of(summary, least)
    sections = [
        _header(config, flow),
        _cards(held_out),
        _prognosis(held_out, least),
        _binary(held_out, least),
        _training(config),
        _tasks(config.trained_folders[0] / "export" / "tasks.json", least),
        _flow(flow, summary, least),
        _montage(config),
        _method(config, least),
    ]
    style = (Path(__file__).parent / "style.css").read_text()
    page = (
        f"<!doctype html><html lang=en><head><meta charset=utf-8><title>{escape(config.name)}: evaluation</title>"
        f"<meta name=viewport content='width=device-width'><style>{style}</style></head>"
        f"<body><main>{''.join(sections)}</main></body></html>\n"
    )
    path = config.eval_folder / "report.html"
    write_atomic(path, page.encode())
    return path


def read_metrics(path: Path) -> list[Metric]:
    """Rows of metrics.json; null numbers come back as nan."""
    numbers = ("value", "lo", "hi")
    records = json.loads(path.read_text())
    return [Metric(**r | {k: math.nan if r[k] is None else r[k] for k in numbers}) for r in records]


def flow_of(summary: dict, least: int) -> list[Cell]:
    """What became of the studies, as one division: the cells add up, so no small one may stand alone."""
    flow = summary["labels"]["studies"]
    parts = {f"used: {split.replace('_', '-')}": count for split, count in summary["splits"]["ready"].items()}
    parts |= {f"left out: {text}": flow.get(code, 0) for code, text in LEFT_OUT.items()}
    parts |= {f"refused: {code}": count for code, count in summary["quarantine"].items()}
    return hide_small(parts, least)


def _header(config: RunConfig, flow: Sequence[Cell]) -> str:
    alone = {cell.names[0]: cell.count for cell in flow if len(cell.names) == 1}
    used = {split: alone.get(f"used: {split.replace('_', '-')}") for split in SPLITS}
    counts = ", ".join(f"{count:,} {split.replace('_', '-')}" for split, count in used.items() if count)
    kind = f"synthetic cohort {config.cohort.size}, seed {config.cohort.seed}" if config.synthetic else "clinical data"
    warning = f"<p class=warn>{SYNTHETIC}</p>" if config.synthetic else ""
    return (
        f"<header><p>Time-to-event pretraining · evaluation</p><h1>{escape(config.name)}</h1>"
        f"<p>{kind} · {escape(config.model.encoder)} · studies: {counts}</p></header>{warning}"
    )


def _cards(rows: Sequence[Metric]) -> str:
    """The few numbers that a reader takes away."""
    by_key = {(r.metric, r.arm, r.baseline): r for r in rows if r.phenotype == "mean"}
    wanted = (
        *(("Closed gap", "closed_gap", TRAINED, start, "main") for start in STARTS),
        ("Mean C, TTE pretrained", "harrell_c", TRAINED, None, ""),
        *((f"Mean C, {title(start).lower()}", "harrell_c", start, None, "") for start in STARTS),
        ("Mean C, oracle", "harrell_c", ORACLE, None, ""),
    )
    cards = []
    for label, metric, arm, baseline, style in wanted:
        row = by_key.get((metric, arm, baseline))
        if row is None:
            continue
        value = "&ndash;" if math.isnan(row.value) else minus_html(row.value)
        interval = "" if math.isnan(row.lo) else f"95 % interval {minus_html(row.lo)} to {minus_html(row.hi)}"
        below = f"<small>{escape(row.reason) if row.reason else interval}</small>"
        cards.append(f"<div class='{style}'><small>{label}</small><b>{value}</b>{below}</div>")
    return f"<div class=cards>{''.join(cards)}</div>"


def _prognosis(rows: Sequence[Metric], least: int) -> str:
    forest = figures.forest(rows, "harrell_c", least)
    legend = " &ensp; ".join(arm_label(arm) for arm in dict.fromkeys(row.arm for row in rows))
    return (
        "<h2>Ranking by time to event</h2>"
        "<p>Harrell's C of a Cox probe on frozen features, held-out studies. Small numbers are 95 % intervals from "
        "resampled patients; differences are paired: both arms on the same patients. Bold: the interval excludes zero. "
        "The mean leaves death out, which is a pretraining task."
        "</p>"
        + metric_table(rows, "harrell_c", least)
        + _figure(forest, f"{legend} &ensp; Phenotypes with fewer than {least} held-out events are not drawn.")
    )


def _binary(rows: Sequence[Metric], least: int) -> str:
    if not any(row.metric == "auroc" for row in rows):
        return ""
    return (
        "<h2>Event within a horizon</h2><p>AUROC of a logistic probe, held-out studies; studies censored before the "
        "horizon leave the row.</p>" + metric_table(rows, "auroc", least)
    )


def _training(config: RunConfig) -> str:
    records = [
        json.loads(line)
        for line in (config.trained_folders[0] / "metrics.jsonl").read_text().splitlines()
        if line.strip()
    ]
    steps = max((r["step"] for r in records), default=0)
    settings = facts(
        [
            ("steps", steps),
            ("batch", f"{config.train.batch_size} studies"),
            ("peak learning rate", f"{config.train.peak_lr(config.model.encoder):g}"),
            ("seed", config.train.seed),
        ]
    )
    caption = "Faint: every step; strong: running median; dots: tuning split, of which the lowest is exported."
    return "<h2>Pretraining</h2>" + settings + _figure(figures.training_curve(records), caption)


def _tasks(path: Path, least: int) -> str:
    tasks = TaskSet.load(path)
    edges = ", ".join(f"{edge:.0f}" for edge in tasks.bin_edges_days[:-1])
    shown = [task for task in tasks.tasks if task.patients >= least][:TOP_TASKS]
    body = "".join(
        f"<tr><td>{escape(plain(task.code))}</td><td>{escape(plain(task.description))}</td>"
        f"<td class=v>{task.patients:,}</td><td class=v>{task.events:,}</td>"
        f"<td class=v>{100 * 365.25 * task.rate_per_day:.1f}</td></tr>"
        for task in shown
    )
    return (
        "<h2>Pretraining tasks</h2>"
        + facts(
            [
                ("tasks", f"{tasks.num_tasks:,}"),
                ("time bins", f"{tasks.num_bins}, from day {edges}, the last one open"),
                ("train events", f"{sum(task.events for task in tasks.tasks):,}"),
                ("blackout", f"up to day {tasks.blackout_days:g} after the scan"),
                ("recurrence", tasks.recurrence),
            ]
        )
        + "<table><thead><tr><th>Code</th><th>First by rank</th><th class=v>Train patients</th><th class=v>Events</th>"
        f"<th class=v>per 100 years</th></tr></thead><tbody>{body}</tbody></table>"
    )


def _flow(flow: Sequence[Cell], summary: dict, least: int) -> str:
    """What became of the studies, and how many images were repaired."""
    lines = [(", ".join(cell.names), count_html(cell.count, least)) for cell in flow]
    body = "".join(f"<tr><td>{escape(name)}</td><td class=v>{text}</td></tr>" for name, text in lines)
    flags = [(flag.lower().replace("_", " "), count_html(n, least)) for flag, n in summary["volumes"]["flags"].items()]
    repairs = "".join(f"<tr><td>{escape(name)}</td><td class=v>{text}</td></tr>" for name, text in flags)
    head = "<thead><tr><th>{}</th><th class=v>Studies</th></tr></thead>"
    second = f"<div><table>{head.format('Repaired images')}<tbody>{repairs}</tbody></table></div>" if flags else ""
    return (
        "<h2>Cohort</h2><div class=pair>"
        f"<div><table>{head.format('Studies')}<tbody>{body}</tbody></table></div>{second}</div>"
    )


def _montage(config: RunConfig) -> str:
    if not (config.synthetic or config.report.images):
        return ""
    from data.prepared.opened import PreparedStudies

    studies = PreparedStudies.open(config.prepared_folder, "held_out")
    # The keys' order says nothing about patients.
    rows = studies.study_key.argsort()[:MONTAGE_STUDIES]
    centre, width = 40.0, 1400.0
    image = figures.montage([studies.read_hu(row) for row in rows], studies.spec.spacing_mm, centre, width)
    shape = " &times; ".join(map(str, studies.spec.shape_DHW))
    spacing = " &times; ".join(f"{mm:g}" for mm in studies.spec.spacing_mm)
    caption = (
        f"What the network sees: {len(rows)} held-out studies, middle axial, coronal and sagittal slices, "
        f"{shape} voxels of {spacing} mm, shown at window {width:g} around {centre:g} HU."
    )
    return "<h2>Network inputs</h2>" + _figure(image, caption)


def _method(config: RunConfig, least: int) -> str:
    probes = json.loads((config.eval_folder / "probes.json").read_text())
    lines: list[tuple[str, object]] = []
    for arm, probe in probes.items():
        for name, chosen in probe["chosen"].items():
            score = "none" if chosen["tuning_score"] is None else short(chosen["tuning_score"])
            setting = f"{chosen['components']} components, ridge {chosen['ridge']:g}, tuning score {score}"
            lines.append((f"{arm}, {name}", setting))
        if probe["dropped"]:
            lines.append((f"{arm}, fits that failed", len(probe["dropped"])))
    versions = provenance(["torch", "lifelines", "scikit-learn"])
    revision = (versions["git_revision"] or "no git revision")[:12] + (" + changes" if versions["git_changed"] else "")
    packages = ", ".join(f"{name} {number}" for name, number in versions["versions"].items())
    lines.append(("bootstrap", f"{config.eval.bootstraps} resamples of patients, seed {config.eval.seed}"))
    return METHOD.format(least=least) + facts(lines) + f"<p class=note>{escape(revision)} · {escape(packages)}</p>"


def _figure(source: str | None, caption: str) -> str:
    image = "" if source is None else f"<img src='{source}' alt=''>"
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"
