"""Area under the ROC curve, for one ranking and for many weightings of its rows at once.

    AUROC(w) = sum over (positive i, negative j) of w_i w_j H_ij / sum over the same pairs of w_i w_j

with H as in concordance.py: it is Harrell's C of a table in which every positive has its event at time 0 and every
negative is still under observation at time 1, and is computed as that.
"""

from __future__ import annotations

import numpy as np

from ttepretrain.evaluation.concordance import NoComparablePairs, harrell_c_weighted


def auroc(label_N: np.ndarray, risk_N: np.ndarray) -> float:
    """AUROC in [0, 1]; raises NoComparablePairs when all labels are of one class."""
    (value,) = auroc_weighted(label_N, risk_N, np.ones((1, len(label_N)), np.float32))
    if np.isnan(value):
        raise NoComparablePairs("labels of one class only")
    return float(value)


def auroc_weighted(label_N: np.ndarray, risk_N: np.ndarray, weights_BN: np.ndarray) -> np.ndarray:
    """AUROC under each of B integer weightings, float64 [B]; NaN where a weighting leaves one class only."""
    label_N = np.asarray(label_N, bool)
    return harrell_c_weighted(label_N, (~label_N).astype(np.float64), risk_N, weights_BN)
