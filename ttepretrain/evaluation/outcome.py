"""Outcome: what a probe predicts and a metric scores, over the N studies of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ttepretrain.evaluation.auroc import auroc_weighted
from ttepretrain.evaluation.concordance import harrell_c_weighted

PROBE_OF_METRIC = {"harrell_c": "cox", "auroc": "logistic"}


@dataclass(frozen=True)
class Outcome:
    phenotype: str
    horizon_days: float | None  # None: time to event, or a diagnosis
    metric: str  # harrell_c (time to event) | auroc (yes or no)
    known_N: np.ndarray  # bool: the rows that count; a row censored before the horizon does not
    event_N: np.ndarray  # bool: harrell_c: event seen (NOT censored); auroc: the label
    time_N: np.ndarray  # float64 days until event or censoring; nan for auroc

    @property
    def probe(self) -> str:
        return PROBE_OF_METRIC[self.metric]

    def score(self, risk_N: np.ndarray, weights_BN: np.ndarray, rows_N: np.ndarray) -> np.ndarray:
        """The metric over the known ones of `rows_N` under each weighting, float64 [B]; NaN where undefined.

        Raises ValueError when a risk among them is not finite.
        """
        rows = np.flatnonzero(rows_N & self.known_N)
        if self.metric == "auroc":
            return auroc_weighted(self.event_N[rows], risk_N[rows], weights_BN[:, rows])
        return harrell_c_weighted(self.event_N[rows], self.time_N[rows], risk_N[rows], weights_BN[:, rows])
