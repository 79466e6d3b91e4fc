"""The frozen exam: what is true of every synthetic subject, and every parameter of the cohort in readable tables.

The parameters were set before any network was trained on the cohort. They change only with a CHANGELOG entry that
gives the reason. The families of codes are in families.py. N subjects, L latents.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ttepretrain.splits import SPLITS

VERSION = 1  # raise it whenever a change gives other files for the same (size, seed)


@dataclass(frozen=True)
class Size:
    subjects: int
    rescanned: float  # share of subjects with a second CT
    catalogue: float  # share of the code families' leaves that exist
    rate: float  # factor on every code's rate: few subjects still have enough events
    damaged: int  # images damaged on purpose
    shards: tuple[int, int, int]  # MEDS files in train, tuning, held_out


SIZES = {
    "tiny": Size(subjects=36, rescanned=0.12, catalogue=0.12, rate=3.0, damaged=2, shards=(2, 1, 1)),
    "default": Size(subjects=930, rescanned=0.15, catalogue=1.0, rate=1.0, damaged=7, shards=(4, 1, 2)),
}
SPLIT_SHARES = tuple(zip(SPLITS, (0.6, 0.1, 0.3)))  # of subjects


@dataclass(frozen=True)
class Biomarker:
    """A severity in [0, 1] that the image shows: 0 with probability 1 - present, else Beta(alpha, beta)."""

    name: str
    unit: str
    at_zero: float  # physical value that phantom.py draws at severity 0 ...
    at_one: float  # ... and at severity 1; linear between
    present: float
    alpha: float
    beta: float
    age: float = 0.0  # Gaussian-copula correlation with age

    @property
    def mean(self) -> float:
        return self.present * self.alpha / (self.alpha + self.beta)

    @property
    def sd(self) -> float:
        total = self.alpha + self.beta
        variance = self.alpha * self.beta / (total**2 * (total + 1))
        return float(np.sqrt(self.present * (variance + (self.alpha / total) ** 2) - self.mean**2))


# fmt: off
BIOMARKERS = (
    #         name                unit                              at 0   at 1   present alpha beta  age
    Biomarker("emphysema",        "share of the upper lungs",       0.0,   0.45,  0.60,   1.3,  1.6,  0.10),
    Biomarker("calcium",          "mm3 in the coronaries",          0.0,   2200., 0.65,   1.1,  1.7,  0.20),
    Biomarker("heart_size",       "scale",                          0.86,  1.28,  1.00,   2.2,  2.6,  0.10),
    Biomarker("effusion",         "mm deep",                        0.0,   55.0,  0.50,   1.2,  1.6),
    Biomarker("liver_fat",        "HU of the plain liver",          62.0,  -5.0,  1.00,   1.6,  2.4),
    Biomarker("muscle",           "mm of chest wall muscle",        5.0,   16.0,  1.00,   2.5,  2.5,  -0.20),
    Biomarker("rv_lv",            "right/left ventricle diameter",  0.65,  1.90,  1.00,   1.8,  2.6),
    Biomarker("pulmonary_artery", "mm diameter",                    22.0,  42.0,  1.00,   2.0,  2.4),
    Biomarker("nodule",           "mm diameter",                    0.0,   40.0,  0.50,   2.0,  1.8,  0.10),
    Biomarker("lung_opacity",     "share of the lower lungs",       0.0,   0.40,  0.55,   1.2,  1.6),
    # Negative controls: they drive codes of their own, and no probe phenotype.
    Biomarker("bone_density",     "HU of vertebral bodies",         60.0,  270.0, 1.00,   2.2,  2.2,  -0.25),
    Biomarker("spleen_size",      "scale",                          0.70,  1.55,  1.00,   2.0,  2.6),
)
# Standard normal, independent of the biomarkers, age and sex; no image shows them.
HIDDEN = ("renal", "immune", "clotting", "mood", "adherence", "metabolic")
# An image shows them only through what goes with them (breast tissue, calcium): the oracle counts them as hidden.
DEMOGRAPHICS = ("age", "female")
LATENTS = (*(b.name for b in BIOMARKERS), *HIDDEN, *DEMOGRAPHICS)
VISIBLE = np.arange(len(LATENTS)) < len(BIOMARKERS)
AGE_MEAN, AGE_SD, AGE_RANGE = 62.0, 14.0, (20.0, 94.0)

# ---- Records: days and years ------------------------------------------------------------------------------------
HISTORY_YEARS = (1.5, 5.0)  # uniform; record before the first CT
HISTORY_RATE = 0.4  # rate of every code before the first CT, as a share of its rate after it
FOLLOWUP_YEARS = (3.2, 0.55, 0.3, 10.0)  # loss to follow-up: log-normal median, sigma, lowest, highest
FIRST_SCAN_DAY = ("2011-01-01", 3300)  # first CTs are uniform over this many days from that date
RESCAN_DAYS = (90.0, 500.0)  # second CT after the first
INPATIENT = 0.45  # share of CTs made during a hospital stay
STAY_DAYS = (4.0, 14.0)  # exponential mean, cap


@dataclass(frozen=True)
class Phenotype:
    """A probe phenotype. Hazard after the CT: rate * exp(sum of weight * score), constant in time, recurrent."""

    name: str
    code: str
    title: str
    per_year: float  # at score 0 of every latent
    weights: dict[str, float]
    descendants: tuple[str, ...] = ()  # titles; the code itself and they share the rate equally
    sensitivity: float = 0.0  # P(coded in the CT's own visit | present)


PHENOTYPES = (
    Phenotype("mortality", "MEDS_DEATH", "Death", 0.055,
              {"emphysema": .40, "muscle": -.45, "nodule": .50, "effusion": .45, "calcium": .35, "rv_lv": .25,
               "age": .10, "immune": .30}),
    Phenotype("readmission", "HOSPITAL_ADMISSION", "Hospital admission", 0.16,
              {"emphysema": .45, "muscle": -.50, "effusion": .45, "heart_size": .45, "nodule": .35, "rv_lv": .30,
               "age": .10, "adherence": .35, "renal": .20}),
    Phenotype("pulmonary_hypertension", "SNOMED/70995007", "Pulmonary hypertension", 0.10,
              {"rv_lv": .80, "pulmonary_artery": .75, "emphysema": .35, "age": .10, "clotting": .30},
              ("Secondary pulmonary hypertension", "Chronic cor pulmonale with pulmonary hypertension",
               "Pulmonary arterial hypertension"), 0.40),
    Phenotype("atelectasis", "SNOMED/46621007", "Atelectasis", 0.11,
              {"effusion": .70, "nodule": .60, "lung_opacity": .50, "muscle": -.30, "age": .10, "adherence": .25},
              ("Compression atelectasis", "Subsegmental atelectasis", "Obstructive atelectasis"), 0.45),
    Phenotype("cardiomegaly", "SNOMED/8186001", "Cardiomegaly", 0.10,
              {"heart_size": .95, "calcium": .45, "rv_lv": .30, "age": .10, "renal": .30},
              ("Left ventricular dilatation", "Biventricular enlargement", "Hypertensive cardiomegaly"), 0.50),
    Phenotype("consolidation", "SNOMED/95436008", "Lung consolidation", 0.10,
              {"lung_opacity": .85, "emphysema": .60, "nodule": .30, "age": .10, "immune": .35},
              ("Lobar consolidation", "Patchy consolidation of lung", "Basal consolidation"), 0.45),
    Phenotype("edema", "SNOMED/267038008", "Edema", 0.11,
              {"heart_size": .65, "effusion": .60, "rv_lv": .45, "calcium": .25, "age": .10, "renal": .35},
              ("Pulmonary edema", "Peripheral edema", "Generalized edema"), 0.35),
    Phenotype("pleural_effusion", "SNOMED/60046008", "Pleural effusion", 0.09,
              {"effusion": .90, "heart_size": .50, "nodule": .40, "age": .10, "immune": .20},
              ("Bilateral pleural effusion", "Malignant pleural effusion", "Parapneumonic effusion"), 0.55),
    Phenotype("pulmonary_embolism", "SNOMED/59282003", "Pulmonary embolism", 0.035,
              {"rv_lv": .90, "pulmonary_artery": .35, "clotting": .50},
              ("Acute pulmonary embolism", "Saddle embolus of pulmonary artery", "Segmental pulmonary embolism"), 0.60),
)
# fmt: on
YARDSTICK = tuple(p.name for p in PHENOTYPES if p.name not in ("mortality", "pulmonary_embolism"))  # mean oracle C
# A condition is present at the CT when its visible log-hazard exceeds this many of its standard deviations.
PRESENT = 0.6


@dataclass(frozen=True)
class Latents:
    """What is true of N subjects."""

    severity_NJ: np.ndarray  # float64 in [0, 1], columns as BIOMARKERS
    hidden_NH: np.ndarray  # float64, standard normal
    age_years_N: np.ndarray  # at the first CT
    female_N: np.ndarray  # bool

    @property
    def scores_NL(self) -> np.ndarray:
        """Standardised columns, as LATENTS, that the log-hazards are linear in."""
        mean = np.array([b.mean for b in BIOMARKERS])
        sd = np.array([b.sd for b in BIOMARKERS])
        age = (self.age_years_N - AGE_MEAN) / AGE_SD
        return np.column_stack([(self.severity_NJ - mean) / sd, self.hidden_NH, age, self.female_N * 2.0 - 1.0])


def draw_latents(rng: np.random.Generator, num_subjects: int) -> Latents:
    from scipy.special import ndtr
    from scipy.stats import beta

    age_N = rng.standard_normal(num_subjects)
    noise_NJ = rng.standard_normal((num_subjects, len(BIOMARKERS)))
    severity_NJ = np.zeros_like(noise_NJ)
    for j, row in enumerate(BIOMARKERS):
        rank_N = ndtr(row.age * age_N + np.sqrt(1 - row.age**2) * noise_NJ[:, j])
        within_N = np.clip((rank_N - (1 - row.present)) / row.present, 0, 1)
        severity_NJ[:, j] = beta.ppf(within_N, row.alpha, row.beta)
    hidden_NH = rng.standard_normal((num_subjects, len(HIDDEN)))
    age_years_N = np.clip(AGE_MEAN + AGE_SD * age_N, *AGE_RANGE)
    return Latents(severity_NJ, hidden_NH, age_years_N, rng.random(num_subjects) < 0.5)


def weight_vector(weights: dict[str, float]) -> np.ndarray:
    """float64 [L] in the order of LATENTS; a name that is no latent raises KeyError."""
    vector = np.zeros(len(LATENTS))
    position = {name: i for i, name in enumerate(LATENTS)}
    for name, value in weights.items():
        vector[position[name]] = value
    return vector
