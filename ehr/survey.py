"""First look at the files: which subjects and codes they hold, and how subjects are grouped into shards."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from ehr.shard import Shard
from ehr.sources.meds import MedsSource, collect, usable_code
from ttepretrain.errors import BadDataError

ROWS_PER_SHARD = 1_000_000  # about 200 MB while a shard is labelled; a single subject may exceed it


@dataclass(frozen=True)
class Survey:
    """Of one file, or of all."""

    subjects: pl.DataFrame  # subject_id, file, rows: wanted subjects with a usable event
    codes: pl.DataFrame  # code, train: whether a train subject has it
    latest_us: int | None  # latest time of the whole data set, all subjects
    counts: dict  # rows, static, null_codes, placeholder_dates


def survey_file(name: str, source: MedsSource, subjects: pl.DataFrame) -> Survey:
    """subjects: subject_id, train. Raises what MedsSource.scan and collect raise, BadDataError for null ids."""
    shard = source.scan(name)
    usable = ~pl.col("placeholder") & usable_code()
    totals = shard.select(
        rows=pl.len(),
        static=pl.col("time").is_null().sum(),
        null_codes=(~usable_code()).sum(),
        placeholder_dates=pl.col("placeholder").sum(),
        null_ids=pl.col("subject_id").is_null().sum(),
        latest=pl.col("time").filter(usable).max().cast(pl.Int64),
    )
    wanted = shard.filter(usable).join(subjects.lazy(), on="subject_id")
    counts = collect(name, totals).row(0, named=True)
    if counts.pop("null_ids"):
        raise BadDataError(f"{name}: column subject_id holds null; every event needs its subject")
    latest = counts.pop("latest")
    rows = collect(name, wanted.group_by("subject_id").len("rows")).with_columns(file=pl.lit(name))
    return Survey(rows, collect(name, wanted.group_by("code").agg(pl.col("train").any())), latest, counts)


def surveyed(parts: list[Survey]) -> Survey:
    """The survey of all files."""
    latest = [part.latest_us for part in parts if part.latest_us is not None]
    return Survey(
        pl.concat([part.subjects for part in parts]),
        pl.concat([part.codes for part in parts]).group_by("code").agg(pl.col("train").any()).sort("code"),
        max(latest, default=None),
        {key: sum(part.counts[key] for part in parts) for key in parts[0].counts},
    )


def plan_shards(subjects: pl.DataFrame, studies: pl.DataFrame) -> list[Shard]:
    """Shards of about ROWS_PER_SHARD rows; a subject is whole in one of them, whatever files it is spread over.

    Neighbours in a file stay together, so that a well-formed data set is read once per pass.
    """
    home = subjects.group_by("subject_id").agg(file=pl.col("file").min(), rows=pl.col("rows").sum())
    home = home.sort("file", "subject_id")
    home = home.select("subject_id", shard=(pl.col("rows").cum_sum() - pl.col("rows")) // ROWS_PER_SHARD)
    studies = studies.join(home, on="subject_id", maintain_order="left")
    files = subjects.join(home, on="subject_id").group_by("shard").agg(pl.col("file").unique().sort())
    names = dict(files.iter_rows())
    return [
        Shard(tuple(names[shard]), part)
        for (shard,), part in sorted(studies.partition_by("shard", as_dict=True, include_key=False).items())
    ]
