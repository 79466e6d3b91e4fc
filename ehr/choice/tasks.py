"""Which codes become tasks: filter, rank by conditional entropy, cut at K, pin death on top.

p(c) = share of train subjects with c or a descendant; b(c) = min(1, min over direct parents q of p(q)).
w = min(1, p/b); score = b (w ln w + (1 - w) ln(1 - w)): negative, lowest first (many could have it, half of them do).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl

from ehr.choice.overlap import distinct
from ehr.config import EhrConfig

SCORE_DECIMALS = 12  # scores this close are ties (mirrored w differ by rounding alone), settled by the code string


def entropy_score(p: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Score per code; nan where w is 0 or 1 (nobody or everybody whose parent is known has it)."""
    w = np.minimum(1.0, p / b)
    inside = (w > 0) & (w < 1)
    w = np.where(inside, w, 0.5)
    return np.where(inside, np.round(b * (w * np.log(w) + (1 - w) * np.log1p(-w)), SCORE_DECIMALS), np.nan)


def parent_prevalence(prevalence: np.ndarray, child: np.ndarray, parent: np.ndarray) -> np.ndarray:
    """b(c) of every code from pairs of code indices."""
    b = np.ones(len(prevalence))
    np.minimum.at(b, child, prevalence[parent])
    return b


def choose_tasks(
    candidates: pl.DataFrame,
    excluded: pl.Series,
    death_code: int,
    config: EhrConfig,
    patient_bits: Callable[[pl.DataFrame], np.ndarray],
) -> tuple[pl.DataFrame, dict]:
    """Chosen codes in task order (death first, when a train subject died at risk) and the counts of each filter.

    candidates: code (index in string order), prevalence, score, events, patients, of the train studies' risk sets.
    patient_bits: overlap.patient_bits of given codes; asked for with `max_task_overlap` alone.
    """
    death = candidates.filter((pl.col("code") == death_code) & (pl.col("events") > 0)).with_columns(
        score=pl.lit(np.nan)
    )
    counts = {"candidates": len(candidates)}
    rest = candidates.filter(pl.col("code") != death_code)
    for reason, keep in (
        ("too_few_events", pl.col("events") >= config.min_events),
        ("too_few_patients", pl.col("patients") >= config.min_patients),
        ("excluded", ~pl.col("code").is_in(excluded.implode())),
        ("no_information", pl.col("score").is_not_nan()),
    ):
        counts[reason] = len(rest)
        rest = rest.filter(keep)
        counts[reason] -= len(rest)
    ranked, most = pl.concat([death, rest.sort("score", "code")]), len(death) + config.num_tasks
    seen = min(most, len(ranked))  # how far down the ranking the tasks were taken from
    chosen = ranked.head(most)
    if config.max_task_overlap is not None:
        kept = distinct(patient_bits(ranked), config.max_task_overlap, most)
        seen = int(kept[-1]) + 1 if len(kept) == most else len(ranked)
        chosen = ranked[kept]
        counts["near_duplicates"] = seen - len(kept)
    counts["beyond_num_tasks"] = len(ranked) - seen
    counts["tasks"] = len(chosen)
    return chosen, counts
