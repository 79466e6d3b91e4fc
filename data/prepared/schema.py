"""Every file of `prepared/`, and every column of its tables: type, unit, meaning, and what a null stands for.

jobs.prepare checks each table against this before it writes it, and what opens the folder checks what it reads.
docs/reference/prepared.md is made from it (data/prepared/reference.py). pyarrow only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePath

import pyarrow as pa
import pyarrow.compute as pc

from ttepretrain.errors import IntegrityError

SCHEMA_VERSION = 1  # of manifest.json

TEXT, INTEGER, NUMBER, YES_NO, TIME = pa.string(), pa.int64(), pa.float64(), pa.bool_(), pa.timestamp("us")
TEXTS, NUMBERS, INDICES = pa.list_(TEXT), pa.list_(NUMBER), pa.list_(pa.int32())


@dataclass(frozen=True)
class Column:
    name: str
    dtype: pa.DataType
    meaning: str  # one line
    unit: str = ""
    null: str | None = None  # what a null stands for; None: there are no nulls. Lists never hold nulls.


@dataclass(frozen=True, kw_only=True)
class File:
    """A file of `prepared/`, or many of one kind."""

    name: str  # relative to `prepared/`; a * stands for any name, ** for any folders
    meaning: str
    mode: int = 0o644
    stage: str = ""  # stage of jobs.prepare that makes it; empty: every run does

    def covers(self, name: str) -> bool:
        if self.name.endswith("/**"):
            return name.startswith(self.name[:-2])
        return name.count("/") == self.name.count("/") and PurePath(name).match(self.name)


@dataclass(frozen=True, kw_only=True)
class Table(File):
    """A parquet file."""

    columns: tuple[Column, ...]
    ascends: tuple[str, ...] = ("study_id",)  # rows are sorted by these columns; nulls come last
    unique: bool = True  # no two rows are equal in these columns
    more: str = ""  # what columns beyond those above hold; empty: there are none

    @property
    def names(self) -> list[str]:
        return [column.name for column in self.columns]

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([(column.name, column.dtype) for column in self.columns])

    def check(self, table: pa.Table) -> None:
        """Raise IntegrityError for the first column that differs: its name, its type, a null, the order of rows."""
        self.check_types(table.schema)
        if not self.more and (extra := [name for name in table.column_names if name not in self.names]):
            raise IntegrityError(f"prepared/{self.name}: column {extra[0]} is unknown; known: {', '.join(self.names)}")
        self.check_values(table)

    def check_types(self, schema: pa.Schema, names: Iterable[str] | None = None) -> None:
        """Raise IntegrityError for a column that is absent or has another type. names: only these columns."""
        wanted = set(self.names if names is None else names)
        for column in self.columns:
            if column.name not in wanted:
                continue
            if (index := schema.get_field_index(column.name)) < 0:
                raise self._refusal(column.name, f"{column.dtype}", "no such column")
            if (found := _plain(schema.field(index).type)) != _plain(column.dtype):
                raise self._refusal(column.name, f"{column.dtype}", f"{found}")

    def check_values(self, table: pa.Table) -> None:
        """Raise IntegrityError for a null where there may be none, or a row out of order; of the columns in `table`."""
        for column in self.columns:
            if column.name not in table.column_names:
                continue
            values = table[column.name]
            if column.null is None and values.null_count:
                raise self._refusal(column.name, "no null", f"{values.null_count} of {len(values)}")
            if pa.types.is_nested(values.type) and (nulls := sum(part.values.null_count for part in values.chunks)):
                raise self._refusal(column.name, "no null in a list", f"{nulls}")
        if self.ascends and set(self.ascends) <= set(table.column_names):
            self._check_order(table)

    def _check_order(self, table: pa.Table) -> None:
        if len(table) < 2:
            return
        columns = [table[name].combine_chunks() for name in self.ascends]
        later, equal = (pa.array([yes]) for yes in (False, True))
        later, equal = (pa.concat_arrays([part] * (len(table) - 1)) for part in (later, equal))
        for values in columns:
            before, after = values[:-1], values[1:]
            absent = pc.is_null(before), pc.is_null(after)
            greater = pc.fill_null(pc.greater(before, after), pc.and_not(*absent))
            same = pc.fill_null(pc.equal(before, after), pc.and_(*absent))
            later, equal = pc.or_(later, pc.and_(equal, greater)), pc.and_(equal, same)
        wrong = pc.or_(later, equal) if self.unique else later
        if (row := pc.index(wrong, True).as_py()) >= 0:
            # a number of a row, never its value: that may be an identifier
            found = "a row twice" if equal[row].as_py() else "a smaller value"
            raise self._refusal(", ".join(self.ascends), "ascending rows", f"{found} at row {row + 1}")

    def _refusal(self, column: str, expected: str, found: str) -> IntegrityError:
        return IntegrityError(f"prepared/{self.name}: column {column}: expected {expected}, found {found}")


def _plain(dtype: pa.DataType) -> pa.DataType:
    """The type without how it is stored: dictionaries, 64-bit offsets and views are ways to hold text and lists."""
    if pa.types.is_dictionary(dtype):
        return _plain(dtype.value_type)
    if pa.types.is_large_string(dtype) or pa.types.is_string_view(dtype):
        return TEXT
    if pa.types.is_list(dtype) or pa.types.is_large_list(dtype):
        return pa.list_(_plain(dtype.value_type))
    return dtype


STUDY = Column("study_id", TEXT, "the study, as the study table names it")
SUBJECT = Column("subject_id", INTEGER, "the subject, as the study table and the EHR name it")
SPLIT = Column("split", TEXT, "train, tuning or held_out; the same for all studies of a subject")

KEYS = Table(
    name="keys.parquet",
    mode=0o600,
    meaning="one row per usable study: what stands for it outside `prepared/`",
    columns=(
        STUDY,
        SUBJECT,
        SPLIT,
        Column("study_key", TEXT, "HMAC-SHA256 of the study with the salt, 32 hexadecimal digits"),
        Column("subject_key", TEXT, "HMAC-SHA256 of the subject with the salt, 32 hexadecimal digits"),
    ),
)
LABELS = Table(
    name="labels.parquet",
    stage="labels",
    meaning="one row per labelled study: follow-up, and the tasks with an event",
    columns=(
        STUDY,
        SUBJECT,
        SPLIT,
        Column("index_time", TIME, "t0, the time of the study"),
        Column("censor_days", NUMBER, "end of follow-up C, the same for every task; greater than the blackout", "days"),
        Column("task_index", INDICES, "tasks with an event T, blackout < T <= C; ascending"),
        Column("event_days", NUMBERS, "T of each of them", "days"),
        Column("history_index", INDICES, "tasks with any event up to t0 + blackout; ascending; never a feature"),
        Column("visit_index", INDICES, "tasks coded in the visit of the scan; ascending"),
    ),
)
EHR_COVARIATES = (
    STUDY,
    Column(
        "age_years",
        NUMBER,
        "age at t0",
        "years of 365.25 days",
        null="no birth, births that disagree, or not in [0, 120]",
    ),
    Column("sex", TEXT, "M or F", null="not on record, or contradictory"),
)
PAST_CODES = Column("past_codes", TEXTS, "codes up to t0 and all codes above them; ascending")
COVARIATES = Table(
    name="covariates.parquet",
    stage="labels",
    meaning="one row per labelled study: what is known of it at t0",
    columns=(
        *EHR_COVARIATES,
        Column("manufacturer", TEXT, "maker of the scanner", null="the image does not say, or there is no volume"),
        Column("kernel", TEXT, "reconstruction kernel", null="the image does not say, or there is no volume"),
        Column("kvp", NUMBER, "tube voltage", "kV", null="the image does not say, or there is no volume"),
        Column("contrast", YES_NO, "contrast was given", null="the image does not say, or there is no volume"),
        Column("source_spacing_mm", NUMBERS, "spacing of the image itself, D H W", "mm", null="there is no volume"),
        Column("scan_hour", pa.int8(), "hour of the study, 0 to 23", "hours", null="the study table has only a date"),
        PAST_CODES,
    ),
    more="those of the study table, with the prefix `table_` where the name is taken",
)
PHENOTYPES = Table(
    name="phenotypes.parquet",
    stage="labels",
    unique=False,
    meaning="one row per study, phenotype and horizon: the outcomes that evaluation predicts",
    columns=(
        STUDY,
        Column("phenotype", TEXT, "name of the phenotype"),
        Column("kind", TEXT, "prognosis (after the scan) or diagnosis (at its time)"),
        Column("horizon_days", NUMBER, "an event counts up to this time", "days", null="time to event, or a diagnosis"),
        Column(
            "label", YES_NO, "the event happened by the horizon", null="censored earlier, or died at an unknown time"
        ),
        Column("event", YES_NO, "the event happened in follow-up", null="a label table that knows the horizon alone"),
        Column("competing", YES_NO, "no event, and death ended follow-up", null="a label table that does not say"),
        Column("time_days", NUMBER, "time of the event, or of censoring", "days", null="a diagnosis, or not known"),
    ),
)
VOLUMES = Table(
    name="volumes.parquet",
    stage="volumes",
    meaning="one row per study with a volume",
    columns=(
        STUDY,
        Column("path", TEXT, "file of the volume, relative to `prepared/`"),
        Column("shape", INDICES, "voxels along D H W"),
        Column("spacing_mm", NUMBERS, "voxel spacing along D H W", "mm"),
        Column("affine", NUMBERS, "16 numbers, row by row: index (D, H, W, 1) to RAS+ position", "mm"),
        Column("flags", TEXTS, "repairs made while reading, and DUPLICATE_CONTENT"),
        Column("source_hash", TEXT, "hash of all bytes of the image"),
        Column("content_key", TEXT, "name of the volume: hash of image, grid and version of the preprocessing"),
        Column("checksum", TEXT, "SHA-256 of the volume's file"),
    ),
)
ACQUISITION_TIMES = Table(
    name="acquisition_times.parquet",
    stage="volumes",
    meaning="one row per study with a volume: the study table's time beside the image's own",
    columns=(
        STUDY,
        SUBJECT,
        Column("study_time", TIME, "as the study table says"),
        Column("date_only", YES_NO, "the study table has only a date"),
        Column("acquired", TIME, "as the image says; midnight is a bare date", null="the image does not say"),
        Column("offset_days", NUMBER, "acquired - study_time; whole where one is a date", "days",
               null="the image does not say"),
    ),
)  # fmt: skip
QUARANTINE = Table(
    name="quarantine.parquet",
    ascends=("study_id", "stage", "code", "detail"),
    unique=False,
    meaning="one row per refused row of the study table, and per refused image",
    columns=(
        Column("study_id", TEXT, "the study, as the study table names it", null="the row has none"),
        Column("stage", TEXT, "what refused it: table or volumes"),
        Column("code", TEXT, "reason code"),
        Column("detail", TEXT, "the reason in words; neither identifiers nor paths"),
    ),
)
EHR_HALF = Table(
    name="stages/covariates.parquet",
    stage="labels",
    meaning="the half of covariates.parquet that comes from the EHR",
    columns=(*EHR_COVARIATES, PAST_CODES),
)
MEDS_LABELS = Table(
    name="labels_meds/*/*.parquet",
    stage="labels",
    ascends=("subject_id", "prediction_time"),
    unique=False,
    meaning="phenotypes as MEDS label files: `<phenotype>/<horizon>d.parquet` or `<phenotype>/diagnosis.parquet`",
    columns=(
        SUBJECT,
        Column("prediction_time", TIME, "t0, the time of the study"),
        Column("boolean_value", YES_NO, "the label; censored studies are left out"),
    ),
)

FILES: tuple[File, ...] = (
    File(name="manifest.json", meaning="SHA-256 and size of every file, and the grid of the volumes; written last"),
    File(name="config.yaml", meaning="configuration of the run, with every default filled in"),
    File(name="provenance.json", meaning="git revision, versions, hashes of the input, start and end; not in manifest"),
    File(name="summary.json", meaning="what became of every study, in counts"),
    File(name="salt", mode=0o600, meaning="secret of the keys; drawn at the first run, or that of prepare.salt_file"),
    KEYS,
    QUARANTINE,
    File(name="tasks.json", stage="labels", meaning="the tasks, time bins and rates that the head predicts"),
    File(name="tasks.csv", stage="labels", meaning="the tasks, one line each, for a reader"),
    File(name="tasks.png", stage="labels", meaning="figure of the tasks; needs matplotlib"),
    LABELS,
    COVARIATES,
    PHENOTYPES,
    MEDS_LABELS,
    VOLUMES,
    File(name="volumes/*.b2nd", stage="volumes", meaning="int16 HU on the grid of the run, axes D H W, blosc2"),
    ACQUISITION_TIMES,
    EHR_HALF,
    File(name="stages/labels.json", stage="labels", meaning="stamp of the label files: what they were made from"),
    File(name="stages/meds.json", stage="labels", meaning="stamp of stages/meds"),
    File(name="stages/meds/**", stage="labels", meaning="the records as MEDS, where the EHR is OMOP or nested MEDS"),
    File(name="stages/ontology.json", stage="labels", meaning="stamp of stages/ontology"),
    File(name="stages/ontology/**", stage="labels", meaning="the vocabulary tables, cut down to the codes in use"),
)


def file_of(name: str) -> File:
    """The entry of FILES for a file of `prepared/`; KeyError for a file that has none."""
    for file in FILES:
        if file.covers(name):
            return file
    raise KeyError(f"{name} is no file of prepared/")
