"""The table of studies, read against its contract: a bad row is refused alone, a bad table is an error."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from data.given.inspect_studies import read_inspect_studies
from data.given.study import Study
from data.given.user_tables import read_table
from data.quarantine import Quarantined
from ehr.sources.columns import NO_ID, NO_TIME, moment_cells, texts, whole_cells, words
from ttepretrain.errors import ConfigError

KEY = "input.studies"
REQUIRED = ("study_id", "subject_id", "study_time")
OF_IMAGE = ("series_uid", "patient_id", "image_sha256")
OPTIONAL = ("image", "split", *OF_IMAGE)
CONTRACT = (*REQUIRED, *OPTIONAL)
NAMES = ("study_id", "image", "patient_id")  # may be any text, "NA" too
FORMS = ("split", "series_uid", "image_sha256")


@dataclass(frozen=True)
class StudyTable:
    """Studies of the input table that can be used, and those that cannot."""

    # study_id str, subject_id i64, study_time datetime[us], date_only bool, image str?, split str?, series_uid str?,
    # patient_id str? (as the images name the patient), image_sha256 str?, carried columns; unique, sorted by study_id
    frame: pl.DataFrame
    refused: list[Quarantined]
    num_rows: int  # of the input
    num_repeated: int  # rows equal to another in every column, dropped
    inspect: dict[str, int] = field(default_factory=dict)  # rows of INSPECT's table that are no study, by reason

    @property
    def num_studies(self) -> int:
        return self.num_rows - self.num_repeated

    @property
    def images(self) -> list[Study]:
        """The studies with an image, in the order of the frame."""
        rows = self.frame.drop_nulls("image").select("study_id", "image", *OF_IMAGE)
        return [Study(**row) for row in rows.iter_rows(named=True)]

    @property
    def carried(self) -> list[str]:
        return [name for name in self.frame.columns if name not in (*CONTRACT, "date_only")]


def read_studies(path: Path, date_only: str, timezone: str | None, keep_rsna: bool = False) -> StudyTable:
    """Studies of a .parquet or .csv table, or of INSPECT's study_mapping_*.tsv.

    A bare date is date-only, and so is a time of exactly 00:00:00 when `date_only` is `midnight`. Zoned times are
    converted to `timezone`. Raises ConfigError for a missing column or one of another type, IntegrityError for a
    damaged file; a bad row is refused alone.
    """
    inspect: dict[str, int] = {}
    if path.suffix == ".tsv":
        raw, inspect = read_inspect_studies(path, keep_rsna)
    else:
        raw = read_table(path, KEY)
    missing = [name for name in REQUIRED if name not in raw.columns]
    if missing:
        raise ConfigError(f"{KEY}: no column {', '.join(missing)}; the table has {', '.join(raw.columns)}")
    rows = raw.unique(maintain_order=True)
    columns = {name: f"{KEY}: column {name}" for name in CONTRACT if name in rows.columns}
    found = moment_cells(rows["study_time"], columns["study_time"], timezone)
    midnight = (found.time == found.time.dt.truncate("1d")).fill_null(False) & (date_only == "midnight")
    rows = rows.with_columns(
        *(texts(rows[name], columns[name]) for name in NAMES if name in columns),
        *(words(rows[name], columns[name]) for name in FORMS if name in columns),
        *(pl.lit(None, pl.String).alias(name) for name in OPTIONAL if name not in columns),
        subject_id=whole_cells(rows["subject_id"], columns["subject_id"]).value,
        study_time=found.time,
        date_only=found.bare | midnight,
    )
    frame, refused = _refuse(rows)
    order = [*REQUIRED, "date_only", *OPTIONAL]
    carried = [name for name in frame.columns if name not in (*CONTRACT, "date_only")]
    frame = frame.select(*order, *carried).sort("study_id")
    return StudyTable(frame, refused, raw.height, raw.height - rows.height, inspect)


def _refuse(rows: pl.DataFrame) -> tuple[pl.DataFrame, list[Quarantined]]:
    """Rows that can be used, and one record for each that cannot."""
    refused = []
    reasons = [
        (pl.col("study_id").is_null(), "BAD_ROW", "no study_id"),
        (pl.col("study_id").is_duplicated(), "DUPLICATE_STUDY_ID", "several rows that differ"),
        (pl.col("subject_id").is_null(), "BAD_ROW", f"subject_id {NO_ID}"),
        (pl.col("study_time").is_null(), "BAD_ROW", f"study_time {NO_TIME}"),
    ]
    for condition, code, detail in reasons:
        bad = rows.filter(condition)
        refused += [Quarantined(study_id, "table", code, detail) for study_id in bad["study_id"]]
        rows = rows.filter(~condition)
    return rows, refused
