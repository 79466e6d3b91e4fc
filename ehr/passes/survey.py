"""First look at the files: each is decoded once, into integers; which subjects and codes it holds; the shards.

files  --spool: the wanted subjects' events-->  shards of subjects, wherever their events are spooled
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import cast

import numpy as np
import polars as pl

from ehr.passes.scratch import SCRATCH_FILES, SpoolWriter
from ehr.passes.shard import Shard, runs
from ehr.sources.meds import Batch, MedsSource
from ehr.timeline import NEVER
from ttepretrain.errors import declared_full_disk

BYTES_TOGETHER = 4 << 20  # small files are spooled together up to this size
BYTES_PER_ITEM = 16 << 20  # spools are made one after the other up to this size: each item costs Ray 6 ms of a core
ROWS_PER_SHARD = 6_000_000  # about; 160 MB while a shard is labelled, more only for a single larger subject
UNKNOWN, WANTED, TRAIN = 0, 1, 2  # kinds of subjects


@dataclass(frozen=True)
class Survey:
    """Of some files, or of all."""

    # subject_id, file, spool (numbers), first_moment, moments, begin, rows: where the wanted subjects' events are
    subjects: pl.DataFrame
    codes: pl.DataFrame  # code, train: codes of the wanted subjects; whether a train subject has it
    last_times: pl.DataFrame  # subject_id, last (us; null without a timed event): of all subjects of the data set
    # _COUNTS; of all files also split_subjects
    counts: dict
    placeholders: pl.DataFrame  # code, rows: dropped for their date

    @property
    def latest_us(self) -> int | None:
        """The latest time of the whole data set."""
        return cast("int | None", self.last_times["last"].max())

    def subjects_after(self, us: int) -> int:
        """Subjects of the whole data set with an event after this time."""
        return int((self.last_times["last"] > us).sum())


@dataclass(frozen=True)
class _Look:
    """At one batch. Numpy only: ten thousand files are ten thousand looks."""

    subject: np.ndarray  # int64, of every run of rows in the file
    wanted: np.ndarray  # subject_id
    first_moment: np.ndarray  # place of each wanted subject's moments in the spool
    moments: np.ndarray
    begin: np.ndarray  # the same of the events
    rows: np.ndarray
    everyone: np.ndarray  # subject_id, also of those without a study
    last: np.ndarray  # us, latest time of each of them; -NEVER without one
    kind: np.ndarray  # uint8, of the batch's code strings: highest kind of subject that has it
    backwards: bool  # a row lies before its predecessor
    repeated: int  # rows that are equal to their predecessor
    undated: int  # deaths without a date
    timed: int  # moments with a time
    day_ends: int  # of them at 23:59:00 or in the day's last second


def file_groups(source: MedsSource) -> list[list[list[tuple[int, str]]]]:
    """Items of `survey_files`: files (number, name) by spool."""
    files = list(enumerate(source.shards()))
    before = np.cumsum([0, *((source.folder / name).stat().st_size for _, name in files)])
    groups = [list(group) for _, group in groupby(files, lambda file: before[file[0]] // BYTES_TOGETHER)]
    return [list(item) for _, item in groupby(groups, lambda group: before[group[0][0]] // BYTES_PER_ITEM)]


def survey_files(
    groups: list[list[tuple[int, str]]], source: MedsSource, subjects: pl.DataFrame, scratch: Path
) -> Survey:
    """Decodes the files and spools the events of the wanted subjects, each group into one spool.

    subjects: subject_id (ascending, unique), train. Raises what MedsSource.batches raises.
    """
    return surveyed([_spooled(files, source, subjects, scratch) for files in groups])


def _spooled(files: list[tuple[int, str]], source: MedsSource, subjects: pl.DataFrame, scratch: Path) -> Survey:
    ids, kinds = subjects["subject_id"].to_numpy(), WANTED + subjects["train"].to_numpy().astype(np.uint8)
    counts, unsorted = dict.fromkeys(_COUNTS, 0), 0
    looks: list[_Look] = []
    file_of: list[int] = []
    placeholders, number = [pl.Series("code", [], pl.String)], files[0][0]
    with declared_full_disk(scratch, SCRATCH_FILES), SpoolWriter(scratch, number) as spool:
        for file, name in files:
            before = len(looks)
            for batch in source.batches(name):
                looks.append(_look(batch, ids, kinds, spool))
                counts = {key: counts[key] + batch.counts.get(key, 0) for key in counts}
                placeholders.append(batch.placeholders)
            file_of += [file] * (len(looks) - before)
            unsorted += _unsorted(looks[before:])
        names, place = spool.close_names()
    counts |= {"unsorted_files": unsorted, "repeated_rows": sum(look.repeated for look in looks)}
    counts |= {key: sum(getattr(look, part) for look in looks) for key, part in _OF_LOOKS.items()}
    places = {column: _joined([getattr(look, part) for look in looks]) for column, part in _PLACES.items()}
    places["file"] = np.repeat(np.array(file_of, np.int32), [len(look.rows) for look in looks])
    places["spool"] = np.full(len(places["file"]), number, np.int32)
    kind = np.zeros(len(names), np.uint8)
    np.maximum.at(kind, place, np.concatenate([np.empty(0, np.uint8), *(look.kind for look in looks)]))
    return Survey(
        pl.DataFrame(places),
        pl.DataFrame({"code": names, "train": kind == TRAIN}).filter(kind != UNKNOWN),
        _last_times(
            pl.DataFrame({name: _joined([getattr(look, part) for look in looks]) for name, part in _LAST.items()})
        ),
        counts,
        pl.concat(placeholders).to_frame().group_by("code").len("rows"),
    )


_PLACES = {"subject_id": "wanted"} | {name: name for name in ("first_moment", "moments", "begin", "rows")}
_LAST = {"subject_id": "everyone", "last": "last"}
_OF_LOOKS = {"undated_deaths": "undated", "timed_moments": "timed", "day_end_moments": "day_ends"}
_COUNTS = (
    "rows", "static", "null_codes", "placeholder_dates", "qualified_codes", "repeated_rows", "unsorted_files",
    *_OF_LOOKS,
)  # fmt: skip


def _last_times(rows: pl.DataFrame) -> pl.DataFrame:
    """Survey.last_times of subjects that may be there several times."""
    return rows.group_by("subject_id").agg(pl.col("last").replace(-NEVER, None).max())


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.empty(0, np.int64), *arrays])


def _unsorted(looks: list[_Look]) -> bool:
    """Whether a file is not in the order that MEDS asks for: each subject's rows together, by time."""
    subject = _first_of_runs(
        _joined([look.subject for look in looks])
    )  # one that goes on in the next batch is met once
    return any(look.backwards for look in looks) or len(np.unique(subject)) < len(subject)


def _look(batch: Batch, ids: np.ndarray, kinds: np.ndarray, spool: SpoolWriter) -> _Look:
    from ehr.passes.moments import (  # a worker's: the driver does without half a second of imports
        clock_counts,
        find_moments,
        kinds_of_codes,
    )

    moment, backwards, repeated = find_moments(batch.subject_id, batch.time, batch.code, batch.death)
    met = _first_of_runs(batch.subject_id[moment])
    if len(np.unique(met)) < len(met):  # else every run would be a row of the table of places
        batch = batch.by_subject()
        moment, _, _ = find_moments(batch.subject_id, batch.time, batch.code, batch.death)
    first = runs(batch.subject_id[moment])  # each subject's first moment
    subject = batch.subject_id[moment[first]]
    place = np.minimum(np.searchsorted(ids, subject), len(ids) - 1)
    kind = np.where(ids[place] == subject, kinds[place], UNKNOWN).astype(np.uint8)
    moments, rows = np.diff(first, append=len(moment)), np.diff(moment[first], append=len(batch.code))
    has = kinds_of_codes(batch.code, kind, rows, len(batch.codes))
    time, size, code, known = batch.time[moment], np.diff(moment, append=len(batch.code)), batch.code, kind != UNKNOWN
    undated = int(((code[moment] == batch.death) & (time == NEVER)).sum()) if batch.death >= 0 else 0
    timed, day_ends = clock_counts(time)
    last = np.maximum.reduceat(np.where(time == NEVER, -NEVER, time), first) if len(first) else first
    if not known.all():
        its = np.repeat(known, moments)
        time, size, code = time[its], size[its], code[np.repeat(known, rows)]
    moments, rows = moments[known], rows[known]
    first_moment, begin = spool.append(time, size, code, batch.codes)
    return _Look(
        met, subject[known], first_moment + np.cumsum(moments) - moments, moments, begin + np.cumsum(rows) - rows, rows,
        subject, last, has, backwards, repeated, undated, timed, day_ends,
    )  # fmt: skip


def _first_of_runs(values: np.ndarray) -> np.ndarray:
    return values[runs(values)]


def surveyed(parts: list[Survey]) -> Survey:
    """The survey of all files."""
    subjects = pl.concat([part.subjects for part in parts])
    files = subjects.select("subject_id", "file").unique()
    counts = {key: sum(part.counts[key] for part in parts) for key in _COUNTS}
    return Survey(
        subjects,
        pl.concat([part.codes for part in parts]).group_by("code").agg(pl.col("train").any()),
        _last_times(pl.concat([part.last_times for part in parts])),
        counts | {"split_subjects": files.filter(pl.col("subject_id").is_duplicated())["subject_id"].n_unique()},
        pl.concat([part.placeholders for part in parts]).group_by("code").agg(pl.col("rows").sum()),
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
    events_of, studies_of = (
        table.join(home, on="subject_id").sort("shard", *order).partition_by("shard", as_dict=True)
        for table, order in ((subjects, ["spool", "begin"]), (studies, ["subject_id", "study"]))
    )
    shards = sorted(shard for (shard,) in events_of)
    return [Shard(shard, events_of[shard,].drop("shard"), studies_of[shard,].drop("shard")) for shard in shards]
