"""Harrell's concordance index, for one ranking and for many weightings of its rows at once.

N rows, E of them with an event, B weightings (bootstrap resamples written as integer counts per row).

A pair (i, j) is comparable when i has the event and is known to come first: time_i < time_j, or equal times with j
censored. Two events at the same time are not comparable. With H = 1 for risk_i > risk_j, 1/2 for equal risks, else 0:

    C(w) = sum_ij w_i w_j comparable_ij H_ij / sum_ij w_i w_j comparable_ij

which equals C of the table in which row i stands w_i times.
"""

from __future__ import annotations

import numpy as np

EVENT_BLOCK = 512  # event rows per matrix product: bounds memory to a few [512, N] arrays


class NoComparablePairs(ValueError):
    """No pair of rows can be ordered (no event, or nobody under observation after it): C is undefined, not 1/2."""


def harrell_c(event_N: np.ndarray, time_N: np.ndarray, risk_N: np.ndarray) -> float:
    """C in [0, 1]; `event` is bool (NOT censored), `risk` is higher = sooner.

    Raises NoComparablePairs, and ValueError for a risk that is not finite.
    """
    (value,) = harrell_c_weighted(event_N, time_N, risk_N, np.ones((1, len(event_N)), np.float32))
    if np.isnan(value):
        raise NoComparablePairs("no comparable pairs")
    return float(value)


def harrell_c_weighted(
    event_N: np.ndarray, time_N: np.ndarray, risk_N: np.ndarray, weights_BN: np.ndarray
) -> np.ndarray:
    """C under each of B integer weightings, float64 [B]; NaN where a weighting leaves no comparable pair.

    float32 products are exact here: all partial sums are multiples of 1/2 below 2^22.
    """
    event_N, time_N, risk_N = np.asarray(event_N, bool), np.asarray(time_N), np.asarray(risk_N)
    weights_BN = np.asarray(weights_BN, np.float32)
    if not np.isfinite(risk_N).all():
        raise ValueError("risk is not finite")
    higher, pairs = np.zeros(len(weights_BN)), np.zeros(len(weights_BN))
    event_rows = np.flatnonzero(event_N)
    for start in range(0, len(event_rows), EVENT_BLOCK):
        rows = event_rows[start : start + EVENT_BLOCK]
        time_E1, risk_E1 = time_N[rows, None], risk_N[rows, None]
        comparable_EN = (time_E1 < time_N) | ((time_E1 == time_N) & ~event_N)
        half_EN = ((risk_E1 > risk_N).astype(np.float32) + (risk_E1 >= risk_N)) / 2
        weights_BE = weights_BN[:, rows]
        # Sum over the later rows first: the wide side of the product is then contracted by BLAS.
        pairs += np.einsum("be,be->b", weights_BE, weights_BN @ comparable_EN.T.astype(np.float32), dtype=np.float64)
        higher += np.einsum("be,be->b", weights_BE, weights_BN @ (comparable_EN * half_EN).T, dtype=np.float64)
    return np.divide(higher, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)
