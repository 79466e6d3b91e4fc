"""Label tables given by the user (`ehr.label_tables`): outcomes that no code records, such as findings in reports.

binary    study_id, phenotype, kind, label, horizon_days   label: true, false, empty = censored
          horizon_days: positive for a prognosis, empty for a diagnosis
survival  study_id, phenotype, kind, event, time_days      days from the study time to the event or to censoring

or        INSPECT's labels_*.tsv as it is (data/given/inspect_labels.py)

A phenotype that a table names comes from the tables alone; its entry in the phenotype file still keeps its codes out of
the tasks. It is refused where none of its rows can be used, as codes would have answered.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from data.given.inspect_labels import read_inspect_labels
from data.given.user_tables import is_inspects, read_table, refuse_rowless
from ehr.losses import judge_loss
from ehr.phenotype_file import NAME
from ehr.schema import PHENOTYPES
from ehr.sources.columns import finite_numbers, texts, truth
from ehr.sources.id_forms import how_ids_differ
from ttepretrain.errors import ConfigError
from ttepretrain.log import log

COMMON = ("study_id", "phenotype", "kind")
FEW = 0.01  # of INSPECT's answers may contradict each other; they are left out


def read_label_tables(
    paths: Sequence[Path],
    declared: Mapping[str, str],
    studies: pl.DataFrame | None = None,
    max_lost_fraction: float = 1.0,
) -> pl.DataFrame:
    """Rows of all tables in the columns of schema.PHENOTYPES; `declared`: kind of each phenotype of the phenotype file.

    studies: study_id and other columns of the study table, which each table must be about (None: of any study).
    Raises ConfigError naming table and column of what is wrong, IntegrityError for a damaged table, BadDataError where
    more than `max_lost_fraction` of a table's study_ids match no study.
    """
    tables = {path: _read(path) for path in paths}
    rows = pl.concat([pl.DataFrame(schema=PHENOTYPES), *tables.values()]).unique(maintain_order=True)
    repeated = rows.select("study_id", "phenotype", "horizon_days").is_duplicated().sum()
    if repeated:
        raise ConfigError(f"ehr.label_tables: {repeated} rows disagree about a study, phenotype and horizon; keep one")
    _refuse_contradictions(rows)
    kinds = rows.select("phenotype", "kind").unique().sort("phenotype", "kind")
    for name, kind in kinds.iter_rows():
        if not re.fullmatch(NAME, name):
            raise ConfigError("ehr.label_tables: a phenotype has letters, digits, `_`, `-` and `.`, and names a folder")
        if declared.get(name, kind) != kind or kinds["phenotype"].to_list().count(name) > 1:
            raise ConfigError(f"ehr.label_tables: {name} is prognosis in one place and diagnosis in another; decide")
    if unknown := sorted(set(kinds["phenotype"]) - set(declared)):
        near = (difflib.get_close_matches(name, declared, n=1) for name in unknown)
        names = (f"{name} (did you mean {match[0]}?)" if match else name for name, match in zip(unknown, near))
        log.warning(
            f"ehr.label_tables: no codes are declared for {', '.join(names)}; codes of the same event may be among "
            "the tasks, list them under ehr.exclude"
        )
    if studies is not None:
        _refuse_empty(rows)
        for path, table in tables.items():
            _judge_ids(f"ehr.label_tables: {path.name}", table["study_id"], studies, max_lost_fraction)
        _refuse_strangers(rows, studies["study_id"])
    return rows


def _refuse_empty(rows: pl.DataFrame) -> None:
    """A phenotype that no row answers would take the place of its codes and say nothing."""
    answered = pl.col("label").is_not_null() | pl.col("event").is_not_null()
    empty = rows.group_by("phenotype").agg(answered.any().alias("answered")).filter(~pl.col("answered"))
    if len(empty):
        names = ", ".join(empty["phenotype"].sort())
        raise ConfigError(f"ehr.label_tables: every label of {names} is empty or censored; fill some, or leave it out")


def _judge_ids(key: str, ids: pl.Series, studies: pl.DataFrame, max_lost_fraction: float) -> None:
    """Compare the smaller of the two sets of ids with the larger: each may be about a part of the other."""
    theirs, ours = ids.unique(), studies["study_id"].unique()
    both, most = int(theirs.is_in(ours.implode()).sum()), min(len(theirs), len(ours))
    if both == most:
        return
    keys: list[str] = [name for name in ("subject_id", "image", "series_uid") if name in studies.columns]
    others = {name: studies[name] for name in keys}
    unmatched = theirs.filter(~theirs.is_in(ours.implode()))
    how = how_ids_differ(unmatched, ours, others)
    if not both:
        raise ConfigError(
            f"{key}: none of its {len(theirs)} study_ids is among the {len(ours)} of input.studies: {how}; write the "
            "ids as the study table does"
        )
    judge_loss(
        f"study_ids that {key} and input.studies could share are in one of the two alone",
        most - both, most, f"the tables must write ids alike ({how})", max_lost_fraction,
    )  # fmt: skip


def _refuse_strangers(rows: pl.DataFrame, study_ids: pl.Series) -> None:
    known = rows.filter(pl.col("study_id").is_in(study_ids.implode()))["phenotype"]
    if strangers := sorted(set(rows["phenotype"]) - set(known)):
        raise ConfigError(
            f"ehr.label_tables: no row of {', '.join(strangers)} is about a study of input.studies; correct its "
            "study_ids, or leave it out"
        )


def _contradictory(rows: pl.DataFrame) -> pl.DataFrame:
    """phenotype, study_id of the prognoses whose answers cannot all be true.

    The event happened by every horizon with true and by the time of an event. It had not happened by every horizon with
    false, by the time of a censoring, or before the time of an event.
    """
    label, event, horizon, time = (pl.col(name) for name in ("label", "event", "horizon_days", "time_days"))
    timed = time.is_not_null()
    answers = (
        rows.filter(kind="prognosis")
        .group_by("phenotype", "study_id")
        .agg(
            happened_by=pl.when(timed & event).then(time).when(~timed & label).then(horizon).min(),
            not_by=pl.when(timed & ~event).then(time).when(~timed & ~label).then(horizon).max(),
            not_before=pl.when(timed & event).then(time).min(),
        )
    )
    wrong = (pl.col("happened_by") <= pl.col("not_by")) | (pl.col("happened_by") < pl.col("not_before"))
    return answers.filter(wrong).select("phenotype", "study_id").sort("phenotype", "study_id")


def _refuse_contradictions(rows: pl.DataFrame) -> None:
    wrong = _contradictory(rows)
    if len(wrong):
        names = ", ".join(wrong["phenotype"].unique().sort())
        first = wrong.head(1)
        raise ConfigError(
            f"ehr.label_tables: {len(wrong)} studies of {names} have answers that contradict each other, one of "
            f"{first['phenotype'][0]}: {_in_words(rows.join(first, on=['phenotype', 'study_id']))}; correct the tables"
        )


def _in_words(answers: pl.DataFrame) -> str:
    """The answers of one study and phenotype, without its name; unknown ones are left out."""
    rows = answers.sort("horizon_days", nulls_last=True).select("label", "horizon_days", "event", "time_days").rows()
    return ", ".join(
        f"{'true' if label else 'false'} at {horizon:g} days" if time is None
        else f"{'an' if event else 'no'} event {'on' if event else 'until'} day {time:g}"
        for label, horizon, event, time in rows
        if label is not None or time is not None
    )  # fmt: skip


def with_label_tables(
    own: pl.DataFrame, given: pl.DataFrame, study_ids: pl.Series, labelled_ids: pl.Series, blackout_days: float
) -> tuple[pl.DataFrame, dict]:
    """Rows of phenotypes.parquet (`own` from codes, `given` instead where they name the phenotype), and counts.

    study_ids: all studies. labelled_ids: those with follow-up; the others keep their diagnoses.
    Left out and counted: studies not among them, times inside the blackout. Raises ConfigError for a phenotype that
    loses all its rows.
    """
    of_studies = given.filter(pl.col("study_id").is_in(study_ids.implode()))
    known = of_studies.filter((pl.col("kind") == "diagnosis") | pl.col("study_id").is_in(labelled_ids.implode()))
    usable = known.filter((pl.col("time_days") > blackout_days).fill_null(True))
    named = given["phenotype"].unique()
    if lost := sorted(set(named) - set(usable["phenotype"])):
        raise ConfigError(
            f"ehr.label_tables: no row of {', '.join(lost)} can be used: they are about studies without follow-up, or "
            f"end within ehr.blackout_days = {blackout_days:g}; correct the table, or leave it out"
        )
    answered = usable.filter(pl.col("label").is_not_null() | pl.col("event").is_not_null())["phenotype"]
    replaced = own.filter(pl.col("phenotype").is_in(named.implode()))["phenotype"].unique()
    counts = {
        "rows": len(given),
        "unknown_study": len(given) - len(of_studies),
        "unlabelled_study": len(of_studies) - len(known),
        "in_blackout": len(known) - len(usable),
        "used": len(usable),
        "without_answer": sorted(set(usable["phenotype"]) - set(answered)),
        "instead_of_codes": sorted(replaced),
    }
    kept = own.filter(~pl.col("phenotype").is_in(named.implode()))
    return pl.concat([kept, usable.sort("phenotype", "horizon_days", nulls_last=True)]), counts


def _read(path: Path) -> pl.DataFrame:
    """Rows of one file, in the columns of schema.PHENOTYPES."""
    key = f"ehr.label_tables: {path.name}"
    if not is_inspects(path, "ehr.label_tables"):
        table = read_table(path, "ehr.label_tables")
        refuse_rowless(table, key)
        return _rows(table, key)
    rows = pl.concat([_rows(table, key) for table in read_inspect_labels(path, key)])
    wrong = _contradictory(rows)
    if 0 < len(wrong) <= FEW * rows.select("phenotype", "study_id").n_unique():
        log.warning(f"{key}: {len(wrong)} studies' answers about a phenotype contradict each other and are left out")
        rows = rows.join(wrong, on=["phenotype", "study_id"], how="anti")
    return rows


def _rows(table: pl.DataFrame, key: str) -> pl.DataFrame:
    survival, binary = {"event", "time_days"} <= set(table.columns), "label" in table.columns
    missing = [name for name in COMMON if name not in table.columns]
    if survival and binary:
        raise ConfigError(
            f"{key}: it has label, and event and time_days too: not both in one file; split it into two tables"
        )
    if missing or not (survival or binary):
        raise ConfigError(
            f"{key}: columns {', '.join(COMMON)} are needed, and either label (with horizon_days) or event and "
            f"time_days; the table has {', '.join(table.columns)}{_other_key(table.columns)}"
        )
    names = [_filled(table, name, key) for name in COMMON]
    if not names[2].is_in(["prognosis", "diagnosis"]).all():
        raise ConfigError(f"{key}: column kind must be prognosis or diagnosis")
    return pl.DataFrame(names).with_columns(**(_survival if survival else _binary)(table, names[2], key))[[*PHENOTYPES]]


def _other_key(columns: list[str]) -> str:
    """What to do with a table by another key than the study."""
    other = [name for name in ("subject_id", "patient_id", "image") if name in columns]
    if "study_id" in columns or not other:
        return ""
    return f". A table by {other[0]} does not say which study it means: join it to the study table first"


def _binary(table: pl.DataFrame, kind: pl.Series, key: str) -> dict[str, pl.Series | pl.Expr]:
    label, diagnosis = truth(table["label"], f"{key}: column label"), kind == "diagnosis"
    if "horizon_days" not in table.columns:
        table = table.with_columns(horizon_days=pl.lit(None, pl.Float64))
    horizon = finite_numbers(table["horizon_days"], f"{key}: column horizon_days")
    if (horizon <= 0).any() or (horizon.is_null() != diagnosis).any():
        raise ConfigError(
            f"{key}: column horizon_days must be positive for every prognosis and empty for every diagnosis"
        )
    return {
        "horizon_days": horizon,
        "label": label,
        "event": pl.when(diagnosis).then(label),  # of a prognosis: what follows the horizon is unknown
        "competing": pl.when(diagnosis).then(False),
        "time_days": pl.lit(None, pl.Float64),
    }


def _survival(table: pl.DataFrame, kind: pl.Series, key: str) -> dict[str, pl.Series | pl.Expr]:
    event = truth(table["event"], f"{key}: column event")
    time = finite_numbers(table["time_days"], f"{key}: column time_days")
    if event.null_count() or time.null_count() or (kind == "diagnosis").any():
        raise ConfigError(f"{key}: event and time_days must be filled in every row, and a diagnosis has none")
    if (time < 0).any():
        raise ConfigError(f"{key}: column time_days: {(time < 0).sum()} values lie before the study; it counts from it")
    return {
        "horizon_days": pl.lit(None, pl.Float64),
        "label": pl.when(event).then(True),
        "event": event,
        "competing": pl.when(event).then(False),  # otherwise the table does not say
        "time_days": time,
    }


def _filled(table: pl.DataFrame, name: str, key: str) -> pl.Series:
    column = texts(table[name], f"{key}: column {name}")
    if column.null_count():
        raise ConfigError(f"{key}: column {name} is empty in some row")
    return column
