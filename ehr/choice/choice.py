"""What the choice of tasks needs of a run: candidates with their counts, codes that must stay out, patients."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce

import numpy as np
import polars as pl

from ehr.choice.overlap import patient_bits
from ehr.choice.tasks import entropy_score, parent_prevalence
from ehr.codes.codes import CodeIndex
from ehr.config import EhrConfig
from ehr.passes.count import ShardCounts
from ehr.passes.shard import Rules, Shard
from ehr.phenotype_file import Phenotype
from ehr.phenotypes import match_codes, named_codes
from ehr.schema import DAY_US


def excluded_codes(
    index: CodeIndex, phenotypes: dict[str, Phenotype], codes_of: dict[str, pl.Series], config: EhrConfig
) -> pl.Series:
    """Codes that may not become tasks: `ehr.exclude`, phenotypes and their twins, with all above and below them."""
    listed = named_codes(config.exclude or [], index)
    hidden = [name for name, p in phenotypes.items() if config.exclude_phenotypes or p.kind == "diagnosis"]
    twins = (match_codes(phenotypes[name].twins, index)[0] for name in hidden)
    return index.above_and_below(pl.concat([listed, *(codes_of[name] for name in hidden), *twins]))


def train_candidates(
    index: CodeIndex, counted: list[ShardCounts], studies: pl.DataFrame, found: pl.DataFrame
) -> pl.DataFrame:
    """code, prevalence, score, events, patients, days_at_risk of every candidate.

    A subject is in one shard: counts add up, and times too, exactly, as they are whole microseconds.

    found: subject_id of those that the EHR holds; the train ones among them are the whole of the prevalence.
    """
    train_subjects = studies.filter("train").join(found, on="subject_id", how="semi")["subject_id"].n_unique()
    of_shards = zip(*(part.of_codes for part in counted))
    subjects, events, patients, lost_us = (reduce(np.add, columns) for columns in of_shards)
    prevalence = subjects / max(train_subjects, 1)
    above = (index.parents[name].to_numpy() for name in ("code", "parent"))
    score = entropy_score(prevalence, parent_prevalence(prevalence, *above))
    at_risk = (sum(part.followed_us for part in counted) - lost_us) / DAY_US
    columns = {"prevalence": prevalence, "score": score, "events": events, "patients": patients}
    every = pl.DataFrame(columns | {"days_at_risk": at_risk})
    return every.with_row_index("code").join(index.candidates, on="code", how="semi", maintain_order="left")


def all_patient_bits(ranked: pl.DataFrame, rules: Rules, shards: list[Shard], map_shards: Callable) -> np.ndarray:
    """overlap.patient_bits of the ranked codes over all shards, from one more pass over what `count` left."""
    count = partial(patient_bits, rules=rules, tasks=ranked["code"].to_numpy())
    return np.concatenate(map_shards(count, shards), axis=1)
