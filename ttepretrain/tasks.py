"""TaskSet: what the head predicts. The contract between labels, head, metrics and probe users (`tasks.json`)."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ttepretrain.errors import IntegrityError

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Task:
    """One code whose first occurrence (or a descendant's) after the scan is predicted."""

    code: str  # vocabulary/concept_code
    description: str
    prevalence: float  # share of train subjects with the code or a descendant, any time
    score: float  # conditional-entropy rank (docs/reference/tasks.md); negative, lower = earlier; nan for a pinned task
    patients: int  # train subjects with an event in the risk set
    events: int  # train (study, event) pairs in the risk set
    rate_per_day: float  # events / days at risk over the train studies


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
        if len(edges) < 2 or edges[0] != 0 or edges[-1] != np.inf or any(a >= b for a, b in pairwise(edges)):
            raise ValueError(f"bin_edges_days must increase from 0 to infinity; got {list(edges)}")
        if not 0 <= self.blackout_days < np.inf:
            raise ValueError(f"blackout_days must be a number of days from 0 on; got {self.blackout_days!r}")
        if self.recurrence not in ("all", "incident"):
            raise ValueError(f"recurrence must be all or incident; got {self.recurrence!r}")
        if self.death_task is not None and not 0 <= self.death_task < len(self.tasks):
            raise ValueError(f"death_task must be one of {len(self.tasks)} tasks or null; got {self.death_task}")
        if self.min_patients is not None and self.min_patients < 1:
            raise ValueError(f"min_patients must be at least 1 or null; got {self.min_patients}")

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
            document = json.loads(path.read_text())
            if document["schema_version"] != SCHEMA_VERSION:
                raise IntegrityError(
                    f"{path}: schema_version {document['schema_version']}, this release reads {SCHEMA_VERSION}"
                )
            return cls(
                tasks=tuple(Task(**_with_nan(task)) for task in document["tasks"]),
                bin_edges_days=(*document["bin_edges_days"][:-1], np.inf),
                blackout_days=document["blackout_days"],
                recurrence=document["recurrence"],
                death_task=document["death_task"],
                fitted_on=document["fitted_on"],
                min_patients=document.get("min_patients"),
            )
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise IntegrityError(f"{path}: not a task set: {error!r}; write it again with jobs.prepare") from None


def _with_nan(document: dict[str, Any]) -> dict[str, Any]:
    return {key: np.nan if value is None else value for key, value in document.items()}
