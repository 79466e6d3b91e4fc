"""The table of studies, read against its contract: a bad row is refused alone, a bad table is an error."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from data.given.inspect_studies import read_inspect_studies
from data.given.study import Study
from data.quarantine import Quarantined
from ttepretrain.errors import ConfigError, IntegrityError

REQUIRED = ("study_id", "subject_id", "study_time")
OF_IMAGE = ("series_uid", "patient_id", "image_sha256")  # csv and parquet may hold them as numbers
OPTIONAL = ("image", "split", *OF_IMAGE)
CONTRACT = (*REQUIRED, *OPTIONAL)

DATE = r"^\d{4}-\d{2}-\d{2}$"
TIME = r"^\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(:\d{2}(\.\d{1,9})?)?$"


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
    converted to `timezone`. Raises ConfigError for a missing column or an inexact type, IntegrityError for a damaged
    file; a bad row is refused alone.
    """
    inspect: dict[str, int] = {}
    if path.suffix == ".tsv":
        raw, inspect = read_inspect_studies(path, keep_rsna)
    else:
        raw = read_table(path, "input.studies")
    missing = [name for name in REQUIRED if name not in raw.columns]
    if missing:
        raise ConfigError(f"input.studies: no column {', '.join(missing)}; the table has {', '.join(raw.columns)}")
    rows = raw.unique(maintain_order=True)
    time, bare_date = _times(rows["study_time"], timezone)
    midnight = (time.dt.time() == pl.time(0)) if date_only == "midnight" else pl.lit(False)
    absent = [pl.lit(None, pl.String).alias(name) for name in OPTIONAL if name not in rows.columns]
    given = [name for name in OF_IMAGE if name in rows.columns and rows[name].dtype != pl.Null]
    rows = rows.with_columns(
        *[_text(rows, name) for name in ("study_id", *given)],
        _whole_numbers(rows["subject_id"]),
        time.alias("study_time"),
        *absent,
    ).with_columns((pl.Series(bare_date) | midnight).alias("date_only"), pl.col(OPTIONAL).cast(pl.String))
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
        (pl.col("subject_id").is_null(), "BAD_ROW", "subject_id is empty or not a whole number"),
        (pl.col("study_time").is_null(), "BAD_ROW", "study_time is empty or not YYYY-MM-DD[ HH:MM[:SS[.f]]]"),
    ]
    for condition, code, detail in reasons:
        bad = rows.filter(condition)
        refused += [Quarantined(study_id, "table", code, detail) for study_id in bad["study_id"]]
        rows = rows.filter(~condition)
    return rows, refused


def _times(column: pl.Series, timezone: str | None) -> tuple[pl.Series, pl.Series]:
    """datetime[us] (null where unreadable; finer times are cut to it), and where a bare date was given."""
    kind = column.dtype
    if kind == pl.Date:
        return column.cast(pl.Datetime("us")), column.is_not_null()
    if kind == pl.String:
        text = column.str.strip_chars()
        date = text.str.contains(DATE).fill_null(False)
        whole = text.str.replace(" ", "T").str.replace(r"(T\d{2}:\d{2})$", "$1:00")
        full = pl.select(pl.when(date).then(whole + "T00:00:00").when(text.str.contains(TIME)).then(whole)).to_series()
        return full.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f", time_unit="us", strict=False), date
    if isinstance(kind, pl.Datetime):
        if kind.time_zone is not None:
            if timezone is None:
                raise ConfigError(
                    f"input.studies: study_time is in zone {kind.time_zone}; set ehr.timezone to convert it"
                )
            column = column.dt.convert_time_zone(timezone).dt.replace_time_zone(None)
        return column.cast(pl.Datetime("us")), pl.repeat(False, len(column), eager=True)
    raise ConfigError(f"input.studies: study_time is {kind}; it must be a timestamp, a date or ISO text")


def _whole_numbers(column: pl.Series, key: str = "input.studies") -> pl.Series:
    if column.dtype == pl.String:
        column = column.str.strip_chars()
    elif not column.dtype.is_integer():
        raise ConfigError(f"{key}: subject_id is {column.dtype}; floats lose digits above 2^53, write int64")
    return column.cast(pl.Int64, strict=False)


def _text(table: pl.DataFrame, name: str) -> pl.Series:
    column = table[name]
    if not (column.dtype.is_integer() or column.dtype in (pl.String, pl.Categorical)):
        raise ConfigError(f"{name} is {column.dtype}; it must be text")
    column = column.cast(pl.String)
    return column.set(column == "", None)


def read_table(path: Path, key: str) -> pl.DataFrame:
    """The columns as they are, those of a csv as text; ConfigError names the configuration key it was given under."""
    if path.suffix not in (".parquet", ".csv"):
        raise ConfigError(f"{key}: {path.name}: a .parquet or .csv table is needed")
    if not path.is_file():
        raise ConfigError(f"{key}: {path} is not a file; give the path of a .parquet or .csv table")
    try:
        return pl.read_parquet(path) if path.suffix == ".parquet" else pl.read_csv(path, infer_schema=False)
    except pl.exceptions.PolarsError as error:
        raise IntegrityError(f"{key}: {path.name} cannot be read ({type(error).__name__}); it is damaged") from None
