"""Where studies and records come from, and how they are prepared."""

from __future__ import annotations

from dataclasses import dataclass, field

from ttepretrain.config import require, require_choice
from ttepretrain.errors import MAX_BAD_FRACTION


@dataclass
class CohortConfig:
    """The synthetic cohort. The sizes themselves are frozen in data/cohort/exam.py."""

    size: str = "default"  # tiny | default
    seed: int = 0  # another seed gives other patients under the same rules

    def __post_init__(self) -> None:
        require_choice("cohort.size", self.size, ("tiny", "default"))
        require(self.seed >= 0, "cohort.seed", self.seed, "must not be negative")


@dataclass
class InputConfig:
    """All paths None: the run's own synthetic cohort (`<root>/<name>/cohort`) is the input."""

    studies: str | None = None  # studies.parquet or .csv, or INSPECT's study_mapping_*.tsv
    keep_rsna: bool = False  # INSPECT: keep the studies of provenance rsna, which RSPECT has too
    ehr: str | None = None  # folder of a MEDS data set or of OMOP CDM tables
    ontology: str | None = None  # folder of an Athena export; None: use only what lies in `input.ehr`
    splits: str | None = None  # parquet or csv with subject_id and split; overrides the splits of the EHR


@dataclass
class PrepareConfig:
    stages: list[str] = field(default_factory=lambda: ["labels", "volumes"])  # what to prepare: one or both
    # more bad studies than max(10, this share of all) end the run with exit code 3
    max_bad_fraction: float = MAX_BAD_FRACTION
    num_cpus: int | None = None  # number of Ray workers on this machine; None: one per core
    salt_file: str | None = None  # file with the salt to use, to share keys with a related folder; None: a new salt
    trust_mtime: bool = False  # take a scan whose files kept size and time as unchanged, without hashing it
    split_seed: int = 0  # seed of the 70/10/20 split by subject, used where no table gives splits

    def __post_init__(self) -> None:
        for stage in self.stages:
            require_choice("prepare.stages", stage, ("labels", "volumes"))
        require(len(self.stages) > 0, "prepare.stages", self.stages, "must name labels, volumes or both")
        require(self.num_cpus is None or self.num_cpus >= 1, "prepare.num_cpus", self.num_cpus, "must be at least 1")
        require(
            0 <= self.max_bad_fraction <= 0.5, "prepare.max_bad_fraction", self.max_bad_fraction, "must lie in [0, .5]"
        )
