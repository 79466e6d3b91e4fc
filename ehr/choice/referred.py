"""Codes that the configuration names: they are looked up in the ontology, whether or not the data hold them."""

from __future__ import annotations

import polars as pl

from ehr.choice.frozen import frozen_tasks
from ehr.codes.codes import CodeIndex
from ehr.codes.spelling import other_spellings
from ehr.config import EhrConfig
from ehr.phenotype_file import Phenotype
from ehr.phenotypes import match_codes


def referred_codes(phenotypes: dict[str, Phenotype], config: EhrConfig) -> list[str]:
    """Codes of `ehr.exclude`, of the phenotypes and of `ehr.tasks`; patterns with a `*` name none."""
    frozen = frozen_tasks(config)
    patterns = [*(config.exclude or []), *(code for p in phenotypes.values() for code in p.codes)]
    named = [pattern for pattern in patterns if not pattern.endswith("*")]
    return [*named, *(frozen.codes if frozen is not None else [])]


def spelled_otherwise(phenotypes: dict[str, Phenotype], config: EhrConfig, index: CodeIndex) -> dict[str, str]:
    """Codes of the phenotypes and of `ehr.exclude` that match nothing, with the code of the data that they mean."""
    patterns = [*(config.exclude or []), *(code for p in phenotypes.values() for code in (*p.codes, *p.twins))]
    held = index.closure.filter(pl.col("code").is_in(index.seen.implode()))["ancestor"]
    names = index.names.filter(pl.col("code").is_in(held.implode()))["name"]
    return other_spellings(match_codes(patterns, index)[1], names)
