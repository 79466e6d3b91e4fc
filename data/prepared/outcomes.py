"""What evaluation knows of each study besides its volume: outcomes, demographics, the synthetic cohort's truth.

N studies of all splits, in the order of the keys that are handed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from ttepretrain.errors import ConfigError
from ttepretrain.evaluation.outcome import Outcome


@dataclass(frozen=True)
class OutcomeTable:
    study_key_N: np.ndarray  # str
    subject_key_N: np.ndarray  # str
    split_N: np.ndarray  # str: train | tuning | held_out
    outcomes: list[Outcome]
    demographics_NF: np.ndarray  # float64: age in years, female, male; unknown age is the train median
    oracle: dict[str, np.ndarray] | None  # phenotype -> visible risk [N]; None: the cohort is not synthetic


def read_outcome_table(
    prepared: Path, study_key_N: Sequence[str] | np.ndarray, horizons_days: Sequence[float], oracle_file: Path | None
) -> OutcomeTable:
    """Rows of phenotypes.parquet and covariates.parquet for the given studies.

    Yes-or-no outcomes are kept at the given horizons (diagnoses have none and always stay). Raises ConfigError for a
    horizon that phenotypes.parquet does not have.
    """
    keys = pl.DataFrame({"study_key": list(study_key_N)}).join(
        pl.read_parquet(prepared / "keys.parquet"), on="study_key", how="left", maintain_order="left"
    )
    study_id = keys["study_id"]
    phenotypes = pl.read_parquet(prepared / "phenotypes.parquet")
    covariates = pl.read_parquet(prepared / "covariates.parquet", columns=["study_id", "age_years", "sex"])
    split_N = keys["split"].to_numpy()
    return OutcomeTable(
        np.asarray(study_key_N, dtype=object),
        keys["subject_key"].to_numpy(),
        split_N,
        _outcomes(phenotypes, study_id, horizons_days),
        _demographics(_aligned(study_id, covariates), split_N),
        _oracle(study_id, oracle_file) if oracle_file is not None and oracle_file.exists() else None,
    )


def _outcomes(phenotypes: pl.DataFrame, study_id: pl.Series, horizons_days: Sequence[float]) -> list[Outcome]:
    prognosis = pl.col("kind") == "prognosis"
    available = set(phenotypes.filter(prognosis)["horizon_days"].drop_nulls())
    if absent := sorted(set(horizons_days) - available):
        raise ConfigError(
            f"eval.horizons_days: no phenotype has {absent}; the prepared ones are {sorted(available)} "
            "(ehr.phenotypes, then jobs.prepare)"
        )
    chosen = phenotypes.filter(
        ~prognosis | pl.col("horizon_days").is_null() | pl.col("horizon_days").is_in(horizons_days)
    )
    outcomes = []
    for (kind, phenotype, horizon_days), rows in chosen.sort(
        "kind", "horizon_days", "phenotype", descending=[True, False, False], nulls_last=[False, False, False]
    ).group_by("kind", "phenotype", "horizon_days", maintain_order=True):
        rows = _aligned(study_id, rows)
        if kind == "prognosis" and horizon_days is None:
            metric, known = "harrell_c", pl.col("event").is_not_null() & pl.col("time_days").is_not_null()
            event, time = pl.col("event"), pl.col("time_days")
        else:
            metric, known = "auroc", pl.col("label").is_not_null()
            event, time = pl.col("label"), pl.lit(None, pl.Float64)
        values = rows.select(known=known, event=event.fill_null(False), time=time)
        outcomes.append(
            Outcome(phenotype, horizon_days, metric, *(values[name].to_numpy() for name in ("known", "event", "time")))
        )
    return outcomes


def _aligned(study_id: pl.Series, table: pl.DataFrame) -> pl.DataFrame:
    """One row per study in the given order, nulls where the table has none; a study twice in it is a bug."""
    aligned = study_id.to_frame("study_id").join(table, on="study_id", how="left", maintain_order="left")
    assert len(aligned) == len(study_id), "more than one row of a study"
    return aligned


def _demographics(covariates: pl.DataFrame, split_N: np.ndarray) -> np.ndarray:
    age_N = covariates["age_years"].cast(pl.Float64).to_numpy()
    sex = covariates["sex"].cast(pl.String).str.to_lowercase().str.slice(0, 1)
    known_train_N = np.isfinite(age_N) & (split_N == "train")
    median = np.median(age_N[known_train_N]) if known_train_N.any() else 0.0
    female_N, male_N = ((sex == letter).fill_null(False).to_numpy() for letter in "fm")
    return np.column_stack([np.where(np.isfinite(age_N), age_N, median), female_N, male_N]).astype(np.float64)


def _oracle(study_id: pl.Series, oracle_file: Path) -> dict[str, np.ndarray]:
    oracle = pl.read_parquet(oracle_file, columns=["study_id", "phenotype", "visible_risk"])
    return {
        phenotype: _aligned(study_id, rows)["visible_risk"].to_numpy()
        for (phenotype,), rows in oracle.group_by("phenotype", maintain_order=True)
    }
