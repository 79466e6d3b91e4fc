"""PhenotypeTable: downstream outcomes as something to learn (`prepared/phenotypes.parquet`; numpy and pyarrow only).

R labelled studies of all splits (a row is a study_rank), Q yes-or-no outcomes, P phenotypes as time to event.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ttepretrain.errors import BadDataError, ConfigError
from ttepretrain.labels import LabelTable, Ragged
from ttepretrain.tasks import Task, TaskSet


@dataclass(frozen=True)
class TimedPhenotype:
    """One phenotype as time to event: it has days at risk of its own, from its own start to its own end."""

    labels: LabelTable  # R rows of one task; a study that is not at risk is its history
    tasks: TaskSet  # that task, the bins of the run; blackout_days: the start


@dataclass(frozen=True)
class PhenotypeTable:
    answers: np.ndarray  # str [Q]: a diagnosis, or a phenotype within a horizon
    label_RQ: np.ndarray  # float32: 1, 0, or NaN where censored before the horizon or not asked
    phenotypes: np.ndarray  # str [P]
    days_RP: np.ndarray  # float64: until the event or the end of follow-up; NaN: not at risk
    event_RP: np.ndarray  # bool
    censor_days_R: np.ndarray  # float64

    @classmethod
    def read(cls, prepared: Path, splits: Sequence[str]) -> PhenotypeTable:
        """Outcomes of the studies of `splits`; those of all others are not looked at and count as unknown."""
        import pyarrow as pa
        import pyarrow.compute as compute
        import pyarrow.parquet as parquet

        labels, ids = LabelTable.read(prepared / "labels.parquet")
        study_id = ids["study_id"].astype(str)
        chosen = pa.array(study_id[np.isin(ids["split"].astype(str), list(splits))].tolist(), pa.string())
        table = parquet.read_table(prepared / "phenotypes.parquet")
        table = table.filter(compute.is_in(table["study_id"].cast("string"), value_set=chosen))
        row = np.searchsorted(study_id, table["study_id"].to_numpy().astype(str))
        name, kind = (table[key].to_numpy().astype(str) for key in ("phenotype", "kind"))
        horizon, days, yes = (table[key].cast("double").to_numpy() for key in ("horizon_days", "time_days", "label"))
        timed = (kind == "prognosis") & np.isnan(horizon)  # a null is NaN by now

        within = np.array([f"{phenotype} within {days:g} days" for phenotype, days in zip(name, horizon)], str)
        asked = np.where(np.isnan(horizon), name, within)
        answers, column = np.unique(asked[~timed], return_inverse=True)
        label_RQ = np.full((len(labels), len(answers)), np.nan, np.float32)
        label_RQ[row[~timed], column] = yes[~timed]

        phenotypes, column = np.unique(name[timed], return_inverse=True)
        days_RP = np.full((len(labels), len(phenotypes)), np.nan)
        days_RP[row[timed], column] = days[timed]
        event_RP = np.zeros(days_RP.shape, bool)
        event_RP[row[timed], column] = table["event"].to_numpy().astype(bool)[timed]
        return cls(answers, label_RQ, phenotypes, days_RP, event_RP, labels.censor_days)

    def learnable(self, train_rank: np.ndarray) -> PhenotypeTable:
        """The outcomes that vary among the train studies; BadDataError when none does."""
        known = self.label_RQ[train_rank]
        asked_Q = (known == 1).any(0) & (known == 0).any(0)
        happens_P = self.event_RP[train_rank].any(0)
        if not asked_Q.any() and not happens_P.any():
            raise BadDataError("no phenotype varies among the train studies; train.arm=mtl has nothing to learn")
        return replace(
            self,
            answers=self.answers[asked_Q],
            label_RQ=self.label_RQ[:, asked_Q],
            phenotypes=self.phenotypes[happens_P],
            days_RP=self.days_RP[:, happens_P],
            event_RP=self.event_RP[:, happens_P],
        )

    def timed(self, start_days: Mapping[str, float], train_rank: np.ndarray, tasks: TaskSet) -> list[TimedPhenotype]:
        """The P phenotypes; each counts from start_days, where it names a day later than the blackout.

        Bins of `tasks`, rates of the train studies. ConfigError for an event that is not after its phenotype's day.
        """
        start_P = np.array([max(start_days.get(str(name), 0.0), tasks.blackout_days) for name in self.phenotypes])
        early_P = (self.event_RP & (self.days_RP <= start_P)).any(0)
        if early_P.any():
            raise ConfigError(
                f"ehr.phenotypes: {', '.join(self.phenotypes[early_P])} happened before start_days in "
                "phenotypes.parquet: it was prepared with another start, or a label table has such rows; run "
                "jobs.prepare with this configuration, without them"
            )
        return [self._timed(column, float(start), train_rank, tasks) for column, start in enumerate(start_P)]

    def _timed(self, column: int, start: float, train_rank: np.ndarray, tasks: TaskSet) -> TimedPhenotype:
        days_R, event_R = self.days_RP[:, column], self.event_RP[:, column]
        at_risk_R = ~np.isnan(days_R)
        labels = LabelTable(
            censor_days=np.where(at_risk_R, days_R, self.censor_days_R),  # a label table's end need not be the records'
            events=Ragged.of_mask(event_R[:, None]),
            event_days=days_R[event_R],
            history=Ragged.of_mask(~at_risk_R[:, None]),
            visit=Ragged.of_mask(np.zeros((len(days_R), 1), bool)),
        )
        events = int(event_R[train_rank].sum())
        days = float(np.nansum(np.maximum(days_R[train_rank] - start, 0)))
        own = (Task(str(self.phenotypes[column]), "", np.nan, np.nan, events, events, events / days),)
        return TimedPhenotype(
            labels, replace(tasks, tasks=own, recurrence="incident", death_task=None, blackout_days=start)
        )
