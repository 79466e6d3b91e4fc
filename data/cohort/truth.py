"""What only the evaluation may read: the latents, every code's true hazard, and the oracle's risks.

oracle: the true log-hazard of a probe phenotype, up to its constant. `visible_risk` keeps the biomarkers that the image
shows; `full_risk` adds the hidden factors, age and sex. Age and sex count as hidden: the image shows nothing of
them but breast tissue.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from data.cohort.exam import BIOMARKERS, HIDDEN, LATENTS, PHENOTYPES, VISIBLE, Latents, Size, weight_vector
from data.cohort.timelines.catalogue import Catalogue
from data.cohort.timelines.histories import YEAR_DAYS, Course, Studies


def write_truth(
    folder: Path,
    size: Size,
    latents: Latents,
    catalogue: Catalogue,
    course: Course,
    studies: Studies,
    damage: dict[str, str],
) -> None:
    """latents.parquet, hazards.parquet and oracle.parquet. `damage`: study_id -> how its image was damaged."""
    folder.mkdir()
    _latents_table(latents, course, studies, damage).write_parquet(folder / "latents.parquet")
    _hazards_table(size, catalogue).write_parquet(folder / "hazards.parquet")
    oracle_table(latents, studies).write_parquet(folder / "oracle.parquet")


def oracle_table(latents: Latents, studies: Studies) -> pl.DataFrame:
    """study_id, phenotype, visible_risk, full_risk (f64): one row per study and probe phenotype."""
    scores_SL = latents.scores_NL[studies.subject_S]
    tables = []
    for phenotype in PHENOTYPES:
        weights_L = weight_vector(phenotype.weights)
        tables.append(
            pl.DataFrame(
                {
                    "study_id": list(studies.study_id_S),
                    "phenotype": [phenotype.name] * len(scores_SL),
                    "visible_risk": scores_SL[:, VISIBLE] @ weights_L[VISIBLE],
                    "full_risk": scores_SL @ weights_L,
                }
            )
        )
    return pl.concat(tables)


def _latents_table(latents: Latents, course: Course, studies: Studies, damage: dict[str, str]) -> pl.DataFrame:
    """One row per study: severities in [0, 1], hidden factors, age, sex, end of follow-up, damage (null: none)."""
    s = studies.subject_S
    columns = {
        "study_id": list(studies.study_id_S),
        "subject_id": course.subject_id_N[s],
        **{b.name: latents.severity_NJ[s, j] for j, b in enumerate(BIOMARKERS)},
        **{name: latents.hidden_NH[s, h] for h, name in enumerate(HIDDEN)},
        "age_years": latents.age_years_N[s] + studies.day_S / YEAR_DAYS,
        "female": latents.female_N[s],
        "end_days": course.end_N[s] - studies.day_S,
        "died": course.died_N[s],
        "damage": pl.Series([damage.get(name) for name in studies.study_id_S], dtype=pl.String),
    }
    return pl.DataFrame(columns)


def _hazards_table(size: Size, catalogue: Catalogue) -> pl.DataFrame:
    """task (code), per_day at score 0, and one weight per latent: hazard = per_day * exp(sum weight * score).

    An inner node without a rate of its own has the sum of its descendants' hazards.
    """
    used = np.flatnonzero(catalogue.per_year_C > 0)
    visits = PHENOTYPES[:2]  # death and admissions are no part of the catalogue
    codes = [p.code for p in visits] + [catalogue.codes[c] for c in used]
    per_year = np.concatenate([[p.per_year for p in visits], size.rate * catalogue.per_year_C[used]])
    weights = np.concatenate([[weight_vector(p.weights) for p in visits], catalogue.weights_CL[used]])
    columns = {"code": codes, "per_day": per_year / YEAR_DAYS}
    return pl.DataFrame(columns | {f"weight_{name}": weights[:, i] for i, name in enumerate(LATENTS)})
