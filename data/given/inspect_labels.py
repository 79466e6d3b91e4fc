"""INSPECT's labels as label tables: `ehr.label_tables=[INSPECT/labels_20250611.tsv]`.

impression_id   pe_positive_nlp   1_month_mortality   ...   12_month_PH   tte_mortality   is_censored_mortality   ...

No document states the unit of the tte_ columns reliably (it says seconds; code uses minutes). We take the unit in which
they agree with the yes-or-no columns of the same outcome, and refuse them where none agrees, or several do.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from data.given.user_tables import read_inspect_table, refuse_rowless
from ehr.sources.columns import finite_numbers, truth
from ttepretrain.errors import ConfigError
from ttepretrain.log import log

DIAGNOSES = {"pe_positive_nlp": "pulmonary_embolism"}
HORIZONS = {"1_month": 30.0, "6_month": 180.0, "12_month": 365.0}  # days, as in INSPECT's own labelling
OUTCOMES = {  # of the columns: of configs/phenotypes/inspect.yaml
    "mortality": "mortality",
    "readmission": "readmission",
    "PH": "pulmonary_hypertension_icd",
    "Atelectasis": "atelectasis",
    "Cardiomegaly": "cardiomegaly",
    "Consolidation": "consolidation",
    "Edema": "edema",
    "Pleural_Effusion": "pleural_effusion",
}
ASKED = {f"{months}_{outcome}": (outcome, days) for months, days in HORIZONS.items() for outcome in OUTCOMES}
USED = (
    "impression_id",
    *DIAGNOSES,
    *ASKED,
    *(f"{part}_{name}" for part in ("tte", "is_censored") for name in OUTCOMES),
)
UNITS_PER_DAY = {"seconds": 86_400, "minutes": 1_440, "days": 1}
AGREEMENT = 0.95  # of the yeses and of the noes of every horizon
LONGEST = 10  # longest times of one cohort differ less than this; units 60 times and more


def read_inspect_labels(path: Path, key: str) -> list[pl.DataFrame]:
    """A table of yes-or-no answers and one of times, in the columns of a user's label table.

    Raises ConfigError, under `key`, naming the column, for other texts than TRUE, FALSE and Censored, and for times
    whose unit does not follow from the yes-or-no columns.
    """
    given = read_inspect_table(path, ("impression_id",), "ehr.label_tables")
    refuse_rowless(given, key)
    used = given.select(name for name in given.columns if name in USED)
    labels = used.drop_nulls("impression_id").unique(maintain_order=True)
    sole = labels.filter(~pl.col("impression_id").is_duplicated())
    if len(sole) < len(given):
        log.warning(
            f"{key}: left out: repeated rows {len(given) - len(labels)}, rows that differ under one impression_id "
            f"{len(labels) - len(sole)}"
        )
    answers = {
        name: truth(sole[name], f"{key}: column {name}") for name in (*DIAGNOSES, *ASKED) if name in sole.columns
    }
    if not answers:
        raise ConfigError(f"{key}: none of INSPECT's label columns ({', '.join(DIAGNOSES)}, 1_month_mortality, ...)")
    ids = sole["impression_id"]
    return [_answered(ids, answers), _timed(ids, _times(sole, key), answers, key)]


def _answered(ids: pl.Series, answers: dict[str, pl.Series]) -> pl.DataFrame:
    parts = []
    for name, label in answers.items():
        outcome, days = ASKED.get(name, (None, None))
        phenotype, kind = (OUTCOMES[outcome], "prognosis") if outcome else (DIAGNOSES[name], "diagnosis")
        part = pl.DataFrame({"study_id": ids, "label": label})
        parts.append(
            part.with_columns(phenotype=pl.lit(phenotype), kind=pl.lit(kind), horizon_days=pl.lit(days, pl.Float64))
        )
    return pl.concat(parts)


def _times(labels: pl.DataFrame, key: str) -> dict[str, pl.DataFrame]:
    """time (of no unit yet) and event of every outcome that has both columns; null where one of them is empty."""
    times = {}
    for outcome in OUTCOMES:
        names = f"tte_{outcome}", f"is_censored_{outcome}"
        if missing := [name for name in names if name not in labels.columns]:
            if len(missing) == 1:
                raise ConfigError(f"{key}: no column {missing[0]} beside its twin; give both or none")
            continue
        time = finite_numbers(labels[names[0]], f"{key}: column {names[0]}")
        censored = truth(labels[names[1]], f"{key}: column {names[1]}")
        if (time < 0).any():
            raise ConfigError(f"{key}: column {names[0]}: {(time < 0).sum()} times lie before the study")
        times[outcome] = pl.DataFrame({"time": time, "event": ~censored})
    return times


def _timed(ids: pl.Series, times: dict[str, pl.DataFrame], answers: dict[str, pl.Series], key: str) -> pl.DataFrame:
    units = _units(times, answers, key)
    parts = [
        table.select(
            study_id=ids, phenotype=pl.lit(OUTCOMES[outcome]), kind=pl.lit("prognosis"), event="event",
            time_days=pl.col("time") / UNITS_PER_DAY[units[outcome]],
        )
        for outcome, table in times.items()
    ]  # fmt: skip
    schema = {"study_id": pl.String, "phenotype": pl.String, "kind": pl.String, "event": pl.Boolean}
    return pl.concat([pl.DataFrame(schema=schema | {"time_days": pl.Float64}), *parts]).drop_nulls()


def _units(times: dict[str, pl.DataFrame], answers: dict[str, pl.Series], key: str) -> dict[str, str]:
    """Unit of every outcome's times."""
    units = {}
    for outcome, table in times.items():
        asked = {days: answers[name] for name, (of, days) in ASKED.items() if of == outcome and name in answers}
        if asked:
            agreement = {unit: _agreement(table, per_day, asked) for unit, per_day in UNITS_PER_DAY.items()}
            fitting = [unit for unit, share in agreement.items() if share >= AGREEMENT]
            shares = ", ".join(f"{unit} {share:.1%}" for unit, share in agreement.items())
            if len(fitting) != 1:
                raise ConfigError(
                    f"{key}: column tte_{outcome}: its unit is not known: {len(fitting)} of seconds, minutes and days "
                    f"agree with *_month_{outcome} in {AGREEMENT:.0%} of the answers ({shares}); correct the column, "
                    f"or remove it and is_censored_{outcome}"
                )
            units[outcome] = fitting[0]
    unchecked = [outcome for outcome in times if outcome not in units]
    units |= {outcome: _unit_of_others(outcome, times, units, key) for outcome in unchecked}
    for unit in sorted(set(units.values())):
        log.warning(f"{key}: times are in {unit} ({', '.join(f'tte_{o}' for o in times if units[o] == unit)})")
    return units


def _agreement(table: pl.DataFrame, per_day: int, asked: dict[float, pl.Series]) -> float:
    """Least share, over horizons and over yes and no, of the answers that the times repeat; 0 when there is none."""
    shares = []
    for horizon, label in asked.items():
        known = table.with_columns(days=pl.col("time") / per_day, label=label).drop_nulls()
        within, days = pl.col("event") & (pl.col("days") <= horizon), pl.col("days")
        # beyond the horizon, or followed to its end
        repeated = pl.when("label").then(within).otherwise(~within & (days >= horizon))
        shares += known.group_by("label").agg(repeated.mean().alias("share"))["share"].to_list()
    return min(shares, default=0.0)


def _unit_of_others(outcome: str, times: dict[str, pl.DataFrame], units: dict[str, str], key: str) -> str:
    """Unit of an outcome without yes-or-no columns: that of all others, if its longest time is like theirs."""
    remedy = f"remove it and is_censored_{outcome}"
    if len(set(units.values())) != 1:
        raise ConfigError(
            f"{key}: column tte_{outcome} has no yes-or-no column, and the other tte columns "
            + ("have several units" if units else "have none either")
            + f": its unit is not known; {remedy}"
        )
    longest = _longest(times[outcome])
    of_others = max(_longest(times[other]) or 0.0 for other in units)
    if longest is not None and not of_others / LONGEST <= longest <= of_others * LONGEST:
        raise ConfigError(
            f"{key}: column tte_{outcome}: its longest time is {longest / of_others:.3g} times that of the columns "
            f"whose unit is known, so its own is not; correct the column, or {remedy}"
        )
    return next(iter(units.values()))


def _longest(table: pl.DataFrame) -> float | None:
    known = table["time"].drop_nulls().to_numpy()
    return float(known.max()) if len(known) else None
