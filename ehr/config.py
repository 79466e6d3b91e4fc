"""How timelines become labels (method.md section 2)."""

from __future__ import annotations

from dataclasses import dataclass

from ttepretrain.config import require, require_choice


@dataclass
class EhrConfig:
    recurrence: str = "all"  # all | incident: incident leaves a row's tasks with history out
    blackout_days: float = 1.0  # delayed entry b: an event counts iff b < T <= censor
    num_tasks: int = 8192  # K, at most; the pinned death task comes on top
    num_bins: int = 8  # T, at most; tied edges are merged
    min_events: int = 20  # train events in the risk set, per task
    min_patients: int = 11  # train subjects with such an event, per task
    exclude: list[str] | None = None  # codes removed from the tasks with all their ancestors and descendants
    exclude_phenotypes: bool = True  # the probe phenotypes' codes are excluded in the same way
    phenotypes: str = "configs/phenotypes/default.yaml"
    followup: str = "last_event"  # last_event | death | observation_period | cutoff
    cutoff_date: str | None = None  # YYYY-MM-DD, end of that day; required by followup=cutoff
    date_only: str = "midnight"  # midnight: a time of 00:00:00 is a date; never
    timezone: str | None = None  # local zone that zoned times are converted to; None refuses zoned times

    def __post_init__(self) -> None:
        require_choice("ehr.recurrence", self.recurrence, ("all", "incident"))
        require_choice("ehr.followup", self.followup, ("last_event", "death", "observation_period", "cutoff"))
        require_choice("ehr.date_only", self.date_only, ("midnight", "never"))
        require(self.blackout_days >= 0, "ehr.blackout_days", self.blackout_days, "must not be negative")
        require(self.num_tasks >= 1, "ehr.num_tasks", self.num_tasks, "must be at least 1")
        require(self.num_bins >= 1, "ehr.num_bins", self.num_bins, "must be at least 1")
        require(self.min_events >= 1, "ehr.min_events", self.min_events, "must be at least 1")
        require(self.min_patients >= 1, "ehr.min_patients", self.min_patients, "must be at least 1")
        require(
            (self.followup == "cutoff") == (self.cutoff_date is not None),
            "ehr.cutoff_date", self.cutoff_date, "is required by, and only used with, ehr.followup=cutoff",
        )  # fmt: skip
