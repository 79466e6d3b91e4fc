"""The table of studies: read against its contract, images confined to its folder, subjects assigned to splits."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from data.given.inspect_studies import read_inspect_studies
from data.quarantine import Quarantined
from ttepretrain.errors import BadStudy, ConfigError, IntegrityError, LeakageError

SPLITS = ("train", "tuning", "held_out")
SPLIT_NAMES = {"train": "train", "tuning": "tuning", "held_out": "held_out", "valid": "tuning", "test": "held_out"}
HASH_SHARES = (0.7, 0.8)  # upper ends of train and tuning: 70/10/20
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
    def images(self) -> list[tuple[str | None, ...]]:
        """The studies with an image, as prepare_study takes them."""
        return self.frame.drop_nulls("image").select("study_id", "image", *OF_IMAGE).rows()

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


def resolve_image(root: Path, image: str) -> Path:
    """Path of a study's image below the table's folder; raises BadStudy OUTSIDE_ROOT for anything that leaves it."""
    parts = Path(image).parts if "\0" not in image else ()
    expands = any(part.startswith(("~", "$")) for part in parts)
    if not parts or Path(image).is_absolute() or ".." in parts or expands or "://" in image:
        raise BadStudy("OUTSIDE_ROOT", "image is not a path relative to the table")
    path = root / image
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
        raise BadStudy("OUTSIDE_ROOT", "image leads out of the table's folder through a link")
    return path


def read_splits(path: Path, key: str) -> pl.DataFrame:
    """subject_id i64, split str of a table of splits; a subject listed twice with two splits stays twice."""
    table = read_table(path, key)
    if not {"subject_id", "split"} <= set(table.columns):
        raise ConfigError(f"{key}: columns subject_id and split are needed; the table has {', '.join(table.columns)}")
    table = table.select(_whole_numbers(table["subject_id"], key), _text(table, "split"))
    return table.drop_nulls().unique(maintain_order=True)


def assign_splits(
    studies: pl.DataFrame, given: pl.DataFrame | None, ehr: pl.DataFrame | None, seed: int
) -> tuple[pl.DataFrame, dict[str, int]]:
    """`studies` with every subject's split, and from where how many subjects got theirs.

    The study table decides, then `given` (input.splits), or without it the EHR's own, then a seeded hash of the
    subject. Raises LeakageError where two of the sources, or two rows of one, disagree about a subject.
    """
    subjects = studies.select("subject_id").unique()
    table = studies.select("subject_id", "split").drop_nulls().unique()
    other, name = (given, "input.splits") if given is not None else (ehr, "ehr")
    sources = [(table, "table")]
    if other is not None:
        sources.append((other.join(subjects, on="subject_id", how="semi"), name))
    stated = pl.concat([_canonical(frame, name).with_columns(source=pl.lit(name)) for frame, name in sources])
    splits = stated.group_by("subject_id").agg(pl.col("split").n_unique().alias("splits"))
    torn = splits.filter(pl.col("splits") > 1).height
    if torn:
        raise LeakageError(
            f"{torn} subjects are in two splits ({', '.join(name for _, name in sources)}); "
            "give each subject one split, in input.studies or input.splits"
        )
    known = stated.unique("subject_id", keep="first", maintain_order=True)
    rest = subjects.join(known, on="subject_id", how="anti").sort("subject_id")
    hashed = rest.with_columns(
        pl.Series("split", [hash_split(v, seed) for v in rest["subject_id"]], pl.String), source=pl.lit("hash")
    )
    final = pl.concat([known, hashed])
    counts = {name: final.filter(source=name).height for name in ("table", "input.splits", "ehr", "hash")}
    return studies.drop("split").join(final.drop("source"), on="subject_id").sort("study_id"), counts


def hash_split(subject_id: int, seed: int) -> str:
    """70/10/20 by a hash that depends on the subject and the seed alone, not on who else is in the table."""
    digest = hashlib.blake2b(f"{seed}:{subject_id}".encode(), digest_size=8).digest()
    share = int.from_bytes(digest) / 2**64
    return SPLITS[sum(share >= end for end in HASH_SHARES)]


def _canonical(splits: pl.DataFrame, source: str) -> pl.DataFrame:
    unknown = sorted(set(splits["split"].unique()) - SPLIT_NAMES.keys())
    if unknown:
        raise ConfigError(f"{source}: unknown split {unknown[0]!r}; the names are {', '.join(SPLIT_NAMES)}")
    return splits.select("subject_id", pl.col("split").replace_strict(SPLIT_NAMES, return_dtype=pl.String)).unique()


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
