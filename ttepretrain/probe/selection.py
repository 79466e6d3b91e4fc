"""One arm's probes: fitted on train, one setting per metric chosen on tuning, risks for every study.

The setting is shared by the phenotypes of a metric: a hundred tuning studies with twenty events cannot tell settings
apart for one phenotype, their mean over phenotypes can. Held-out rows are not looked at here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ttepretrain.evaluation.outcome import PROBE_OF_METRIC, Outcome
from ttepretrain.probe.estimators import FeatureSpace, NotFitted, fit_cox, fit_logistic

MIN_TRAIN_EVENTS = 5  # and as many rows without the event


class Setting(NamedTuple):
    components: int
    ridge: float


# Simplest first: a tie on tuning goes to the earlier one.
GRID = tuple(Setting(components, ridge) for components in (8, 32, 64) for ridge in (10.0, 1.0, 0.1))


@dataclass
class FittedProbes:
    risks: dict[int, np.ndarray] = field(default_factory=dict)  # outcome index -> float64 [N]
    missing: dict[int, str] = field(default_factory=dict)  # outcome index -> why there is no risk
    chosen: dict[str, dict] = field(default_factory=dict)  # probe -> setting and its tuning score
    dropped: list[dict] = field(default_factory=list)  # fits that failed


def fit_probes(features_NF: np.ndarray, split_N: np.ndarray, outcomes: Sequence[Outcome]) -> FittedProbes:
    """Risks of all N studies for every outcome that train can fit."""
    result = FittedProbes()
    train_N, tuning_N = split_N == "train", split_N == "tuning"
    try:
        space = FeatureSpace.fit(features_NF[train_N], max(setting.components for setting in GRID))
    except NotFitted as error:
        result.missing = dict.fromkeys(range(len(outcomes)), str(error))
        return result
    x_NP = space.transform(features_NF)
    grid = _distinct(GRID, x_NP.shape[1])
    for metric in PROBE_OF_METRIC:
        indices = []
        for index, outcome in enumerate(outcomes):
            reason = _too_few(outcome, train_N)
            if outcome.metric == metric and reason:
                result.missing[index] = reason
            elif outcome.metric == metric:
                indices.append(index)
        if indices:
            _fit_metric(x_NP, train_N, tuning_N, outcomes, indices, grid, result)
    return result


def _fit_metric(x_NP, train_N, tuning_N, outcomes, indices, grid, result: FittedProbes) -> None:
    """Fit all settings, choose one, keep its risks."""
    risks: dict[tuple[Setting, int], np.ndarray] = {}
    for setting in grid:
        for index in indices:
            try:
                risks[setting, index] = _fit(x_NP[:, : setting.components], train_N, outcomes[index], setting.ridge)
            except NotFitted as error:
                result.dropped.append(
                    {"phenotype": outcomes[index].phenotype, "horizon_days": outcomes[index].horizon_days}
                    | {"probe": outcomes[index].probe, **setting._asdict(), "reason": str(error)}
                )
    fitted = [index for index in indices if any((setting, index) in risks for setting in grid)]
    result.missing |= dict.fromkeys(set(indices) - set(fitted), "no setting of the probe could be fitted")
    complete = [setting for setting in grid if fitted and all((setting, index) in risks for index in fitted)]
    if not complete:
        result.missing |= dict.fromkeys(fitted, "no setting of the probe could be fitted for all phenotypes")
        return
    ones_1N = np.ones((1, len(x_NP)), np.float32)
    scores = {s: [outcomes[i].score(risks[s, i], ones_1N, tuning_N)[0] for i in fitted] for s in complete}
    # Which outcomes have comparable tuning pairs does not depend on the setting.
    mean = {s: float(np.mean(v)) for s, values in scores.items() if (v := [x for x in values if not np.isnan(x)])}
    best = max(complete, key=lambda setting: mean.get(setting, 0.0))
    result.risks |= {index: risks[best, index] for index in fitted}
    result.chosen[outcomes[indices[0]].probe] = {**best._asdict(), "tuning_score": mean.get(best)}


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


def _distinct(grid: Sequence[Setting], available: int) -> list[Setting]:
    """The grid with components capped at what there is, without repetitions."""
    return list(dict.fromkeys(Setting(min(components, available), ridge) for components, ridge in grid))
