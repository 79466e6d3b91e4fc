"""Bootstrap over patients: resamples as integer weights, percentile intervals.

A patient's studies are drawn together. The same resamples serve every arm and every phenotype, so that differences
between arms are paired. N studies, B resamples.
"""

from __future__ import annotations

import numpy as np

PERCENTILES = (2.5, 97.5)
# An interval of the resamples that happen to be defined would be too narrow: below this share there is none.
MIN_DEFINED = 0.9


def patient_weights(subject_N: np.ndarray, bootstraps: int, seed: int) -> np.ndarray:
    """How often each study stands in each resample, float32 [1 + B, N]; row 0 is the sample itself (all ones).

    A function of the set of subjects and the seed, not of the order of the rows.
    """
    subjects, subject_index_N = np.unique(subject_N, return_inverse=True)
    random = np.random.Generator(np.random.Philox(seed))
    num = len(subjects)
    drawn = random.integers(num, size=(bootstraps, num)) + num * np.arange(bootstraps)[:, None]
    counts_BS = np.bincount(drawn.ravel(), minlength=bootstraps * num).reshape(bootstraps, num)
    return np.concatenate([np.ones((1, len(subject_N))), counts_BS[:, subject_index_N]]).astype(np.float32)


def percentile_interval(samples_B: np.ndarray) -> tuple[float, float]:
    """95 % percentile interval of the resamples' values; (nan, nan) when too many of them are undefined."""
    defined = samples_B[np.isfinite(samples_B)]
    if len(defined) < MIN_DEFINED * len(samples_B):
        return np.nan, np.nan
    low, high = np.percentile(defined, PERCENTILES)
    return float(low), float(high)
