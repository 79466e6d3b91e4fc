"""How timelines become labels (docs/reference/label-rules.md)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from zoneinfo import ZoneInfo

from ttepretrain.config import require, require_choice


@dataclass
class EhrConfig:
    recurrence: str = "all"  # all | incident: incident leaves out the tasks that a study has history of
    blackout_days: float = 1.0  # days after the scan in which no event counts: b < T <= C
    num_tasks: int = 8192  # at most this many tasks; the death task comes on top
    num_bins: int = 8  # at most this many time bins; equal edges are merged
    min_events: int = 20  # a task needs this many train studies with an event at risk
    min_patients: int = 11  # a task needs this many train subjects with such an event; smaller counts are hidden
    exclude: list[str] | None = None  # codes to keep out of the tasks, and all above and below them; X* is any ending
    exclude_phenotypes: bool = True  # keep the codes of prognosis phenotypes out too; those of a diagnosis always are
    max_task_overlap: float | None = None  # in (0, 1): drop a task that shares more of its patients with a better one
    tasks: str | None = None  # path of a frozen tasks.json to take as it is; None: tasks and bins are fitted
    phenotypes: str = "configs/phenotypes/default.yaml"  # file that defines the outcomes to evaluate
    label_tables: list[str] | None = None  # parquet or csv files with outcomes that no code records
    death_before_horizon: str = "negative"  # negative | censored: label when death comes before the horizon
    followup: str = "last_event"  # last_event | death | observation_period | cutoff: what ends follow-up
    cutoff_date: str | None = None  # YYYY-MM-DD, last day of follow-up; `ehr.followup=cutoff` needs it
    # midnight | day_end | never: which times are dates without a time: 00:00:00; that, 23:59:00 and 23:59:59; none
    date_only: str = "midnight"
    omop_inpatient: list[int] | None = None  # OMOP: visit concepts that are stays, besides inpatient ones
    period_end: str = "stated"  # stated | last_event: observation periods as their table says, or to the last event
    max_lost_fraction: float = 0.5  # a larger share of a table's rows, or of the studies, lost to one cause is an error
    timezone: str | None = None  # zone to convert zoned times to, such as Europe/Berlin; None: zoned times are refused

    def __post_init__(self) -> None:
        require_choice("ehr.recurrence", self.recurrence, ("all", "incident"))
        require_choice("ehr.followup", self.followup, ("last_event", "death", "observation_period", "cutoff"))
        require_choice("ehr.date_only", self.date_only, ("midnight", "day_end", "never"))
        require_choice("ehr.death_before_horizon", self.death_before_horizon, ("negative", "censored"))
        require(self.blackout_days >= 0, "ehr.blackout_days", self.blackout_days, "must not be negative")
        require(self.blackout_days <= 36_525, "ehr.blackout_days", self.blackout_days, "must be at most 36,525 days")
        require(self.num_tasks >= 1, "ehr.num_tasks", self.num_tasks, "must be at least 1")
        require(self.num_bins >= 1, "ehr.num_bins", self.num_bins, "must be at least 1")
        require(
            all(isinstance(code, str) and code.strip("* ") and code == code.strip() for code in self.exclude or []),
            "ehr.exclude", self.exclude, "must be codes; a trailing * stands for any ending",
        )  # fmt: skip
        require(
            all(isinstance(path, str) and path for path in self.label_tables or []),
            "ehr.label_tables", self.label_tables, "must be paths of tables",
        )  # fmt: skip
        for key, path in (("ehr.phenotypes", self.phenotypes), ("ehr.tasks", self.tasks)):
            require(path != "", key, path, "must be the path of a file")
        require_plain("ehr.exclude", self.exclude or [])
        require(self.min_events >= 1, "ehr.min_events", self.min_events, "must be at least 1")
        require(self.min_patients >= 1, "ehr.min_patients", self.min_patients, "must be at least 1")
        require(
            self.max_task_overlap is None or 0 < self.max_task_overlap < 1,
            "ehr.max_task_overlap", self.max_task_overlap, "must lie in (0, 1)",
        )  # fmt: skip
        require(
            self.tasks is None or self.max_task_overlap is None,
            "ehr.max_task_overlap", self.max_task_overlap, "has no use beside ehr.tasks, which is not fitted again",
        )  # fmt: skip
        require(
            (self.followup == "cutoff") == (self.cutoff_date is not None),
            "ehr.cutoff_date", self.cutoff_date, "is required by, and only used with, ehr.followup=cutoff",
        )  # fmt: skip
        require(
            _parses(date.fromisoformat, self.cutoff_date), "ehr.cutoff_date", self.cutoff_date, "must be YYYY-MM-DD"
        )
        require(0 <= self.max_lost_fraction <= 1, "ehr.max_lost_fraction", self.max_lost_fraction, "must lie in [0, 1]")
        require_choice("ehr.period_end", self.period_end, ("stated", "last_event"))
        require(
            self.period_end == "stated" or self.followup == "observation_period",
            "ehr.period_end", self.period_end, "is only used with ehr.followup=observation_period",
        )  # fmt: skip
        require(
            all(isinstance(concept, int) and concept > 0 for concept in self.omop_inpatient or []),
            "ehr.omop_inpatient", self.omop_inpatient, "must be concept ids, such as [9203, 581385]",
        )  # fmt: skip
        require(_parses(ZoneInfo, self.timezone), "ehr.timezone", self.timezone, "must be a zone such as Europe/Berlin")


def require_plain(key: str, codes: Sequence[str]) -> None:
    """ConfigError for a kind of death (MEDS_DEATH//x) or birth, which the run knows as MEDS_DEATH alone."""
    for code in codes:
        from ehr.schema import QUALIFIED  # it imports polars, which is not needed to answer a typo

        require(
            not code.startswith(QUALIFIED), key, code,
            f"has no events of its own: every {code.split('//')[0]}//... is read as {code.split('//')[0]}, name that",
        )  # fmt: skip


def _parses(parse: Callable[[str], object], value: str | None) -> bool:
    try:
        return value is None or parse(value) is not None
    except (ValueError, OSError, LookupError):  # ZoneInfoNotFoundError is a KeyError
        return False
