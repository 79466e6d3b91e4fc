"""One arm's probes: fitted on train, one ridge per metric chosen on tuning, risks for every study.

The ridge is shared by the phenotypes of a metric: a hundred tuning studies with twenty events cannot rank ridges
for one phenotype, their mean over phenotypes can. Risks change smoothly with it, so that a near tie is decided between
near equals. Held-out rows are not looked at here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ttepretrain.evaluation.outcome import PROBE_OF_METRIC, Outcome
from ttepretrain.probe.estimators import FeatureSpace, NotFitted, fit_cox, fit_logistic

MAX_PROCESSES = 8
MIN_TRAIN_EVENTS = 5  # and as many rows without the event


MAX_COMPONENTS = 256  # on the default cohort the mean C is within .002 of that with all 512 (docs/lab-log.md)
RIDGES = (10.0, 3.0, 1.0, 0.3)  # strongest first: a tie on tuning goes to the earlier one


@dataclass
class FittedProbes:
    risks: dict[int, np.ndarray] = field(default_factory=dict)  # outcome index -> float64 [N]
    missing: dict[int, str] = field(default_factory=dict)  # outcome index -> why there is no risk
    chosen: dict[str, dict] = field(default_factory=dict)  # probe -> components, ridge and its tuning score
    dropped: list[dict] = field(default_factory=list)  # fits that failed


def fit_probes(features_NF: np.ndarray, split_N: np.ndarray, outcomes: Sequence[Outcome]) -> FittedProbes:
    """Risks of all N studies for every outcome that train can fit."""
    result = FittedProbes()
    train_N, tuning_N = split_N == "train", split_N == "tuning"
    try:
        space = FeatureSpace.fit(features_NF[train_N], MAX_COMPONENTS)
    except NotFitted as error:
        result.missing = dict.fromkeys(range(len(outcomes)), str(error))
        return result
    x_NP = space.transform(features_NF)
    for metric in PROBE_OF_METRIC:
        indices = []
        for index, outcome in enumerate(outcomes):
            reason = _too_few(outcome, train_N)
            if outcome.metric == metric and reason:
                result.missing[index] = reason
            elif outcome.metric == metric:
                indices.append(index)
        if indices:
            _fit_metric(x_NP, train_N, tuning_N, outcomes, indices, result)
    return result


def _fit_metric(
    x_NP: np.ndarray,
    train_N: np.ndarray,
    tuning_N: np.ndarray,
    outcomes: Sequence[Outcome],
    indices: Sequence[int],
    result: FittedProbes,
) -> None:
    """Fit with every ridge, choose one, keep its risks."""
    risks = _fit_all(x_NP, train_N, outcomes, indices, result)
    fitted = [index for index in indices if any((ridge, index) in risks for ridge in RIDGES)]
    result.missing |= dict.fromkeys(set(indices) - set(fitted), "the probe could be fitted with no ridge")
    complete = [ridge for ridge in RIDGES if fitted and all((ridge, index) in risks for index in fitted)]
    if not complete:
        result.missing |= dict.fromkeys(fitted, "the probe could be fitted for all phenotypes with no ridge")
        return
    ones_1N = np.ones((1, len(x_NP)), np.float32)
    scores = {r: [outcomes[i].score(risks[r, i], ones_1N, tuning_N)[0] for i in fitted] for r in complete}
    # Which outcomes have comparable tuning pairs does not depend on the ridge.
    mean = {r: float(np.mean(v)) for r, values in scores.items() if (v := [x for x in values if not np.isnan(x)])}
    best = max(complete, key=lambda ridge: mean.get(ridge, 0.0))
    result.risks |= {index: risks[best, index] for index in fitted}
    result.chosen[outcomes[indices[0]].probe] = {
        "components": x_NP.shape[1],
        "ridge": best,
        "tuning_score": mean.get(best),
        "tuning_scores": {f"{ridge:g}": mean.get(ridge) for ridge in complete},
    }


def _fit_all(
    x_NP: np.ndarray,
    train_N: np.ndarray,
    outcomes: Sequence[Outcome],
    indices: Sequence[int],
    result: FittedProbes,
) -> dict[tuple[float, int], np.ndarray]:
    """Risks [N] per (ridge, outcome index); what could not be fitted goes to `result.dropped`."""
    from joblib import Parallel, cpu_count, delayed

    wanted = [(ridge, index) for ridge in RIDGES for index in indices]
    # lifelines spends its time in Python: processes, not threads.
    parallel = Parallel(n_jobs=min(cpu_count(), MAX_PROCESSES))
    found = parallel(delayed(_tried)(x_NP, train_N, outcomes[index], ridge) for ridge, index in wanted)
    risks = {}
    for (ridge, index), risk_N in zip(wanted, found, strict=True):
        if isinstance(risk_N, NotFitted):
            result.dropped.append(
                {"phenotype": outcomes[index].phenotype, "horizon_days": outcomes[index].horizon_days}
                | {"probe": outcomes[index].probe, "ridge": ridge, "reason": str(risk_N)}
            )
        else:
            risks[ridge, index] = risk_N
    return risks


def _tried(x_NP: np.ndarray, train_N: np.ndarray, outcome: Outcome, ridge: float) -> np.ndarray | NotFitted:
    try:
        return _fit(x_NP, train_N, outcome, ridge)
    except NotFitted as error:
        return error


def _fit(x_NP: np.ndarray, train_N: np.ndarray, outcome: Outcome, ridge: float) -> np.ndarray:
    rows_N = train_N & outcome.known_N
    if outcome.metric == "harrell_c":
        return fit_cox(x_NP[rows_N], outcome.event_N[rows_N], outcome.time_N[rows_N], ridge)(x_NP)
    return fit_logistic(x_NP[rows_N], outcome.event_N[rows_N], ridge)(x_NP)


def _too_few(outcome: Outcome, train_N: np.ndarray) -> str | None:
    rows_N = train_N & outcome.known_N
    events = int((rows_N & outcome.event_N).sum())
    if events < MIN_TRAIN_EVENTS:
        return f"fewer than {MIN_TRAIN_EVENTS} train studies with the event"
    if outcome.metric == "auroc" and int(rows_N.sum()) - events < MIN_TRAIN_EVENTS:
        return f"fewer than {MIN_TRAIN_EVENTS} train studies without the event"
    return None
