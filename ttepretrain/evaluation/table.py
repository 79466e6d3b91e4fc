"""Metric rows of one split: every arm alone, paired differences between arms, means over phenotypes, the closed gap.

Arms are scored on the same rows with the same patient resamples. B resamples, N studies.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ttepretrain.evaluation.bootstrap import percentile_interval
from ttepretrain.evaluation.outcome import PROBE_OF_METRIC, Outcome
from ttepretrain.training.config import STARTS

TRAINED, DEMOGRAPHICS, ORACLE = "tte", "demographics", "oracle"
# Death stays a pretraining task, so it is reported and left out of the means.
NOT_IN_MEAN = ("mortality",)

Ranking = tuple[str, int]  # arm, index of the outcome
About = tuple[str, str, float | None]  # phenotype, metric, horizon_days


@dataclass(frozen=True)
class Metric:
    """A row of metrics.csv; numbers are nan where the file says null."""

    split: str
    arm: str
    baseline: str | None  # None, or the arm that was subtracted
    probe: str  # cox | logistic | none (the oracle is not fitted)
    phenotype: str  # or mean
    metric: str  # harrell_c | auroc | closed_gap
    horizon_days: float | None
    value: float
    lo: float
    hi: float
    n: int  # studies; for a mean: (study, phenotype) pairs
    events: int
    reason: str | None  # why there is no value


def score_split(
    split: str,
    rows_N: np.ndarray,
    outcomes: Sequence[Outcome],
    risks: Mapping[Ranking, np.ndarray],
    missing: Mapping[Ranking, str],
    weights_BN: np.ndarray,
) -> list[Metric]:
    """All rows of one split. `risks` are over all N studies; `missing` says why an arm has none for an outcome."""
    arms = sorted({arm for arm, _ in (*risks, *missing)}, key=_arm_order)
    weights_BN = np.where(rows_N, weights_BN, 0)
    samples: dict[Ranking, np.ndarray] = {}
    reasons = dict(missing)
    for ranking, risk_N in risks.items():
        outcome = outcomes[ranking[1]]
        if np.isfinite(risk_N[rows_N & outcome.known_N]).all():
            samples[ranking] = outcome.score(risk_N, weights_BN, rows_N)
            if np.isnan(samples[ranking][0]):
                reasons[ranking] = "no comparable pairs" if outcome.metric == "harrell_c" else "one class only"
        else:
            reasons[ranking] = "risk is not finite"
    samples = {ranking: values for ranking, values in samples.items() if ranking not in reasons}

    table = _Rows(split, rows_N, outcomes, samples, reasons)
    rows = [row for index in range(len(outcomes)) for row in table.of_outcome(arms, index)]
    for metric in PROBE_OF_METRIC:
        rows += table.of_mean(arms, metric)
    return rows


def pairs_of(arms: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(arm, subtracted arm): every trained arm against where encoders start and against demographics."""
    references = (*STARTS, DEMOGRAPHICS)
    for arm in arms:
        for baseline in references:
            if baseline in arms and arm not in (*references, ORACLE):
                yield arm, baseline


@dataclass(frozen=True)
class _Rows:
    split: str
    rows_N: np.ndarray
    outcomes: Sequence[Outcome]
    samples: Mapping[Ranking, np.ndarray]  # [1 + B]: the sample itself, then the resamples
    reasons: Mapping[Ranking, str]

    def of_outcome(self, arms: Sequence[str], index: int) -> Iterator[Metric]:
        outcome = self.outcomes[index]
        known_N = self.rows_N & outcome.known_N
        about = (outcome.phenotype, outcome.metric, outcome.horizon_days)
        counts = (int(known_N.sum()), int((known_N & outcome.event_N).sum()))
        for arm in arms:
            reason = self.reasons.get((arm, index))
            yield self._row(arm, None, about, counts, self.samples.get((arm, index)), reason)
        for arm, baseline in pairs_of(arms):
            ours, theirs = (self.samples.get((a, index)) for a in (arm, baseline))
            if ours is None or theirs is None:
                reason = self.reasons.get((arm, index)) or f"{baseline}: {self.reasons.get((baseline, index))}"
                yield self._row(arm, baseline, about, counts, None, reason)
            else:
                yield self._row(arm, baseline, about, counts, ours - theirs, None)

    def of_mean(self, arms: Sequence[str], metric: str) -> Iterator[Metric]:
        """Means over the phenotypes that every arm has a value for, so that arms stay comparable."""
        indices = [
            index
            for index, outcome in enumerate(self.outcomes)
            if outcome.metric == metric
            and outcome.phenotype not in NOT_IN_MEAN
            and all((arm, index) in self.samples for arm in arms)
        ]
        if not any(outcome.metric == metric for outcome in self.outcomes):
            return
        about: About = ("mean", metric, None)
        known = [self.rows_N & self.outcomes[index].known_N for index in indices]
        events = [rows & self.outcomes[index].event_N for rows, index in zip(known, indices)]
        counts = (int(np.sum(known)), int(np.sum(events)))
        reason = None if indices else "no phenotype has a value for every arm"
        mean = {a: np.mean([self.samples[a, i] for i in indices], axis=0) for a in arms} if indices else {}
        for arm in arms:
            yield self._row(arm, None, about, counts, mean.get(arm), reason)
        for arm, baseline in pairs_of(arms):
            difference = mean[arm] - mean[baseline] if indices else None
            yield self._row(arm, baseline, about, counts, difference, reason)
        if metric == "harrell_c" and ORACLE in arms:
            about = ("mean", "closed_gap", None)
            for arm, baseline in pairs_of(arms):
                if baseline in STARTS:
                    share, why = _closed_gap(mean[arm], mean[baseline], mean[ORACLE]) if indices else (None, reason)
                    yield self._row(arm, baseline, about, counts, share, why)

    def _row(
        self,
        arm: str,
        baseline: str | None,
        about: About,
        counts: tuple[int, int],
        samples: np.ndarray | None,
        reason: str | None,
    ) -> Metric:
        phenotype, metric, horizon_days = about
        value, (lo, hi) = (np.nan, (np.nan, np.nan))
        if samples is not None:
            value, (lo, hi) = float(samples[0]), percentile_interval(samples[1:])
        probe = "none" if arm == ORACLE else PROBE_OF_METRIC.get(metric, "cox")
        return Metric(self.split, arm, baseline, probe, phenotype, metric, horizon_days, value, lo, hi, *counts, reason)


def _closed_gap(
    arm_B: np.ndarray, baseline_B: np.ndarray, oracle_B: np.ndarray
) -> tuple[np.ndarray | None, str | None]:
    """(arm - baseline) / (oracle - baseline), a ratio of means; resamples without a gap to close are undefined."""
    gap_B = oracle_B - baseline_B
    if gap_B[0] <= 0:
        return None, "the oracle does not exceed the baseline: no gap to close"
    return np.divide(arm_B - baseline_B, gap_B, out=np.full(len(gap_B), np.nan), where=gap_B > 0), None


def _arm_order(arm: str) -> tuple[int, str]:
    known = (DEMOGRAPHICS, *STARTS, TRAINED, ORACLE)
    return (known.index(arm), arm) if arm in known else (known.index(ORACLE), arm)
