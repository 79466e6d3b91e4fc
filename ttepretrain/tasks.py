"""TaskSet: what the head predicts. The contract between labels, head, metrics and probe users (`tasks.json`)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ttepretrain.config import check_types, is_of, require, require_choice
from ttepretrain.documents import parse_json, read_regular, require_keys, require_shallow
from ttepretrain.errors import ConfigError, IntegrityError
from ttepretrain.plain_text import shown

SCHEMA_VERSION = 1
MOST_BYTES = 32 << 20  # of tasks.json: 8,192 tasks take 2 MiB
MOST_TASKS = 100_000  # what MOST_BYTES hold
MOST_COUNT = 1 << 53  # of subjects and events: exact as a float
LATEST_DAYS = 36_525.0  # blackout; as ehr.blackout_days
LATEST_EDGE_DAYS = 1e6


@dataclass(frozen=True)
class Task:
    """One code whose first occurrence (or a descendant's) after the scan is predicted."""

    code: str  # vocabulary/concept_code
    description: str
    prevalence: float  # share of train subjects with the code or a descendant, any time; nan for a phenotype of arm mtl
    score: float  # conditional-entropy rank (docs/reference/tasks.md); negative, lower = earlier; nan for a pinned task
    patients: int  # train subjects with an event in the risk set
    events: int  # train (study, event) pairs in the risk set
    rate_per_day: float  # events / days at risk over the train studies

    def __post_init__(self) -> None:
        unknown = tuple(name for name in ("prevalence", "score") if getattr(self, name) != getattr(self, name))
        check_types(self, but=unknown)
        require(self.code != "", "code", self.code, "must not be empty")
        require(
            "prevalence" in unknown or 0 <= self.prevalence <= 1, "prevalence", self.prevalence, "must lie in [0, 1]"
        )
        for key in ("patients", "events"):
            require(0 <= getattr(self, key) <= MOST_COUNT, key, getattr(self, key), "must be a whole number from 0")
        require(0 < self.rate_per_day <= 1e6, "rate_per_day", self.rate_per_day, "must be positive, at most 1e6")


TASK_KEYS = tuple(field.name for field in dataclasses.fields(Task))


@dataclass(frozen=True)
class TaskSet:
    """K tasks and T time bins (lo, hi] in days from the scan."""

    tasks: tuple[Task, ...]
    bin_edges_days: tuple[float, ...]  # T + 1 increasing, first 0, last infinity
    blackout_days: float  # delayed entry: the risk set is (blackout, censor]
    recurrence: str  # all | incident
    death_task: int | None  # index; None when no train subject died at risk
    fitted_on: dict  # {"hash": keyed hash of the train subjects, "count": how many}
    min_patients: int | None = None  # small-cell threshold it was made under; None: a file from before it was stored

    def __post_init__(self) -> None:
        edges = self.bin_edges_days
        check_types(self, but=("bin_edges_days",))
        require(
            is_of(edges[:-1], tuple[float, ...])
            and (edges[:1], edges[-1:]) == ((0,), (np.inf,))
            and all(a < b for a, b in pairwise(edges)),
            "bin_edges_days", list(edges), "must increase from 0 to infinity",
        )  # fmt: skip
        require(
            edges[-2] <= LATEST_EDGE_DAYS,
            "bin_edges_days", list(edges), f"must have no finite edge above {LATEST_EDGE_DAYS:g}",
        )  # fmt: skip
        require(
            0 <= self.blackout_days <= LATEST_DAYS,
            "blackout_days", self.blackout_days, f"must be a number of days from 0 on, at most {LATEST_DAYS:g}",
        )  # fmt: skip
        require_choice("recurrence", self.recurrence, ("all", "incident"))
        require(
            self.death_task is None or 0 <= self.death_task < len(self.tasks),
            "death_task", self.death_task, f"must be one of {len(self.tasks)} tasks or null",
        )  # fmt: skip
        require(
            self.min_patients is None or 1 <= self.min_patients <= MOST_COUNT,
            "min_patients", self.min_patients, "must be at least 1 or null",
        )  # fmt: skip
        require_shallow("fitted_on", self.fitted_on)
        count, fingerprint = self.fitted_on.get("count", 0), self.fitted_on.get("hash", "")
        whole = isinstance(count, int) and not isinstance(count, bool)
        require(whole and 0 <= count <= MOST_COUNT, "fitted_on.count", count, "must be a whole number from 0")
        require(isinstance(fingerprint, str), "fitted_on.hash", fingerprint, "must be text")
        require(0 < self.num_tasks <= MOST_TASKS, "tasks", self.num_tasks, f"must be between 1 and {MOST_TASKS}")
        seen: set[str] = set()
        for code in self.codes:
            require(code not in seen, "tasks", code, "must have different codes")
            seen.add(code)

    @property
    def num_tasks(self) -> int:
        return len(self.tasks)

    @property
    def num_bins(self) -> int:
        return len(self.bin_edges_days) - 1

    @cached_property
    def codes(self) -> tuple[str, ...]:
        return tuple(task.code for task in self.tasks)

    def least_patients(self, configured: int) -> int:
        """Small-cell threshold to keep: the stricter of the configured one and the one the tasks were made under."""
        return max(configured, self.min_patients or 0)

    def save(self, path: Path) -> None:
        path.write_text(self._text({"min_patients": self.min_patients}))

    @property
    def digest(self) -> str:
        """sha256 of what the tasks are; the small-cell threshold, which hides and decides nothing, is left out."""
        return hashlib.sha256(self._text({}).encode()).hexdigest()

    def _text(self, threshold: dict[str, int | None]) -> str:
        document = {
            "schema_version": SCHEMA_VERSION,
            "time_unit": "day",
            "bin_edges_days": [*self.bin_edges_days[:-1], None],
            "blackout_days": self.blackout_days,
            "recurrence": self.recurrence,
            "death_task": self.death_task,
            "tasks": [],
            **threshold,
            "fitted_on": self.fitted_on,
        }
        tasks = ({k: None if v != v else v for k, v in vars(task).items()} for task in self.tasks)
        lines = ",\n  ".join(json.dumps(task, allow_nan=False) for task in tasks)
        text = json.dumps(document, indent=1, allow_nan=False)
        return text.replace('"tasks": []', f'"tasks": [\n  {lines}\n ]', 1) + "\n"

    @classmethod
    def load(cls, path: Path) -> TaskSet:
        """Raises IntegrityError for another schema version or a malformed file."""
        try:
            return cls.from_json(parse_json(read_regular(path, MOST_BYTES)))
        except ConfigError as error:
            raise IntegrityError(f"{path}: not a task set: {error}; write it again with jobs.prepare") from None

    @classmethod
    def from_json(cls, document: object) -> TaskSet:
        """Raises ConfigError naming the key and the value for a document that is no task set."""
        fields = [field.name for field in dataclasses.fields(cls)]
        required = ["schema_version", *(name for name in fields if name != "min_patients")]
        version: Any = document.get("schema_version") if isinstance(document, dict) else None
        if is_of(version, int) and version != SCHEMA_VERSION:  # before its keys, which may be others
            raise ConfigError(f"schema_version {shown(version)}, this release reads {SCHEMA_VERSION}")
        values = require_keys("it", document, required, ("time_unit", "min_patients"))
        require(is_of(version, int), "schema_version", version, f"must be {SCHEMA_VERSION}")
        require_choice("time_unit", values.get("time_unit", "day"), ("day",))
        edges = values["bin_edges_days"]
        require(
            isinstance(edges, list) and edges[-1:] == [None],
            "bin_edges_days", edges, "must be a list whose last is null: infinity",
        )  # fmt: skip
        require(isinstance(values["tasks"], list), "tasks", values["tasks"], "must be a list")
        given = {name: values[name] for name in fields if name in values}
        given["tasks"] = tuple(_task(k, task) for k, task in enumerate(values["tasks"]))
        given["bin_edges_days"] = (*edges[:-1], np.inf)
        return cls(**given)


def _task(position: int, document: object) -> Task:
    values = require_keys(f"tasks[{position}]", document, TASK_KEYS)
    try:
        return Task(**values | ({"score": np.nan} if values["score"] is None else {}))
    except ConfigError as error:
        raise ConfigError(f"tasks[{position}].{error}") from None
