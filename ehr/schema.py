"""Codes with a fixed meaning and the tables that `ehr` hands on (docs/reference/prepared.md).

Clock times inside `ehr` are int64 microseconds since 1970; durations in the tables are float64 days.
"""

from __future__ import annotations

import polars as pl

DAY_US = 86_400_000_000

BIRTH = "MEDS_BIRTH"
DEATH = "MEDS_DEATH"
QUALIFIED = f"{BIRTH}//", f"{DEATH}//"  # MEDS allows more behind the two codes: they mean the same
ADMISSION = "HOSPITAL_ADMISSION"  # MEDS writes HOSPITAL_ADMISSION//kind//source
DISCHARGE = "HOSPITAL_DISCHARGE"
SEX = r"(?i)^(?:gender|sex)/{1,2}(m|f)(?:ale|emale)?$"

EVENTS = pl.Schema({"subject_id": pl.Int64(), "time": pl.Datetime("us"), "code": pl.String()})

METADATA = pl.Schema({"code": pl.String(), "description": pl.String(), "parent_codes": pl.List(pl.String)})

PERIODS_FILE = "observation_periods.parquet"  # beside data/ and metadata/
# Observed from start on, and before end (of a bare date the next 00:00); a subject's periods are disjoint.
PERIODS = pl.Schema({"subject_id": pl.Int64(), "start": pl.Datetime("us"), "end": pl.Datetime("us")})

LABELS = pl.Schema(
    {
        "study_id": pl.String(),
        "subject_id": pl.Int64(),
        "split": pl.String(),
        "index_time": pl.Datetime("us"),  # t0, as the study table says
        "censor_days": pl.Float64(),  # end of follow-up C, the same for every task; > blackout
        "task_index": pl.List(pl.Int32),  # ascending; tasks with an event, blackout < T <= C
        "event_days": pl.List(pl.Float64),  # T of each of them
        "history_index": pl.List(pl.Int32),  # ascending; tasks with any event not after t0 + blackout; never a feature
        "visit_index": pl.List(pl.Int32),  # ascending; tasks coded in the scan's own visit
    }
)
COVARIATES = pl.Schema(
    {
        "study_id": pl.String(),
        "age_years": pl.Float64(),  # at t0, years of 365.25 days; null without one birth or outside [0, 120]
        "sex": pl.String(),  # M, F; null when absent or contradictory
        # ascending; closure of the codes at or before t0. All codes of the run in string order are the categories: 2 or
        # 4 bytes each, where strings would take 1 GB at 23,000 studies
        "past_codes": pl.List(pl.Enum),
    }
)
PHENOTYPES = pl.Schema(
    {
        "study_id": pl.String(),
        "phenotype": pl.String(),
        "kind": pl.String(),  # prognosis | diagnosis
        "horizon_days": pl.Float64(),  # null: time to event
        "label": pl.Boolean(),  # null: censored before the horizon; died at an unknown time
        "event": pl.Boolean(),  # at any time in follow-up, whatever the horizon
        "competing": pl.Boolean(),  # no event, and death ended follow-up
        "time_days": pl.Float64(),  # T or C, whatever the horizon; null for a diagnosis
    }
)
