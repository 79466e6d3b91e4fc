"""Codes that the configuration names: they are looked up in the ontology, whether or not the data hold them."""

from __future__ import annotations

from ehr.choice.frozen import frozen_tasks
from ehr.config import EhrConfig
from ehr.phenotype_file import Phenotype


def referred_codes(phenotypes: dict[str, Phenotype], config: EhrConfig) -> list[str]:
    """Codes of `ehr.exclude`, of the phenotypes and of `ehr.tasks`; patterns with a `*` name none."""
    frozen = frozen_tasks(config)
    patterns = [*(config.exclude or []), *(code for p in phenotypes.values() for code in p.codes)]
    named = [pattern for pattern in patterns if not pattern.endswith("*")]
    return [*named, *(frozen.codes if frozen is not None else [])]
