"""Phenotypes of the probes: each study's outcome, and its rows in phenotypes.parquet.

prognosis:  events after t0 + start (at least the blackout), up to the end of follow-up; death may come first
diagnosis:  any event inside the closed window t0 + window_days; nothing to do with follow-up: a study has its answer
            whether it is followed or not, so that none is picked by what happened after the scan

    prognosis            |--- start ---(      event counts       ] C
    diagnosis      [-----t0-----]
"""

from __future__ import annotations

import polars as pl

from ehr.codes.codes import CodeIndex
from ehr.phenotype_file import Phenotype
from ehr.schema import DAY_US, PHENOTYPES
from ehr.timeline import in_units, side_of_scan

RULES = pl.Schema(
    {
        "phenotype": pl.String(),
        "kind": pl.String(),
        "start_us": pl.Int64(),
        "after_stay": pl.Boolean(),
        "incident": pl.Boolean(),
        "window_from_us": pl.Int64(),
        "window_to_us": pl.Int64(),
        "code": pl.List(pl.UInt32),
    }
)


def match_codes(patterns: list[str], index: CodeIndex) -> tuple[pl.Series, list[str]]:
    """Code numbers the patterns mean, descendants included, and the patterns that mean nothing the data hold."""
    closure, meant = index.closure, {}
    for pattern in patterns:
        roots = named_codes([pattern], index)
        meant[pattern] = closure.filter(pl.col("ancestor").is_in(roots.implode()))["code"]
    unmatched = [pattern for pattern, codes in meant.items() if not codes.is_in(index.seen.implode()).any()]
    return pl.concat([closure["code"].clear(), *meant.values()]).unique().sort(), unmatched


def named_codes(patterns: list[str], index: CodeIndex) -> pl.Series:
    """Code numbers the patterns name themselves; a trailing `*` stands for any ending."""
    name, codes = pl.col("name"), index.names["code"].clear()
    hits = (name.str.starts_with(p[:-1]) if p.endswith("*") else name == p for p in patterns)
    return pl.concat([codes, *(index.names.filter(hit)["code"] for hit in hits)]).unique().sort()


def outcomes(events: pl.DataFrame, studies: pl.DataFrame, rules: pl.DataFrame, death: int) -> pl.DataFrame:
    """One row per study and phenotype: study, phenotype, kind, event, competing, unknown, time_days.

    events: subject, code, start, end. studies: with index, censor, stay_last, died, undated and followed; one without
    follow-up has diagnoses alone.
    rules: one row per (phenotype, code) of `rule_table`. A study with history leaves the phenotypes that exclude it.
    unknown: death is an event of the phenotype, and the subject died at an unknown time, so no answer is "no".
    """
    pairs = events.join(rules, on="code").join(studies, on="subject")
    after = side_of_scan(*map(pl.col, ("start", "end", "index", "index_last", "start_us"))).after
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
    grid = studies.select("study", "index", "censor", "died", "undated", "followed").join(
        rules.group_by("phenotype", "kind", "incident").agg(mortal=(pl.col("code") == death).any()), how="cross"
    )
    diagnosis = pl.col("kind") == "diagnosis"
    grid = grid.filter(diagnosis | pl.col("followed")).join(found, on=["study", "phenotype"], how="left")
    grid = grid.filter(~pl.col("incident") | ~pl.col("history").fill_null(False))
    event = pl.when(diagnosis).then(pl.col("inside").fill_null(False)).otherwise(pl.col("first").is_not_null())
    unknown = pl.col("mortal") & pl.col("undated")
    days = in_units(pl.coalesce("first", "censor") - pl.col("index"))
    return grid.select(
        "study",
        "phenotype",
        "kind",
        event=pl.when(event | ~(diagnosis & unknown)).then(event),
        competing=~diagnosis & ~event & pl.col("died"),
        unknown=unknown,
        time_days=pl.when(~diagnosis).then(days),
    )


def rule_table(phenotypes: dict[str, Phenotype], codes: dict[str, pl.Series]) -> pl.DataFrame:
    """One row per phenotype of `under` and code it means, durations in us."""
    rows = [
        {
            "phenotype": name,
            "kind": p.kind,
            "start_us": round(_start_days(p) * DAY_US),
            "after_stay": p.after_stay,
            "incident": p.prevalent == "exclude" and p.kind == "prognosis",
            "window_from_us": round(p.window_days[0] * DAY_US),
            "window_to_us": round(p.window_days[1] * DAY_US),
            "code": codes[name].to_list(),
        }
        for name, p in phenotypes.items()
    ]
    return pl.DataFrame(rows, schema=RULES).explode("code")


def _start_days(phenotype: Phenotype) -> float:
    assert phenotype.start_days is not None  # `under` has filled it in
    return phenotype.start_days


def phenotype_rows(outcome: pl.DataFrame, phenotypes: dict[str, Phenotype]) -> pl.DataFrame:
    """Rows of phenotypes.parquet: every outcome once per horizon, and once as time to event (horizon null)."""
    horizons = pl.DataFrame(
        [
            (name, h, p.death_before_horizon == "negative")
            for name, p in phenotypes.items()
            for h in (*map(float, p.horizons_days), None)
        ],
        schema={"phenotype": pl.String, "horizon_days": pl.Float64, "death_is_negative": pl.Boolean},
        orient="row",
    )
    event, time, horizon = pl.col("event"), pl.col("time_days"), pl.col("horizon_days")
    died_free = pl.col("competing") & horizon.is_not_null() & pl.col("death_is_negative")
    label = (
        pl.when(pl.col("kind") == "diagnosis").then(event)
        .when(event & (horizon.is_null() | (time <= horizon))).then(True)
        .when("unknown").then(None)
        .when((time >= horizon) | died_free).then(False)
    )  # fmt: skip
    table = outcome.join(horizons, on="phenotype", maintain_order="left_right").with_columns(label=label)
    return table.filter((pl.col("kind") == "prognosis") | horizon.is_null()).select(list(PHENOTYPES))
