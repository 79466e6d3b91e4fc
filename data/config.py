"""Where studies and records come from, and how they are prepared."""

from __future__ import annotations

from dataclasses import dataclass, field

from ttepretrain.config import require, require_choice


@dataclass
class CohortConfig:
    """The synthetic cohort. The sizes themselves are frozen in data/cohort/exam.py."""

    size: str = "default"  # tiny | default
    seed: int = 0

    def __post_init__(self) -> None:
        require_choice("cohort.size", self.size, ("tiny", "default"))
        require(self.seed >= 0, "cohort.seed", self.seed, "must not be negative")


@dataclass
class InputConfig:
    """All paths None: the run's own synthetic cohort (`<root>/<name>/cohort`) is the input."""

    studies: str | None = None  # studies.parquet or .csv, or INSPECT's study_mapping_*.tsv
    keep_rsna: bool = False  # INSPECT: also studies of provenance rsna, which RSPECT has too
    ehr: str | None = None  # folder of a MEDS data set or of OMOP CDM tables
    ontology: str | None = None  # folder of an Athena export; None: what lies in `ehr` alone
    splits: str | None = None  # parquet or csv: subject_id, split; overrides the data set's own


@dataclass
class PrepareConfig:
    stages: list[str] = field(default_factory=lambda: ["labels", "volumes"])
    max_bad_fraction: float = 0.01  # bad studies beyond max(10, this share of all) stop the run with exit 3
    num_cpus: int | None = None  # Ray workers on this machine; None: all cores
    salt_file: str | None = None  # share one salt between related prepared folders
    trust_mtime: bool = False  # take sources whose files kept size and date as unchanged, instead of hashing them
    split_seed: int = 0  # subject hash 70/10/20 where no table says

    def __post_init__(self) -> None:
        for stage in self.stages:
            require_choice("prepare.stages", stage, ("labels", "volumes"))
        require(len(self.stages) > 0, "prepare.stages", self.stages, "must name labels, volumes or both")
        require(self.num_cpus is None or self.num_cpus >= 1, "prepare.num_cpus", self.num_cpus, "must be at least 1")
        require(
            0 <= self.max_bad_fraction <= 0.5, "prepare.max_bad_fraction", self.max_bad_fraction, "must lie in [0, .5]"
        )
