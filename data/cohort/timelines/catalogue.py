"""The cohort's code system: the tree of codes, and each code's log-linear hazard.

C codes, L latents. The catalogue is part of the frozen exam: it does not depend on the cohort's seed.
Apart from the probe phenotypes' own nodes the code numbers are invented, and only look like their vocabularies.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data.cohort.exam import LATENTS, PHENOTYPES, weight_vector
from data.cohort.timelines.families import (
    FAMILIES,
    JITTER,
    LAB_PER_YEAR,
    ROUTINE_LABS,
    ROUTINE_PER_YEAR,
    VARIANTS,
    Family,
)

CLINICAL_FINDING, DRUGS = "SNOMED/404684003", "ATC/drugs"
CHEST_CT = "CPT4/71260"
OBSERVATIONS, PROCEDURES = "LOINC/LP0", "CPT4/procedures"
NO_WEIGHTS = np.zeros(len(LATENTS))
NUMBERING = {
    "SNOMED": "SNOMED/7{:07d}",
    "ICD10CM": "ICD10CM/Q{:04d}",
    "ATC": "ATC/Z{:04d}",
    "RxNorm": "RxNorm/9{:06d}",
    "LOINC": "LOINC/9{:04d}-0",
    "CPT4": "CPT4/{:04d}T",
}


@dataclass(frozen=True)
class Catalogue:
    codes: tuple[str, ...]
    descriptions: tuple[str, ...]
    parents: tuple[tuple[str, ...], ...]
    per_year_C: np.ndarray  # float64; 0 for inner nodes that timelines never hold
    weights_CL: np.ndarray
    numeric_C: np.ndarray  # bool: events carry a value
    disorder_family_C: np.ndarray  # int: family of a disorder leaf, -1 otherwise


class _Builder:
    """Rows of the catalogue as they are added; every code gets the next serial number."""

    def __init__(self, share: float):
        self.rng = np.random.default_rng(2411)
        self.share = share
        self.rows: list[tuple] = []

    def code(self, vocabulary: str) -> str:
        return NUMBERING[vocabulary].format(len(self.rows) + 1)

    def add(
        self,
        code: str,
        title: str,
        parents: tuple[str, ...],
        per_year: float = 0.0,
        weights_L: np.ndarray = NO_WEIGHTS,
        numeric: bool = False,
        family: int = -1,
    ) -> str:
        self.rows.append((code, title, parents, per_year, weights_L, numeric, family))
        return code

    def add_stem(
        self,
        title: str,
        parent: str,
        vocabulary: str,
        shared_L: np.ndarray,
        leaves: tuple[tuple[str, str], ...],
        rates: tuple[float, float],
        numeric: bool = False,
        family: int = -1,
    ) -> None:
        """A node and its leaves. `leaves`: (kind of variants, vocabulary); small catalogues keep a prefix of each."""
        weights_L = shared_L * self.rng.uniform(*JITTER)
        stem = self.add(self.code(vocabulary), title, (parent,))
        for kind, leaf_vocabulary in leaves:
            for variant in _prefix(VARIANTS[kind], self.share):
                rate = float(np.exp(self.rng.uniform(*np.log(rates))))
                title_ = f"{title}, {variant}"
                self.add(self.code(leaf_vocabulary), title_, (stem,), rate, weights_L, numeric, family)


def build_catalogue(share: float) -> Catalogue:
    """All codes; `share` < 1 keeps fewer stems and variants (small cohorts)."""
    builder = _Builder(share)
    builder.add(CLINICAL_FINDING, "Clinical finding", ())
    builder.add(DRUGS, "Drug", ())
    builder.add(OBSERVATIONS, "Laboratory and vital signs", ())
    builder.add(PROCEDURES, "Procedure", ())
    builder.add(CHEST_CT, "Computed tomography of the chest with contrast", (PROCEDURES,))
    for phenotype in PHENOTYPES:
        if not phenotype.descendants:  # death and admissions: no part of the tree, see histories.py
            builder.add(phenotype.code, phenotype.title, ())
    for index, family in enumerate(FAMILIES):
        _add_family(builder, index, family)
    for title in ROUTINE_LABS:
        rate = float(np.exp(builder.rng.uniform(*np.log(ROUTINE_PER_YEAR))))
        builder.add(builder.code("LOINC"), title, (OBSERVATIONS,), rate, numeric=True)
    _add_phenotypes(builder)
    codes, titles, parents, *numbers = zip(*builder.rows)
    return Catalogue(codes, titles, parents, *map(np.array, numbers))


def _add_family(builder: _Builder, index: int, family: Family) -> None:
    shared_L = weight_vector(family.weights)
    top = builder.add(builder.code("SNOMED"), f"Disorder: {family.name}", (CLINICAL_FINDING,))
    share = 1.0 if builder.share == 1 else 0.4
    for title in _prefix(family.disorders, share):
        leaves = (("disorder", "SNOMED"), ("icd", "ICD10CM"))
        builder.add_stem(title, top, "SNOMED", shared_L, leaves, family.per_year, family=index)
    group = builder.add(builder.code("ATC"), f"Drugs: {family.name}", (DRUGS,))
    for title in _prefix(family.drugs, share):
        builder.add_stem(title, group, "RxNorm", shared_L, (("drug", "RxNorm"),), family.per_year)
    for title in _prefix(family.labs, share):
        builder.add_stem(title, OBSERVATIONS, "LOINC", shared_L, (("lab", "LOINC"),), LAB_PER_YEAR, numeric=True)
    for title in _prefix(family.procedures, share):
        builder.add_stem(title, PROCEDURES, "CPT4", shared_L, (("procedure", "CPT4"),), family.per_year)


def _add_phenotypes(builder: _Builder) -> None:
    """The probe phenotypes' nodes. The node and its descendants share its hazard, so the sum stays log-linear."""
    parent = builder.add(builder.code("SNOMED"), "Radiographic and cardiopulmonary finding", (CLINICAL_FINDING,))
    for phenotype in PHENOTYPES:
        if not phenotype.descendants:
            continue
        weights_L = weight_vector(phenotype.weights)
        rate = phenotype.per_year / (1 + len(phenotype.descendants))
        builder.add(phenotype.code, phenotype.title, (parent,), rate, weights_L)
        for title, vocabulary in zip(phenotype.descendants, ("SNOMED", "SNOMED", "ICD10CM")):
            builder.add(builder.code(vocabulary), title, (phenotype.code,), rate, weights_L)


def _prefix(items: tuple[str, ...], share: float) -> tuple[str, ...]:
    return items[: max(1, round(share * len(items)))] if items else ()
