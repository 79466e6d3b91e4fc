"""What small files and headers tell of the label stage's inputs: known in seconds, before a worker starts."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from data.labels.records import tables_of
from data.labels.stage import given_labels
from ehr.choice.frozen import frozen_tasks
from ehr.config import EhrConfig
from ehr.followup import read_periods
from ehr.phenotype_file import read_phenotypes, starts_of
from ehr.sources import headers, nested
from ttepretrain.errors import ConfigError


def check_label_inputs(ehr: Path, ontology: Path | None, studies: pl.DataFrame, config: EhrConfig) -> pl.DataFrame:
    """Rows of the user's label tables (`make_labels` takes them), once all that can be known now is known to be right.

    The phenotype file, the frozen tasks, the label tables against the studies, the columns of every event and
    vocabulary table, and that there are observation periods where follow-up needs them. Raises what the stage itself
    would raise later.
    """
    given = given_labels(config, studies)
    starts_of(config, read_phenotypes(Path(config.phenotypes)))
    frozen_tasks(config)
    tables, _ = tables_of(ehr, ontology)
    headers.check_headers(ehr, ontology)
    if tables is None:
        nested.check_headers(ehr, config.timezone, config.date_only)
        read_periods(ehr, config)
    elif config.followup == "observation_period" and "observation_period" not in tables.files:
        raise ConfigError(
            "ehr.followup=observation_period: the EHR has no table observation_period; use last_event or cutoff"
        )
    return given
