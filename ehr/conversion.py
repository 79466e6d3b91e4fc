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
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from ehr.codes.athena import concept_codes, within
from ehr.schema import DEATH, EVENTS, METADATA, PERIODS, PERIODS_FILE
from ehr.sources.omop import ROWS, TABLES, Clock, rows_of
from ehr.sources.stays import (
    INPATIENT,
    VISITS,
    Admitted,
    end_of,
    long_visits,
    named_visits,
    runs,
    split_visits,
)  # fmt: skip
from ehr.sources.table_rows import batches
from ehr.sources.tables import Tables
from ttepretrain.errors import BadDataError, declared_full_disk

MAX_SHARDS, MAX_KEY_PARTS = 160, 32  # a worker holds that many files open
BYTES_PER_SHARD = {".csv": 128 << 20, ".tsv": 128 << 20}  # about a million rows
PACKED_BYTES_PER_SHARD = 16 << 20  # of parquet and compressed text
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


@dataclass(frozen=True)
class Findings:
    """What the first pass over the tables found out for the second. Plain data: travels to workers."""

    concepts: pl.DataFrame  # concept, code, description
    admitted: Admitted


def convert_omop(
    tables: Tables, vocabularies: list[Tables], destination: Path, clock: Clock, map_shards: Callable,
    inpatient: Sequence[int] = (),
) -> dict:  # fmt: skip
    """Write the MEDS data set into an empty folder; returns the counts of what was kept, repaired and dropped.

    vocabularies: where the concept table is looked for, first one first. inpatient: further visit concepts that are
    hospital stays. Raises ConfigError, BadDataError (nothing usable), IntegrityError or ResourceError (full disk).
    """
    job = Conversion(tables, destination, _num_shards(tables), clock)
    items = _items(tables)
    for name in {name for name, _, _ in items}:
        job.scratch(name).mkdir(parents=True)
    split = map_shards(partial(split_files, job=job), items)
    counts: dict[str, Counter[str]] = {name: Counter() for name, _, _ in items}
    used: dict[str, list[pl.Series]] = {name: [] for name in ("", *VISITS)}
    for (name, _, _), (part, concepts, _) in zip(items, split):
        counts[name].update(part)
        used[name if name in VISITS else ""].append(pl.Series(concepts, dtype=pl.Int64))
    none = pl.Series(dtype=pl.Int64)
    of_visits = pl.concat([none, *(part for name in VISITS for part in used[name])])
    concepts = concept_codes(vocabularies, pl.concat([of_visits, *used[""]]).unique())
    latest = max((latest for _, _, latest in split if latest is not None), default=None)
    inside = within(vocabularies, of_visits, (*INPATIENT, *inpatient))
    admitted = Admitted(inside, tuple(inpatient), concepts["concept"], latest, clock.date_only)
    findings = Findings(concepts, admitted)

    (destination / "data").mkdir()
    (destination / "metadata").mkdir()
    joined = map_shards(partial(join_shard, job=job, findings=findings), list(range(job.num_shards)))
    for part, *_ in joined:
        for name in part:
            counts[name].update(part[name])
    shutil.rmtree(destination / "scratch")
    with declared_full_disk(destination, MEDS_FILES):
        _write_metadata(job, pl.concat([codes for _, codes, *_ in joined]), concepts)
        if "observation_period" in tables.files:
            periods = pl.concat([periods for _, _, periods, *_ in joined]).sort("subject_id", "start")
            periods.write_parquet(destination / PERIODS_FILE)
    if not sum(count["events"] for count in counts.values()):
        raise BadDataError("input.ehr: the OMOP tables hold no usable record; are persons and concepts there?")
    return {
        "ignored_files": tables.ignored,
        "unread_files": len(tables.unread),
        **_versions(tables),
        "undated_deaths": sum(undated for *_, undated in joined),
        "long_visits": named_visits(pl.concat([long for *_, long, _ in joined]), concepts),
        "tables": {n: dict(c) for n, c in counts.items()},
    }


def _num_shards(tables: Tables) -> int:
    """A function of the input alone, so that the bytes are too."""
    files = [tables.folder / name for table in TABLES for name in tables.files.get(table, ())]
    share = sum(
        path.stat().st_size / BYTES_PER_SHARD.get(path.suffix.lower(), PACKED_BYTES_PER_SHARD) for path in files
    )
    return min(MAX_SHARDS, 1 + int(share))


def _items(tables: Tables) -> list[tuple[str, int, tuple[str, ...]]]:
    """(table, number, files): the work of the first pass."""
    items = []
    for table in TABLES:
        files = tables.files.get(table, ())
        groups = np.array_split(np.array(files, dtype=object), min(len(files), MAX_ITEMS)) if files else []
        items += [(table, number, tuple(group)) for number, group in enumerate(groups)]
    return items


def split_files(item: tuple[str, int, tuple[str, ...]], job: Conversion) -> tuple[dict, np.ndarray, datetime | None]:
    """Counts, concept ids and last start of some files of one table; their rows go to the shards of their subjects."""
    name, number, files = item
    table, counts, concepts = TABLES[name], Counter(rows=0, header_rows=0), pl.Series(dtype=pl.Int64)
    latest: datetime | None = None
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
                if name not in ("person", "observation_period"):
                    starts = [time for time in (latest, rows["time"].max()) if isinstance(time, datetime)]
                    latest = max(starts, default=None)
                for shard, part in _parts(rows, "subject_id", job.num_shards):
                    append("row", shard, part)
                for shard, part in _parts(rows.select("key").drop_nulls(), "key", min(job.num_shards, MAX_KEY_PARTS)):
                    append("key", shard, part)
    return dict(counts), concepts.drop_nulls().to_numpy(), latest


def _parts(rows: pl.DataFrame, column: str, num_parts: int) -> Iterator[tuple[int, pl.DataFrame]]:
    """(number, rows) by a multiplicative hash: even for ids that count up in steps; ids may be negative or null."""
    mixed = rows[column].fill_null(0).to_numpy().astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    rows = rows.with_columns(part=pl.Series((mixed >> np.uint64(32)) % np.uint64(num_parts)))
    for (number,), part in rows.partition_by("part", as_dict=True, include_key=False).items():
        yield int(number), part


def join_shard(
    shard: int, job: Conversion, findings: Findings
) -> tuple[dict, pl.DataFrame, pl.DataFrame, pl.DataFrame, int]:
    """Counts per table, codes and observation periods of one shard; its long visits that are no stays (LONG_VISITS)
    and its subjects who died at an unknown time. Its events go to data/<shard>.parquet.
    """
    persons = _read(job, "person", "row", shard, ROWS)["subject_id"].drop_nulls().unique()
    counts, kept = {}, {}
    for name in (name for name in TABLES if name in job.tables.files):
        rows = _read(job, name, "row", shard, ROWS)
        known = rows.filter(pl.col("subject_id").is_in(persons.implode()))
        keyed = pl.col("key").is_not_null()
        kept[name] = pl.concat([known.filter(~keyed), known.filter(keyed).unique()])
        keys = _read(job, name, "key", shard, pl.Schema({"key": pl.UInt64}))
        counts[name] = {
            "no_person": len(rows) - len(known),
            "repeated_rows": len(known) - len(kept[name]),
            "repeated_keys": len(keys) - keys.n_unique(),
        }
    periods = kept.pop("observation_period", None)
    visits = {name: kept.pop(name) for name in VISITS if name in kept}
    stays, others, of_visits = split_visits(visits, findings.admitted)
    for name in visits:
        counts[name] |= of_visits[name]
    if "visit_occurrence" in visits:
        kept["visit_occurrence"] = others
    parts = []
    for name, rows in kept.items():
        coded, odd = _coded(rows, findings.concepts)
        counts[name] |= odd | {"events": len(coded) + counts[name].get("events", 0)}
        parts.append(coded)
    dated, undated = _deaths(pl.concat([pl.DataFrame(schema=ROWS), *parts, stays]))
    table = dated.select(pl.col(name).cast(dtype) for name, dtype in _MEDS.items())
    table = table.sort("subject_id", "time", "code", "numeric_value", nulls_last=False).rechunk()
    with declared_full_disk(job.destination, MEDS_FILES):
        table.write_parquet(job.destination / "data" / f"{shard}.parquet")
    observed = pl.DataFrame(schema=PERIODS)
    if periods is not None:
        observed = merged(_with_ends(periods, table, job.clock))
        counts["observation_period"] |= {"events": 0, "periods": len(observed)}
    return counts, table.select(pl.col("code").unique()), observed, long_visits(others, stays), undated


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


def _deaths(events: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """Without the undated deaths of those who have a dated one; and how many subjects have undated ones alone."""
    undated = pl.col("time").is_null() & (pl.col("code") == DEATH)
    known = events.filter(pl.col("time").is_not_null() & (pl.col("code") == DEATH))["subject_id"]
    events = events.filter(~(undated & pl.col("subject_id").is_in(known.implode())))
    return events, events.filter(undated)["subject_id"].n_unique()


def _with_ends(periods: pl.DataFrame, events: pl.DataFrame, clock: Clock) -> pl.DataFrame:
    """Periods (subject_id, start, end); those without an end last until the subject's last record."""
    last = events.group_by("subject_id").agg(last=end_of("time", clock.date_only).max())
    periods = periods.join(last, on="subject_id", how="left", maintain_order="left")
    periods = periods.select("subject_id", start="time", end=pl.coalesce("end", "last"))
    return periods.filter(pl.col("end") > pl.col("start"))


def merged(periods: pl.DataFrame) -> pl.DataFrame:
    """Periods [start, end) of each subject (schema.PERIODS), those that overlap or touch as one."""
    periods = periods.sort("subject_id", "start", "end")
    joined = periods.group_by("subject_id", runs("start", "end").alias("run"), maintain_order=True).agg(
        pl.col("start").min(), pl.col("end").max()
    )
    return joined.select(list(PERIODS))


def _versions(tables: Tables) -> dict:
    """cdm_version and vocabulary_version of table cdm_source, null where it has none."""
    columns = ("cdm_version", "vocabulary_version")
    rows = [row for name in tables.files.get("cdm_source", ()) for frame, _ in batches(tables.folder, name, columns)
            for row in frame.iter_rows()]  # fmt: skip
    return {name: cell if cell is None else str(cell) for name, cell in zip(columns, rows[0] if rows else (None, None))}


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
