"""First look at the files: each is decoded once, into integers; which subjects and codes it holds; the shards.

files  --spool: the wanted subjects' events-->  shards of subjects, wherever their events are spooled
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from ehr.scratch import SpoolWriter
from ehr.shard import Shard, runs
from ehr.sources.meds import Batch, MedsSource
from ehr.timeline import NEVER

ROWS_PER_SHARD = 1_000_000  # about; 250 MB while a shard is labelled, more only for a single larger subject
UNKNOWN, WANTED, TRAIN = 0, 1, 2  # kinds of subjects


@dataclass(frozen=True)
class Survey:
    """Of one batch, one file, or all."""

    subjects: pl.DataFrame  # subject_id, file (number), begin, rows: where the spools hold the wanted subjects' events
    codes: pl.DataFrame  # code, train: codes of the wanted subjects; whether a train subject has it
    latest_us: int | None  # latest time of the whole data set, all subjects
    counts: dict  # rows, static, null_codes, placeholder_dates, unsorted_files; of all files also split_subjects
    placeholders: pl.DataFrame  # code, rows: dropped for their date
    others: pl.Series  # subject_id without a study


def survey_file(file: tuple[int, str], source: MedsSource, subjects: pl.DataFrame, scratch: Path) -> Survey:
    """Decodes one file (number, name) and spools the events of the wanted subjects.

    subjects: subject_id, train. Raises what MedsSource.batches raises.
    """
    number, name = file
    wanted = subjects.group_by("subject_id").agg(pl.col("train").any()).sort("subject_id")
    ids, kinds = wanted["subject_id"].to_numpy(), WANTED + wanted["train"].cast(pl.UInt8).to_numpy()
    met, parts = [np.empty(0, np.int64)], []
    with SpoolWriter(scratch, number) as spool:
        for batch in source.batches(name):
            met.append(batch.subject_id[runs(batch.subject_id)])
            parts.append(_survey_batch(batch, number, ids, kinds, spool))
    met = np.concatenate(met)
    met = met[runs(met)]  # one that goes on in the next batch is met once
    counts = {key: sum(part.counts[key] for part in parts) for key in _COUNTS}
    counts["unsorted_files"] = int(counts["unsorted_files"] > 0 or len(np.unique(met)) < len(met))
    return _together(parts, counts)


_COUNTS = ("rows", "static", "null_codes", "placeholder_dates", "unsorted_files")


def _survey_batch(batch: Batch, number: int, ids: np.ndarray, kinds: np.ndarray, spool: SpoolWriter) -> Survey:
    begin = runs(batch.subject_id)
    subject, rows = batch.subject_id[begin], np.diff(begin, append=len(batch.subject_id))
    place = np.minimum(np.searchsorted(ids, subject), len(ids) - 1)
    kind = np.where(ids[place] == subject, kinds[place], UNKNOWN).astype(np.uint8)
    event_kind = np.repeat(kind, rows)
    has = np.zeros(len(batch.codes), np.uint8)
    np.maximum.at(has, batch.code, event_kind)
    time = np.where(batch.time == NEVER, -NEVER, batch.time)  # static events come first
    back = np.flatnonzero(time[1:] < time[:-1]) + 1
    wanted = kind != UNKNOWN
    events = slice(None) if wanted.all() else event_kind != UNKNOWN
    first = spool.append(batch.time[events], batch.code[events], batch.codes)
    others = np.unique(subject[~wanted])
    subject, rows = subject[wanted], rows[wanted]
    return Survey(
        pl.DataFrame({"subject_id": subject, "begin": first + np.cumsum(rows) - rows, "rows": rows}).select(
            "subject_id", pl.lit(number, pl.Int32).alias("file"), "begin", "rows"
        ),
        pl.DataFrame({"code": batch.codes, "train": has == TRAIN}).filter(has != UNKNOWN),
        int(latest) if (latest := time.max(initial=-NEVER)) > -NEVER else None,
        batch.counts | {"unsorted_files": int(np.isin(back, begin, invert=True).any())},
        batch.placeholders.to_frame("code").group_by("code").len("rows"),
        pl.Series("subject_id", others),
    )


def surveyed(parts: list[Survey]) -> Survey:
    """The survey of all files."""
    counts = {key: sum(part.counts[key] for part in parts) for key in _COUNTS}
    survey = _together(parts, counts)
    files = survey.subjects.select("subject_id", "file").unique()
    counts["split_subjects"] = len(files) - files["subject_id"].n_unique()
    return survey


def _together(parts: list[Survey], counts: dict) -> Survey:
    latest = [part.latest_us for part in parts if part.latest_us is not None]
    parts = [_NOTHING, *parts]
    return Survey(
        pl.concat([part.subjects for part in parts]),
        pl.concat([part.codes for part in parts]).group_by("code").agg(pl.col("train").any()).sort("code"),
        max(latest, default=None),
        counts,
        pl.concat([part.placeholders for part in parts]).group_by("code").agg(pl.col("rows").sum()),
        pl.concat([part.others for part in parts]).unique(),
    )


_NOTHING = Survey(
    pl.DataFrame(schema={"subject_id": pl.Int64, "file": pl.Int32, "begin": pl.Int64, "rows": pl.Int64}),
    pl.DataFrame(schema={"code": pl.String, "train": pl.Boolean}),
    None,
    {},
    pl.DataFrame(schema={"code": pl.String, "rows": pl.UInt32}),
    pl.Series("subject_id", [], pl.Int64),
)


def plan_shards(subjects: pl.DataFrame, studies: pl.DataFrame) -> list[Shard]:
    """Shards of one to three ROWS_PER_SHARD: a file each; smaller files are put together, larger ones cut evenly.

    A subject is whole in one shard, whatever files it is spread over.
    """
    home = subjects.group_by("subject_id").agg(pl.col("file").min(), pl.col("rows").sum()).sort("file", "subject_id")
    home = home.with_columns(before=pl.col("rows").cum_sum() - pl.col("rows"))
    first, total = (column.over("file") for column in (pl.col("before").min(), pl.col("rows").sum()))
    parts = (total // ROWS_PER_SHARD).clip(lower_bound=1)
    place = pl.struct(first // ROWS_PER_SHARD, part=(pl.col("before") - first) * parts // total)
    home = home.select("subject_id", shard=place.rle_id())
    events, studies = (
        table.join(home, on="subject_id").sort("shard", "subject_id", *order).partition_by("shard", as_dict=True)
        for table, order in ((subjects, ["file", "begin"]), (studies, ["study"]))
    )
    return [Shard(shard, events[shard,].drop("shard"), studies[shard,].drop("shard")) for (shard,) in sorted(events)]
