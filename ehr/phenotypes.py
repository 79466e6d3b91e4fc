"""Phenotypes of the probes: what a phenotype file says, and each study's outcome.

prognosis:  events after t0 + max(blackout, start_days), up to the end of follow-up; death may come first
diagnosis:  any event inside the closed window t0 + window_days; nothing to do with follow-up

    prognosis            |--- start ---(      event counts       ] C
    diagnosis      [-----t0-----]
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, fields
from pathlib import Path

import polars as pl

from ehr.codes import CodeIndex
from ehr.schema import DAY_US, PHENOTYPES
from ehr.timeline import in_units, side_of_scan
from ttepretrain.config import read_yaml, require, require_choice
from ttepretrain.errors import ConfigError


@dataclass(frozen=True)
class Phenotype:
    codes: list[str]  # with all descendants; a trailing * stands for any ending
    kind: str = "prognosis"  # prognosis | diagnosis
    horizons_days: list[float] = field(default_factory=list)  # binary labels; time to event is always written
    start_days: float = 0.0  # prognosis: events count after t0 + max(this, ehr.blackout_days)
    after_stay: bool = False  # prognosis: events count after the scan's own hospital stay only (readmission)
    window_days: list[float] = field(default_factory=lambda: [-1.0, 1.0])  # diagnosis: closed, around t0
    twins: list[str] = field(default_factory=list)  # codes that tell the same event; they leave the tasks with `codes`

    def check(self, key: str) -> None:
        require_choice(f"{key}.kind", self.kind, ("prognosis", "diagnosis"))
        numbers = [*self.horizons_days, self.start_days, *self.window_days]
        require(all(isinstance(n, (int, float)) for n in numbers), key, numbers, "durations must be numbers of days")
        require(
            all(isinstance(c, str) and c for c in [*self.codes, *self.twins]) and self.codes,
            f"{key}.codes", [*self.codes, *self.twins], "must be texts",
        )  # fmt: skip
        require(all(h > 0 for h in self.horizons_days), f"{key}.horizons_days", self.horizons_days, "must be positive")
        require(
            len(self.window_days) == 2 and self.window_days[0] <= self.window_days[1],
            f"{key}.window_days", self.window_days, "must be [from, to]",
        )  # fmt: skip


def read_phenotypes(path: Path) -> dict[str, Phenotype]:
    """Phenotypes of a YAML file by name. ConfigError naming the key of what is wrong."""
    document = read_yaml(path)
    entries = document.get("phenotypes")
    if set(document) != {"phenotypes"} or not isinstance(entries, dict) or not entries:
        raise ConfigError(f"{path}: expected one key `phenotypes` with a mapping of names")
    valid = [f.name for f in fields(Phenotype)]
    phenotypes = {}
    for name, values in entries.items():
        key = f"{path}: phenotypes.{name}"
        if not isinstance(values, dict) or "codes" not in values:
            raise ConfigError(f"{key} needs `codes: [...]`")
        for unknown in set(values) - set(valid):
            near = difflib.get_close_matches(str(unknown), valid, n=1)
            raise ConfigError(f"{key}: unknown key {unknown}" + (f"; did you mean {near[0]}?" if near else ""))
        if not all(isinstance(values.get(k, []), list) for k in ("codes", "horizons_days", "window_days", "twins")):
            raise ConfigError(f"{key}: codes, horizons_days, window_days and twins are lists")
        phenotypes[str(name)] = Phenotype(**values)
        phenotypes[str(name)].check(key)
    return phenotypes


def match_codes(patterns: list[str], index: CodeIndex) -> tuple[pl.Series, list[str]]:
    """Code numbers the patterns mean, descendants included, and the patterns that mean nothing the data hold."""
    names, closure = index.names["name"], index.closure
    meant = {}
    for pattern in patterns:
        hit = names.str.starts_with(pattern[:-1]) if pattern.endswith("*") else names == pattern
        roots = hit.arg_true().cast(closure.schema["ancestor"])
        meant[pattern] = closure.filter(pl.col("ancestor").is_in(roots.implode()))["code"]
    unmatched = [pattern for pattern, codes in meant.items() if not codes.is_in(index.seen.implode()).any()]
    return pl.concat([closure["code"].clear(), *meant.values()]).unique().sort(), unmatched


def outcomes(
    events: pl.DataFrame, studies: pl.DataFrame, rules: pl.DataFrame, blackout_us: int, incident: bool
) -> pl.DataFrame:
    """One row per study and phenotype: study, phenotype, kind, event, competing, time_days.

    events: subject, code, start, end. studies: followed ones with index, censor, stay_last.
    rules: one row per (phenotype, code) of `rule_table`. With `incident`, a study with history leaves the phenotype.
    """
    pairs = events.join(rules, on="code").join(studies, on="subject")
    entry = pl.max_horizontal("start_us", pl.lit(blackout_us))
    after = side_of_scan(pl.col("start"), pl.col("end"), pl.col("index"), pl.col("index_last"), entry).after
    outside_stay = ~pl.col("after_stay") | (pl.col("start") > pl.col("stay_last")).fill_null(True)
    counts = after & outside_stay & (pl.col("start") <= pl.col("censor"))
    # A window is closed; a day counts only if it lies inside for every moment the scan's own time can mean.
    inside = pl.col("start") >= pl.col("index_last") + pl.col("window_from_us")
    inside &= pl.col("end") <= pl.col("index") + pl.col("window_to_us")
    found = pairs.group_by("study", "phenotype").agg(
        first=pl.when(counts).then("start").min(),
        history=(~after & ~pl.col("after_stay")).any(),
        inside=inside.any(),
    )
    grid = studies.select("study", "index", "censor", "died").join(
        rules.select("phenotype", "kind").unique(), how="cross"
    )
    grid = grid.join(found, on=["study", "phenotype"], how="left")
    diagnosis = pl.col("kind") == "diagnosis"
    if incident:
        grid = grid.filter(diagnosis | ~pl.col("history").fill_null(False))
    event = pl.when(diagnosis).then(pl.col("inside").fill_null(False)).otherwise(pl.col("first").is_not_null())
    days = in_units(pl.coalesce("first", "censor") - pl.col("index"))
    return grid.select(
        "study",
        "phenotype",
        "kind",
        event=event,
        competing=~diagnosis & ~event & pl.col("died"),
        time_days=pl.when(~diagnosis).then(days),
    )


def rule_table(phenotypes: dict[str, Phenotype], codes: dict[str, pl.Series]) -> pl.DataFrame:
    """One row per phenotype and code it means (null code: none in the data), durations in us."""
    rows = [
        {
            "phenotype": name,
            "kind": p.kind,
            "start_us": round(p.start_days * DAY_US),
            "after_stay": p.after_stay,
            "window_from_us": round(p.window_days[0] * DAY_US),
            "window_to_us": round(p.window_days[1] * DAY_US),
            "code": codes[name].to_list() or [None],
        }
        for name, p in phenotypes.items()
    ]
    return pl.DataFrame(rows, schema_overrides={"code": pl.List(pl.UInt32)}).explode("code")


def phenotype_rows(outcome: pl.DataFrame, phenotypes: dict[str, Phenotype], death_before_horizon: str) -> pl.DataFrame:
    """Rows of phenotypes.parquet: every outcome once per horizon, and once as time to event (horizon null)."""
    horizons = pl.DataFrame(
        [(name, h) for name, p in phenotypes.items() for h in (*map(float, p.horizons_days), None)],
        schema={"phenotype": pl.String, "horizon_days": pl.Float64},
        orient="row",
    )
    event, time, horizon = pl.col("event"), pl.col("time_days"), pl.col("horizon_days")
    known_free = (time >= horizon) | (
        pl.col("competing") & horizon.is_not_null() & (death_before_horizon == "negative")
    )
    label = (
        pl.when(pl.col("kind") == "diagnosis").then(event)
        .when(event & (horizon.is_null() | (time <= horizon))).then(True)
        .when(known_free).then(False)
    )  # fmt: skip
    table = outcome.join(horizons, on="phenotype", maintain_order="left_right").with_columns(label=label)
    return table.filter((pl.col("kind") == "prognosis") | horizon.is_null()).select(list(PHENOTYPES))
