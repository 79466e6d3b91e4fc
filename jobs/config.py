"""RunConfig: every key of a run, one section per owner. Light imports only (a typo must be answered in a second)."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from data.config import CohortConfig, InputConfig, PrepareConfig
from ehr.config import EhrConfig
from ttepretrain.config import load_config, require, require_choice, valid_keys
from ttepretrain.models.config import ExportConfig, ModelConfig
from ttepretrain.training.config import ARMS, STARTS, TrainConfig
from ttepretrain.volume.spec import VolumeConfig


@dataclass
class PathsConfig:
    root: str = "runs"  # folder of all outputs; a run writes to its own folder in it, which is called `name`


@dataclass
class EvalConfig:
    arms: list[str] = field(default_factory=lambda: ["base_random", "tte"])  # base_random | base | a trained arm
    horizons_days: list[float] = field(default_factory=lambda: [30.0, 180.0, 365.0])  # days from the scan
    bootstraps: int = 1000  # resamples of patients behind every interval, at least 100
    batch_size: int = 8  # studies embedded in one forward pass
    precision: str = "auto"  # fp32 | bf16 | auto, of the features; as in `train.precision`
    seed: int = 0  # seed of the resamples

    def __post_init__(self) -> None:
        require(len(self.arms) > 0, "eval.arms", self.arms, "must name at least one arm")
        for arm in self.arms:
            require_choice("eval.arms", arm, (*STARTS, *ARMS))
        require_choice("eval.precision", self.precision, ("auto", "fp32", "bf16"))
        require(self.batch_size >= 1, "eval.batch_size", self.batch_size, "must be at least 1")
        require(self.seed >= 0, "eval.seed", self.seed, "must not be negative")
        require(self.bootstraps >= 100, "eval.bootstraps", self.bootstraps, "must be at least 100")
        require(
            len(self.horizons_days) > 0 and all(h > 0 for h in self.horizons_days),
            "eval.horizons_days", self.horizons_days, "must be positive days",
        )  # fmt: skip


@dataclass
class ReportConfig:
    images: bool = False  # show scans of patients in report.html; scans of the synthetic cohort are always shown


@dataclass
class RunConfig:
    name: str = "default"  # name of the run, and of its folder below `paths.root`
    paths: PathsConfig = field(default_factory=PathsConfig)
    cohort: CohortConfig = field(default_factory=CohortConfig)
    input: InputConfig = field(default_factory=InputConfig)
    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    ehr: EhrConfig = field(default_factory=EhrConfig)
    volume: VolumeConfig = field(default_factory=VolumeConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    report: ReportConfig = field(default_factory=ReportConfig)

    def __post_init__(self) -> None:
        require(
            self.name not in ("", ".", "..") and "/" not in self.name,
            "name", self.name, "must be a folder name",
        )  # fmt: skip
        self.model.require_computable(self.volume.resolve().shape_DHW)  # or the export could not be read

    @property
    def folder(self) -> Path:
        return Path(self.paths.root) / self.name

    @property
    def synthetic(self) -> bool:
        """The input is the run's own synthetic cohort."""
        return self.input.studies is None

    @property
    def cohort_folder(self) -> Path:
        return self.folder / "cohort"

    @property
    def prepared_folder(self) -> Path:
        return self.folder / "prepared"

    @property
    def trained_folders(self) -> list[Path]:
        """Folders of the trained arms that evaluation compares, `tte` first; that of `tte` where it compares none."""
        return [self.pretrain_folder(arm) for arm in ARMS if arm in self.eval.arms] or [self.pretrain_folder("tte")]

    @property
    def eval_folder(self) -> Path:
        return self.folder / "eval"

    def pretrain_folder(self, arm: str) -> Path:
        return self.folder / "pretrain" / arm


def without_input_paths(config: RunConfig) -> RunConfig:
    """A copy for folders outside prepared/: paths of the input may name patients, and prepared/config.yaml has them."""
    given = {field.name: getattr(config.input, field.name) for field in fields(config.input)}
    hidden: dict[str, Any] = {
        name: "see prepared/config.yaml" for name, value in given.items() if isinstance(value, str)
    }
    return replace(config, input=replace(config.input, **hidden))


def read_run_config(arguments: list[str], program: str, description: str) -> RunConfig:
    """Configuration of `python -m PROGRAM CONFIG [key=value ...]`; `--help` lists every key."""
    parsed = run_parser(program, description).parse_args(arguments)
    return load_config(RunConfig, parsed.config, parsed.overrides)


def run_parser(program: str, description: str) -> argparse.ArgumentParser:
    """Parser of `config` and `overrides`; further options need its parse_intermixed_args."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {program}",
        description=description,
        epilog="keys: " + ", ".join(valid_keys(RunConfig)),
    )
    parser.add_argument("config", type=Path, help="YAML file with what this run changes, e.g. configs/default.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes on top of the file")
    return parser
