"""A small release in INSPECT's public layout, without volumes, whose labels fit their times; and how to damage it."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

MAPPING, LABELS, SPLITS = (f"{name}_20250611.tsv" for name in ("study_mapping", "labels", "splits"))
CROSSWALK = "EHR/image_ehr_crosswalk_20250418.csv"
HORIZONS = {"1_month": 30, "6_month": 180, "12_month": 365}
BINARY = {"mortality": HORIZONS, "readmission": HORIZONS, "PH": {"12_month": 365}}
OUTCOMES = (*BINARY, "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural_Effusion")
NUM_STUDIES = 200  # of the tests' own release
PER_DAY = {"seconds": 86_400, "minutes": 1_440, "days": 1}


def write_inspect(folder: Path, num_studies: int, unit: str = "minutes", seed: int = 0) -> dict[str, tuple]:
    """The four tables of studies of as many persons; returns days and event of every outcome, in study order."""
    rng = np.random.default_rng(seed)
    numbers = range(num_studies)
    ids = {"impression_id": [f"imp{n:04d}" for n in numbers], "person_id": [1_000_000 + n for n in numbers]}
    images = [f"PE{n:04d}" for n in numbers]
    (folder / "EHR").mkdir(parents=True, exist_ok=True)
    times = [datetime(2015, 1, 1, 9, 30) + timedelta(days=n) for n in numbers]
    mapping = ids | {"image_id": images, "note_id": numbers, "procedure_DATETIME": times, "provenance": "INSPECT"}
    splits = ids | {"split": ["valid" if n % 10 == 8 else "test" if n % 10 == 9 else "train" for n in numbers]}
    labels = {"impression_id": ids["impression_id"], "pe_positive_nlp": words(rng.random(num_studies) < 0.2)}
    truth, followed = {}, rng.uniform(5, 3000, num_studies)
    for outcome in OUTCOMES:
        at = rng.exponential(600, num_studies)
        event, days = at <= followed, np.minimum(at, followed)
        truth[outcome] = days, event
        labels |= {f"{m}_{outcome}": answers(days, event, h) for m, h in BINARY.get(outcome, {}).items()}
        labels |= {f"tte_{outcome}": days * PER_DAY[unit], f"is_censored_{outcome}": words(~event, str.title)}
    for name, table in (("study_mapping", mapping), ("splits", splits), ("labels", labels)):
        frame = pl.DataFrame(table).with_columns(pl.col(pl.Datetime).dt.to_string("%Y-%m-%d %H:%M:%S"))
        frame.write_csv(folder / f"{name}_20250611.tsv", separator="\t")
    crosswalk = pl.DataFrame({"person_id": ids["person_id"], "image_id": images})
    crosswalk.write_csv(folder / "EHR" / "image_ehr_crosswalk_20250418.csv")
    return truth


def words(flags: np.ndarray, style=str.upper) -> list[str]:
    return [style(str(bool(flag))) for flag in flags]


def answers(days: np.ndarray, event: np.ndarray, horizon: float) -> list[str]:
    """TRUE within the horizon, FALSE beyond it, Censored where follow-up ends before."""
    return [
        "TRUE" if happened and d <= horizon else "FALSE" if d >= horizon else "Censored"
        for d, happened in zip(days, event)
    ]


def table(folder, name):
    return pl.read_csv(folder / name, separator="," if name.endswith(".csv") else "\t", infer_schema=False)


def change(folder, name, **columns):
    """Rewrite a table with other columns: expressions, or None to drop one."""
    rows = table(folder, name)
    rows = rows.with_columns(**{key: value for key, value in columns.items() if value is not None})
    save(folder, name, rows.drop(key for key, value in columns.items() if value is None))


def save(folder, name, rows):
    rows.write_csv(folder / name, separator="," if name.endswith(".csv") else "\t")


def at(row, value, column):
    """The column with another value in one row."""
    return pl.when(pl.int_range(pl.len()) == row).then(pl.lit(value)).otherwise(pl.col(column)).alias(column)
