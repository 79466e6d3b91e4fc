"""The table of studies, read against its contract: a bad row is refused alone, a bad table is an error."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from data.given.inspect_studies import read_inspect_studies
from data.given.study import Study
from data.given.user_tables import is_inspects, read_table
from data.quarantine import Quarantined
from ehr.sources.columns import NO_ID, NO_TIME, moment_cells, texts, whole_cells, words
from ehr.sources.sentinels import is_sentinel
from ehr.timeline import is_date
from ttepretrain.errors import ConfigError

KEY = "input.studies"
REQUIRED = ("study_id", "subject_id", "study_time")
OF_IMAGE = ("series_uid", "patient_id", "image_sha256")
OPTIONAL = ("image", "split", *OF_IMAGE)
CONTRACT = (*REQUIRED, *OPTIONAL)
NAMES = ("study_id", "image", "patient_id")  # may be any text, "NA" too
FORMS = ("split", "series_uid", "image_sha256")
NO_NAME, NO_DATE = "is empty", "is a placeholder such as 1900-01-01, or in another calendar"  # of one row
REMEDIES = {
    "study_id": "give every study a name of its own",
    "subject_id": "write the whole numbers that the EHR has as subject_id or person_id",
    "study_time": "write timestamps, dates or text such as 2020-05-31 13:45, in the calendar of the EHR",
}


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

    A bare date is date-only, and so is a time that `date_only` takes for a date. Zoned times are converted to
    `timezone`. Raises ConfigError for a missing column or one of another type, IntegrityError for a
    damaged file; a bad row is refused alone.
    """
    inspect: dict[str, int] = {}
    if is_inspects(path, KEY):
        raw, inspect = read_inspect_studies(path, keep_rsna)
    else:
        raw = read_table(path, KEY)
    missing = [name for name in REQUIRED if name not in raw.columns]
    if missing:
        raise ConfigError(f"{KEY}: no column {', '.join(missing)}; the table has {', '.join(raw.columns)}")
    rows = raw.unique(maintain_order=True)
    columns = {name: f"{KEY}: column {name}" for name in CONTRACT if name in rows.columns}
    found = moment_cells(rows["study_time"], columns["study_time"], timezone)
    moment = pl.DataFrame({"us": found.time.to_physical()}, schema={"us": pl.Int64})
    day: pl.Expr = is_date(pl.col("us"), date_only)
    is_day = found.bare | moment.select(day.fill_null(False)).to_series()
    rows = rows.with_columns(
        *(texts(rows[name], columns[name]) for name in NAMES if name in columns),
        *(words(rows[name], columns[name]) for name in FORMS if name in columns),
        *(pl.lit(None, pl.String).alias(name) for name in OPTIONAL if name not in columns),
        subject_id=whole_cells(rows["subject_id"], columns["subject_id"]).value,
        study_time=found.time.dt.truncate("1d").zip_with(is_day, found.time),
        date_only=is_day,
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
        (pl.col("study_id").is_null(), "BAD_ROW", f"study_id {NO_NAME}"),
        (pl.col("study_id").is_duplicated(), "DUPLICATE_STUDY_ID", "several rows that differ"),
        (pl.col("subject_id").is_null(), "BAD_ROW", f"subject_id {NO_ID}"),
        (pl.col("study_time").is_null(), "BAD_ROW", f"study_time {NO_TIME}"),
        (pl.col("study_time").map_batches(is_sentinel, pl.Boolean), "BAD_ROW", f"study_time {NO_DATE}"),
    ]
    for condition, code, detail in reasons:
        bad = rows.filter(condition)
        refused += [Quarantined(study_id, "table", code, detail) for study_id in bad["study_id"]]
        rows = rows.filter(~condition)
    return rows, refused


def refuse_unusable(table: StudyTable) -> None:
    """ConfigError for a table without a row, and for one that a single column makes useless for most of its rows."""
    if not table.num_rows:
        left_out = ", ".join(f"{reason} {count}" for reason, count in table.inspect.items() if count)
        raise ConfigError(
            f"{KEY}: the table has a header and no rows" + (f"; left out: {left_out}" if left_out else "")
        )
    reasons = Counter(bad.detail for bad in table.refused if bad.code == "BAD_ROW")
    for column, remedy in REMEDIES.items():
        wrong = {detail: count for detail, count in reasons.items() if detail.startswith(f"{column} ")}
        if sum(wrong.values()) > table.num_studies / 2:
            parts = ", ".join(f"{detail.removeprefix(column).strip()} in {count}" for detail, count in wrong.items())
            raise ConfigError(f"{KEY}: column {column} {parts} of {table.num_studies} rows; {remedy}")
