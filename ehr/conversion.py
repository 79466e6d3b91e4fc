"""OMOP CDM to a MEDS data set, in two passes over workers, each in bounded memory.

split   a table's files, batch by batch  -> rows by subject, in scratch/<table>/<item>-<shard>
join    one shard of subjects, all tables -> data/<shard>.parquet, its observation periods, its codes

The bytes do not depend on the number of workers: rows are put into a total order.
The rules: docs/reference/health-records.md.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from ehr.codes.athena import concept_codes
from ehr.schema import ADMISSION, DAY_US, DISCHARGE, EVENTS, METADATA, PERIODS, PERIODS_FILE
from ehr.sources.omop import ROWS, TABLES, Clock, rows_of
from ehr.sources.tables import Tables, batches
from ttepretrain.errors import BadDataError, ConfigError, declared_full_disk

MAX_SHARDS, MAX_KEY_PARTS = 160, 32  # a worker holds that many files open
BYTES_PER_SHARD = {".parquet": 16 << 20, ".csv": 128 << 20, ".gz": 16 << 20}  # about a million rows
MAX_ITEMS = 16  # per table
MEDS_FILES = "the MEDS files that OMOP tables become"  # in messages
_MEDS = EVENTS | {"numeric_value": pl.Float32}


@dataclass(frozen=True)
class Conversion:
    """What a worker needs to know. Plain data: travels to workers."""

    tables: Tables
    destination: Path  # an empty folder
    num_shards: int
    clock: Clock

    def scratch(self, table: str) -> Path:
        return self.destination / "scratch" / table


def convert_omop(
    tables: Tables, vocabularies: list[Tables], destination: Path, clock: Clock, map_shards: Callable
) -> dict:
    """Write the MEDS data set into an empty folder; returns the counts of what was kept, repaired and dropped.

    vocabularies: where the concept table is looked for, first one first. Raises ConfigError, BadDataError (nothing
    usable), IntegrityError or ResourceError (full disk).
    """
    job = Conversion(tables, destination, _num_shards(tables), clock)
    items = _items(tables)
    for name in {name for name, _, _ in items}:
        job.scratch(name).mkdir(parents=True)
    split = map_shards(partial(split_files, job=job), items)
    counts: dict[str, Counter[str]] = {name: Counter() for name, _, _ in items}
    for (name, _, _), (part, _) in zip(items, split):
        counts[name].update(part)
    _refuse_unreadable(counts)
    used = pl.concat([pl.Series(concepts, dtype=pl.Int64) for _, concepts in split]).unique()
    concepts = concept_codes(vocabularies, used)

    (destination / "data").mkdir()
    (destination / "metadata").mkdir()
    joined = map_shards(partial(join_shard, job=job, concepts=concepts), list(range(job.num_shards)))
    for part, _, _ in joined:
        for name in part:
            counts[name].update(part[name])
    shutil.rmtree(destination / "scratch")
    with declared_full_disk(destination, MEDS_FILES):
        _write_metadata(job, pl.concat([codes for _, codes, _ in joined]), concepts)
        if "observation_period" in tables.files:
            periods = pl.concat([periods for _, _, periods in joined]).sort("subject_id", "start")
            periods.write_parquet(destination / PERIODS_FILE)
    if not sum(count["events"] for count in counts.values()):
        raise BadDataError("input.ehr: the OMOP tables hold no usable record; are persons and concepts there?")
    return {"ignored_files": tables.ignored, **_versions(tables), "tables": {n: dict(c) for n, c in counts.items()}}


def _num_shards(tables: Tables) -> int:
    """A function of the input alone, so that the bytes are too."""
    files = [tables.folder / name for table in TABLES for name in tables.files.get(table, ())]
    share = sum(path.stat().st_size / BYTES_PER_SHARD[path.suffix.lower()] for path in files)
    return min(MAX_SHARDS, 1 + int(share))


def _items(tables: Tables) -> list[tuple[str, int, tuple[str, ...]]]:
    """(table, number, files): the work of the first pass."""
    items = []
    for table in TABLES:
        files = tables.files.get(table, ())
        groups = np.array_split(np.array(files, dtype=object), min(len(files), MAX_ITEMS)) if files else []
        items += [(table, number, tuple(group)) for number, group in enumerate(groups)]
    return items


def split_files(item: tuple[str, int, tuple[str, ...]], job: Conversion) -> tuple[dict, np.ndarray]:
    """Counts and concept ids of some files of one table; their rows go to the shards of their subjects."""
    name, number, files = item
    table, counts, concepts = TABLES[name], Counter(rows=0, header_rows=0), pl.Series(dtype=pl.Int64)
    with declared_full_disk(job.destination, MEDS_FILES), ExitStack() as stack:
        writers = {}

        def append(kind: str, shard: int, rows: pl.DataFrame) -> None:
            arrow = rows.to_arrow(compat_level=pl.CompatLevel.oldest())
            if (kind, shard) not in writers:
                path = job.scratch(name) / f"{kind}-{number:03d}-{shard:03d}.arrow"
                writers[kind, shard] = stack.enter_context(pa.ipc.new_stream(str(path), arrow.schema))
            writers[kind, shard].write_table(arrow)

        for file in files:
            for frame, headers in batches(job.tables.folder, file, table.columns, table.required):
                rows, odd = rows_of(table, frame, job.clock)
                counts.update({"rows": len(frame), "header_rows": headers, **odd})
                concepts = pl.concat([concepts, rows["concept"], rows["source"]]).unique()
                for shard, part in _parts(rows, "subject_id", job.num_shards):
                    append("row", shard, part)
                for shard, part in _parts(rows.select("key").drop_nulls(), "key", min(job.num_shards, MAX_KEY_PARTS)):
                    append("key", shard, part)
    return dict(counts), concepts.drop_nulls().to_numpy()


def _parts(rows: pl.DataFrame, column: str, num_parts: int) -> Iterator[tuple[int, pl.DataFrame]]:
    """(number, rows) by a multiplicative hash: even for ids that count up in steps; ids may be negative or null."""
    mixed = rows[column].fill_null(0).to_numpy().astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    rows = rows.with_columns(part=pl.Series((mixed >> np.uint64(32)) % np.uint64(num_parts)))
    for (number,), part in rows.partition_by("part", as_dict=True, include_key=False).items():
        yield int(number), part


def join_shard(shard: int, job: Conversion, concepts: pl.DataFrame) -> tuple[dict, pl.DataFrame, pl.DataFrame]:
    """Counts per table, codes and observation periods of one shard; its events go to data/<shard>.parquet.

    concepts: concept, code, description.
    """
    persons = _read(job, "person", "row", shard, ROWS)["subject_id"].drop_nulls().unique()
    counts, events, periods = {}, [], pl.DataFrame(schema=PERIODS)
    for name in (name for name in TABLES if name in job.tables.files):
        rows = _read(job, name, "row", shard, ROWS)
        known = rows.filter(pl.col("subject_id").is_in(persons.implode()))
        keyed = pl.col("key").is_not_null()
        unique = pl.concat([known.filter(~keyed), known.filter(keyed).unique()])
        keys = _read(job, name, "key", shard, pl.Schema({"key": pl.UInt64}))
        counts[name] = {
            "no_person": len(rows) - len(known),
            "repeated_rows": len(known) - len(unique),
            "repeated_keys": len(keys) - keys.n_unique(),
        }
        if name == "observation_period":
            periods = merged(unique.select("subject_id", start="time", end="end"))
            counts[name] |= {"events": 0, "periods": len(periods)}
        else:
            coded, odd = _coded(unique, concepts)
            if name == "visit_occurrence":
                coded, odd["joined_stays"] = _with_discharges(coded, job.clock)
            counts[name] |= odd | {"events": len(coded)}
            events.append(coded.select(pl.col(name).cast(dtype) for name, dtype in _MEDS.items()))
    table = pl.concat(events).sort("subject_id", "time", "code", "numeric_value", nulls_last=False).rechunk()
    with declared_full_disk(job.destination, MEDS_FILES):
        table.write_parquet(job.destination / "data" / f"{shard}.parquet")
    return counts, table.select(pl.col("code").unique()), periods


def _read(job: Conversion, table: str, kind: str, shard: int, schema: pl.Schema) -> pl.DataFrame:
    paths = sorted(job.scratch(table).glob(f"{kind}-*-{shard:03d}.arrow"))
    tables = [pa.ipc.open_stream(path.read_bytes()).read_all() for path in paths]
    parts = [pl.DataFrame(pl.from_arrow(table, schema=schema)) for table in tables]
    return pl.concat([pl.DataFrame(schema=schema), *parts])


def _coded(rows: pl.DataFrame, concepts: pl.DataFrame) -> tuple[pl.DataFrame, dict]:
    """ROWS with their code: the concept's, and of a timed record the source concept's too; rows without are dropped."""
    named = concepts.select(concept="concept", name="code")
    rows = rows.join(named, on="concept", how="left", maintain_order="left")
    rows = rows.join(
        named.rename({"concept": "source"}), on="source", how="left", suffix="_of_source", maintain_order="left"
    )
    code = pl.coalesce("code", "name", "name_of_source")
    nothing = (pl.col("concept").fill_null(0) == 0) & (pl.col("source").fill_null(0) == 0)
    counts = rows.select(
        no_concept=(code.is_null() & nothing).sum(),
        unknown_concept=(code.is_null() & ~nothing).sum(),
        by_source=(pl.col("code").is_null() & pl.col("name").is_null() & pl.col("name_of_source").is_not_null()).sum(),
    ).row(0, named=True)
    finer = pl.col("code").is_null() & pl.col("time").is_not_null() & (pl.col("name") != pl.col("name_of_source"))
    both = rows.filter(finer).with_columns(code="name_of_source")
    coded = pl.concat([rows.with_columns(code=code).filter(pl.col("code").is_not_null()), both])
    return coded.select(list(ROWS)), counts | {"with_source": len(both)}


def _with_discharges(coded: pl.DataFrame, clock: Clock) -> tuple[pl.DataFrame, int]:
    """Stays that overlap or touch become one, which gets its discharge; and how many stays went into another.

    A stay that ends on a date lasts until the end of that day, as it does around a scan.
    """
    stay = pl.col("code") == ADMISSION
    is_date = pl.lit(clock.date_only == "midnight") & (pl.col("end") == pl.col("end").dt.truncate("1d"))
    last = pl.col("end") + pl.duration(microseconds=is_date.cast(pl.Int64) * (DAY_US - 1))
    stays = coded.filter(stay).with_columns(last=last).sort("subject_id", "time", "last")
    joined = stays.group_by(_runs("time", "last").alias("run")).agg(
        pl.col(*ROWS).exclude("end").first(), pl.col("end").sort_by("last").last()
    )
    leaving = joined.with_columns(code=pl.lit(DISCHARGE), time="end")
    parts = (coded.filter(~stay), joined, leaving)
    return pl.concat(part.select(list(ROWS)) for part in parts), len(stays) - len(joined)


def _runs(start: str, end: str) -> pl.Expr:
    """Number of the run of overlapping or touching intervals; rows sorted by subject_id and start."""
    before = pl.col(end).cum_max().shift(1).over("subject_id")
    return (pl.col(start) > before).fill_null(True).cum_sum()


def merged(periods: pl.DataFrame) -> pl.DataFrame:
    """Periods [start, end) of each subject (schema.PERIODS), those that overlap or touch as one."""
    periods = periods.sort("subject_id", "start", "end")
    joined = periods.group_by("subject_id", _runs("start", "end").alias("run"), maintain_order=True).agg(
        pl.col("start").min(), pl.col("end").max()
    )
    return joined.select(list(PERIODS))


def _refuse_unreadable(counts: dict[str, Counter]) -> None:
    for name, count in counts.items():
        if count["unreadable_times"] > count["rows"] / 2:
            raise ConfigError(f"input.ehr: most times of {name} are unreadable; write them as YYYY-MM-DD[ HH:MM:SS]")


def _versions(tables: Tables) -> dict:
    """cdm_version and vocabulary_version of table cdm_source, null where it has none."""
    columns = ("cdm_version", "vocabulary_version")
    rows = [row for name in tables.files.get("cdm_source", ()) for frame, _ in batches(tables.folder, name, columns)
            for row in frame.iter_rows()]  # fmt: skip
    return dict(zip(columns, rows[0] if rows else (None, None)))


def _write_metadata(job: Conversion, codes: pl.DataFrame, concepts: pl.DataFrame) -> None:
    """codes.parquet of the data's codes (the ontology is read apart) and dataset.json."""
    described = concepts.group_by("code").agg(pl.col("description").min())
    table = codes.unique().join(described, on="code", how="left").sort("code")
    table = table.with_columns(parent_codes=pl.lit(None, METADATA["parent_codes"]))
    table.select(pl.col(name).cast(dtype) for name, dtype in METADATA.items()).write_parquet(
        job.destination / "metadata" / "codes.parquet"
    )
    origin = {"dataset_name": "OMOP CDM", "etl_name": "ttepretrain", "meds_version": "0.4.0"} | _versions(job.tables)
    (job.destination / "metadata" / "dataset.json").write_text(json.dumps(origin, indent=1) + "\n")
