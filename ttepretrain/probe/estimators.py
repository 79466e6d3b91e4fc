"""Linear probes on frozen features: a common feature space, ridge Cox and ridge logistic regression.

N studies, F features, P principal components. lifelines' Newton step costs P^2 per study: probes see the leading
components of the standardised features. Components keep their variance, so that a ridge shrinks the directions in which
studies hardly differ most; with all components it is the ridge on the standardised features themselves.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

# Directions with less of the leading component's variance are rounding noise.
MIN_VARIANCE_SHARE = 1e-6

RiskFunction = Callable[[np.ndarray], np.ndarray]  # [N, P] -> risk [N], higher = sooner or likelier


class NotFitted(ValueError):
    """A probe could not be fitted; the message gives the reason."""


@dataclass(frozen=True)
class FeatureSpace:
    """Standardisation and principal components fitted on train studies."""

    mean_F: np.ndarray
    scale_F: np.ndarray
    axes_FP: np.ndarray  # orthonormal

    @classmethod
    def fit(cls, features_NF: np.ndarray, max_components: int) -> FeatureSpace:
        """Raises NotFitted when no feature varies."""
        from sklearn.decomposition import PCA
        from sklearn.preprocessing import StandardScaler

        scaler = StandardScaler().fit(features_NF)
        if not (scaler.var_ > 0).any():
            raise NotFitted("no feature varies over the train studies")
        pca = PCA(min(max_components, *features_NF.shape), svd_solver="full").fit(scaler.transform(features_NF))
        variance_P = pca.explained_variance_
        keep_P = variance_P > MIN_VARIANCE_SHARE * variance_P[0]
        return cls(scaler.mean_, scaler.scale_, pca.components_[keep_P].T)

    def transform(self, features_NF: np.ndarray) -> np.ndarray:
        """float64 [N, P], leading components first, uncorrelated on train."""
        return ((features_NF - self.mean_F) / self.scale_F) @ self.axes_FP


def fit_cox(x_NP: np.ndarray, event_N: np.ndarray, time_N: np.ndarray, ridge: float) -> RiskFunction:
    """Log partial hazard of a Cox model; maximises log-likelihood / N - ridge/2 |beta|^2.

    `event` is True where the event was seen (NOT censored). The blackout is the same for every row and no event falls
    into it, so delayed entry leaves the partial likelihood as it is. Raises NotFitted.
    """
    # lifelines penalises the coefficients of columns it has scaled to variance 1.
    penalty_P = ridge / np.maximum(x_NP.var(axis=0, ddof=1), 1e-12)
    import pandas as pd
    from lifelines import CoxPHFitter
    from lifelines.exceptions import ConvergenceError, ConvergenceWarning

    frame = pd.DataFrame(x_NP).assign(time=time_N, event=event_N)
    with warnings.catch_warnings():
        # A warned-about optimum (collinearity, complete separation) is as little use as none.
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            beta_P = CoxPHFitter(penalizer=penalty_P).fit(frame, "time", "event").params_.to_numpy()
        except (ConvergenceError, ConvergenceWarning) as error:
            raise NotFitted(f"Cox: {str(error).splitlines()[0]}") from None
    return lambda x_NP: x_NP @ beta_P


def fit_logistic(x_NP: np.ndarray, label_N: np.ndarray, ridge: float) -> RiskFunction:
    """Probability of the label; minimises log-loss / N + ridge/2 |beta|^2. Raises NotFitted."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            model = LogisticRegression(C=1 / (ridge * len(x_NP)), max_iter=1000).fit(x_NP, label_N)
        except ConvergenceWarning as error:
            raise NotFitted(f"logistic: {str(error).splitlines()[0]}") from None
    return lambda x_NP: model.predict_proba(x_NP)[:, 1]
