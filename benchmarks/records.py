"""Synthetic MEDS records at INSPECT's density, written shard by shard; for measuring, without any clinical meaning.

Density and skew follow the MIMIC-IV demo (9.2 k events, 690 codes and 834 distinct times per subject, 18 % of times at
midnight), scaled to INSPECT's 11.6 k events per subject. The same seed gives the same bytes, whatever the number of
processes.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as parquet

EVENTS_PER_SUBJECT = 11_600
SUBJECTS_PER_SHARD = 100
NUM_CODES = 20_000  # that events may have
NUM_GROUPERS = 6_000  # ancestors without events of their own
LEVELS = 9  # of the ontology; with the second parents a code's closure holds 12.7 codes on average, itself included
SECOND_PARENT = 0.12  # share of the codes with two parents
ZIPF = 0.9  # popularity of the code of rank r: r ** -ZIPF
DAY_US = 86_400_000_000
EPOCH_US = 40 * 365 * DAY_US  # first records, 2009
RECORD_US = 10 * 365 * DAY_US  # longest record
ROW_GROUP = 262_144
VOCABULARIES = np.array(["SNOMED/", "LOINC/", "RxNorm/", "CPT4/", "NDC/"])
SPECIAL = ["MEDS_BIRTH", "MEDS_DEATH", "HOSPITAL_ADMISSION//EMERGENCY", "HOSPITAL_DISCHARGE//HOME", "GENDER//F",
           "GENDER//M"]  # fmt: skip


def write_ontology(folder: Path, seed: int) -> float:
    """`metadata/codes.parquet`; returns the mean size of the closure of the codes that events have."""
    rng = np.random.default_rng([seed, 0])
    names, level = code_names(seed), _levels(seed)
    order = np.argsort(level, kind="stable")  # nodes by level, so that a level is a slice
    begin = np.searchsorted(level[order], np.arange(LEVELS + 1))
    parents = np.full((len(names), 2), -1)
    for above in range(LEVELS - 1):
        children = order[begin[above + 1] : begin[above + 2]]
        # few parents have most of the children, as in every clinical terminology
        pick = (rng.random((len(children), 2)) ** 2 * (begin[above + 1] - begin[above])).astype(int)
        parents[children] = order[begin[above] + pick]
        parents[children[rng.random(len(children)) > SECOND_PARENT], 1] = -1
    table = pl.DataFrame({"code": names, "description": [f"about {name}" for name in names]}).with_columns(
        parent_codes=pl.Series([[names[p] for p in sorted({*row} - {-1})] for row in parents.tolist()])
    )
    (folder / "metadata").mkdir(parents=True, exist_ok=True)
    table.write_parquet(folder / "metadata" / "codes.parquet")
    closure = np.zeros((len(names), len(names)), bool)
    for node in order:  # parents come first
        closure[node] = closure[parents[node][parents[node] >= 0]].any(0)
        closure[node, node] = True
    return float(closure[:NUM_CODES].sum(1).mean())


def _levels(seed: int) -> np.ndarray:
    """Depth of every node: each level holds 1.9 times the nodes of the one above; groupers are the upper ones."""
    share = 1.9 ** np.arange(LEVELS)
    depth = np.repeat(np.arange(LEVELS), np.ceil(share / share.sum() * (NUM_CODES + NUM_GROUPERS)).astype(int))
    depth = depth[-(NUM_CODES + NUM_GROUPERS) :]
    rng = np.random.default_rng([seed, 1])
    # half of the groupers are the top of the tree, the others lie anywhere among the codes
    top = NUM_GROUPERS // 2
    below = rng.permutation(depth[top:])
    return np.concatenate([below[:NUM_CODES], depth[:top], below[NUM_CODES:]])


def code_names(seed: int) -> list[str]:
    """Codes that events have, by falling popularity, then the groupers."""
    rng = np.random.default_rng([seed, 2])
    number = rng.choice(90_000_000, NUM_CODES + NUM_GROUPERS, replace=False)
    vocabulary = VOCABULARIES[rng.integers(len(VOCABULARIES), size=len(number))]
    return [f"{v}{n + 10_000_000}" for v, n in zip(vocabulary, number)]


def write_shard(shard: int, folder: Path, subjects: int, seed: int) -> pl.DataFrame:
    """`data/<shard>.parquet`, sorted by subject and time; returns the studies of its subjects."""
    rng = np.random.default_rng([seed, 3, shard])
    ids = np.arange(shard * SUBJECTS_PER_SHARD, min((shard + 1) * SUBJECTS_PER_SHARD, subjects))
    size = np.maximum(rng.lognormal(np.log(EVENTS_PER_SUBJECT) - 0.95**2 / 2, 0.95, len(ids)).astype(int), 200)
    begin_us = EPOCH_US + rng.integers(RECORD_US, size=len(ids))
    length_us = (RECORD_US * rng.beta(2, 2, len(ids))).astype(int)
    subject = np.repeat(np.arange(len(ids)), size)
    code = _codes(rng, size, subject)
    time = _times(rng, size, subject, begin_us, length_us)
    subject, time, code = _with_special(rng, subject, time, code, begin_us, begin_us + length_us)
    static = code >= NUM_CODES + SPECIAL.index("GENDER//F")
    order = np.lexsort((time, ~static, subject))
    names = np.array([*code_names(seed)[:NUM_CODES], *SPECIAL])
    table = pa.table(
        {
            "subject_id": ids[subject[order]] + 1_000_000,
            "time": pa.array(time[order], pa.timestamp("us"), mask=static[order]),
            "code": names[code[order]],  # strings: every row group has a dictionary of its own codes, as usual
            "numeric_value": pa.array((rng.integers(0, 4000, len(code)) / 10).astype(np.float32)),
        }
    )
    (folder / "data").mkdir(parents=True, exist_ok=True)
    # store_schema=False: the file says string, as other writers' files do
    path = folder / "data" / f"{shard:05}.parquet"
    parquet.write_table(table, path, compression="zstd", row_group_size=ROW_GROUP, store_schema=False)
    return _studies(rng, ids, begin_us, length_us)


def _codes(rng: np.random.Generator, size: np.ndarray, subject: np.ndarray) -> np.ndarray:
    """A subject has its own few hundred codes, and uses some of them much more than others."""
    popularity = np.cumsum(np.arange(1.0, NUM_CODES + 1) ** -ZIPF)
    repertoire = np.ceil(1150 * (size / EVENTS_PER_SUBJECT) ** 0.35 * rng.lognormal(0, 0.3, len(size))).astype(int)
    pool = np.searchsorted(popularity, rng.random(repertoire.sum()) * popularity[-1])
    first = np.cumsum(repertoire) - repertoire
    return pool[first[subject] + (rng.random(len(subject)) ** 3 * repertoire[subject]).astype(int)]


def _times(
    rng: np.random.Generator, size: np.ndarray, subject: np.ndarray, begin_us: np.ndarray, length_us: np.ndarray
) -> np.ndarray:
    """Eleven events share a time; times crowd into visits; a part of them are bare dates."""
    moments = np.maximum(size // 11, 1)
    first = np.cumsum(moments) - moments
    owner = np.repeat(np.arange(len(size)), moments)
    visits = np.maximum(moments // 25, 1)
    visit = rng.integers(visits[owner])
    start = np.modf((visit + 1) * 0.6180339887498949 + owner * 0.377)[0] * length_us[owner]
    minutes = np.minimum(rng.exponential(3 * 1440, len(owner)), 30 * 1440).astype(np.int64)
    moment = begin_us[owner] + (start.astype(np.int64) // DAY_US * DAY_US) + minutes * 60_000_000
    bare = rng.random(len(owner)) < 0.18
    moment[bare] -= moment[bare] % DAY_US
    return moment[first[subject] + (rng.random(len(subject)) * moments[subject]).astype(int)]


def _with_special(
    rng: np.random.Generator,
    subject: np.ndarray,
    time: np.ndarray,
    code: np.ndarray,
    begin_us: np.ndarray,
    end_us: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The events, with a birth, a sex, two hospital stays a year and the death of every fifth subject."""
    people = np.arange(len(begin_us))
    stays = np.maximum((end_us - begin_us) // (180 * DAY_US), 1)
    owner = np.repeat(people, stays)
    entry = begin_us[owner] + (rng.random(len(owner)) * (end_us - begin_us)[owner]).astype(np.int64)
    entry += 61_000_000 - entry % 60_000_000
    dead = people[rng.random(len(people)) < 0.2]
    parts = [
        (people, begin_us - rng.integers(20 * 365, 80 * 365, len(people)) * DAY_US, 0),
        (dead, end_us[dead] + 31 * DAY_US, 1),
        (owner, entry, 2),
        (owner, entry + rng.integers(1, 9, len(owner)) * DAY_US, 3),
        (people, np.zeros(len(people), np.int64), 4 + rng.integers(2, size=len(people))),
    ]
    extra = [(who, when, np.broadcast_to(NUM_CODES + np.asarray(what), who.shape)) for who, when, what in parts]
    return tuple(np.concatenate(columns) for columns in zip((subject, time, code), *extra))


def _studies(rng: np.random.Generator, ids: np.ndarray, begin_us: np.ndarray, length_us: np.ndarray) -> pl.DataFrame:
    """1.2 scans per subject, in the middle half of the record; 80/5/15 % of the subjects per split."""
    scans = 1 + (rng.random(len(ids)) < 0.139) * rng.geometric(0.7, len(ids))
    owner = np.repeat(np.arange(len(ids)), scans)
    time = begin_us[owner] + (rng.uniform(0.25, 0.75, len(owner)) * length_us[owner]).astype(np.int64)
    split = np.array(["train", "tuning", "held_out"])[np.searchsorted([0.8, 0.85], rng.random(len(ids)))]
    return pl.DataFrame(
        {"subject_id": ids[owner] + 1_000_000, "study_time": time // 60_000_000 * 60_000_000, "split": split[owner]}
    ).select(
        pl.format("ct{}_{}", "subject_id", pl.int_range(pl.len()).over("subject_id")).alias("study_id"),
        "subject_id",
        pl.col("study_time").cast(pl.Datetime("us")),
        pl.lit(False).alias("date_only"),
        "split",
    )


def write_records(folder: Path, subjects: int, seed: int, map_shards) -> tuple[pl.DataFrame, float]:
    """The data set; returns its studies and the mean closure."""
    closure = write_ontology(folder, seed)
    work = partial(write_shard, folder=folder, subjects=subjects, seed=seed)
    studies = map_shards(work, range(-(-subjects // SUBJECTS_PER_SHARD)))
    return pl.concat(studies), closure
