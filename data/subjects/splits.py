"""Which split a subject belongs to: the study table decides, else a given table or the EHR, else a hash."""

from __future__ import annotations

import difflib
import hashlib
from pathlib import Path

import polars as pl

from data.given.user_tables import read_table
from ehr.losses import judge_loss
from ehr.sources.columns import whole_cells, words
from ehr.sources.id_forms import look
from ttepretrain.errors import ConfigError, LeakageError
from ttepretrain.log import log
from ttepretrain.splits import SPLITS

SPLIT_NAMES = {"train": "train", "tuning": "tuning", "held_out": "held_out", "valid": "tuning", "test": "held_out"}
KEYS = {
    "table": "input.studies",
    "input.splits": "input.splits",
    "ehr": "input.ehr: metadata/subject_splits.parquet",
}
MOST_NAMES = 5  # more are values of another column, which may be ids
HASH_SHARES = (0.7, 0.8)  # upper ends of train and tuning: 70/10/20


def read_splits(path: Path, key: str) -> pl.DataFrame:
    """subject_id i64, split str of a table of splits; a subject listed twice with two splits stays twice.

    Rows without one of the two are left out; warns of those whose subject_id cannot be read.
    """
    table = read_table(path, key)
    if not {"subject_id", "split"} <= set(table.columns):
        raise ConfigError(f"{key}: columns subject_id and split are needed; the table has {', '.join(table.columns)}")
    subject_id, unreadable = whole_cells(table["subject_id"], f"{key}: column subject_id")
    if unreadable.any():
        log.warning(f"{key}: {unreadable.sum()} rows are left out: their subject_id is not a whole number")
    splits = pl.DataFrame([subject_id, words(table["split"], f"{key}: column split")])
    return splits.drop_nulls().unique(maintain_order=True)


def assign_splits(
    studies: pl.DataFrame, given: pl.DataFrame | None, ehr: pl.DataFrame | None, seed: int
) -> tuple[pl.DataFrame, dict[str, int]]:
    """`studies` with every subject's split, and from where how many subjects got theirs.

    The study table decides, then `given` (input.splits), or without it the EHR's own, then a seeded hash of the
    subject. Raises LeakageError where two of the sources, or two rows of one, disagree about a subject; ConfigError for
    a given table that is about none of the subjects.
    """
    subjects = studies.select("subject_id").unique()
    table = studies.select("subject_id", "split").drop_nulls().unique()
    if given is not None:
        _judge_given(subjects.join(table, on="subject_id", how="anti")["subject_id"], given["subject_id"].unique())
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


def _judge_given(ours: pl.Series, theirs: pl.Series) -> None:
    """Of the subjects whose split the study table leaves open: those that input.splits lacks get one by a hash."""
    lost = int((~ours.is_in(theirs.implode())).sum())
    if lost and lost == len(ours):
        raise ConfigError(
            f"input.splits: none of its {len(theirs)} subjects is among the {len(ours)} of input.studies that need a "
            f"split: the ids there are {look(theirs)}, here {look(ours)}; write the ids as the study table does"
        )
    judge_loss("subjects of input.studies are not in input.splits: a hash decides", lost, len(ours), "add them", 1.0)


def hash_split(subject_id: int, seed: int) -> str:
    """70/10/20 by a hash that depends on the subject and the seed alone, not on who else is in the table."""
    digest = hashlib.blake2b(f"{seed}:{subject_id}".encode(), digest_size=8).digest()
    share = int.from_bytes(digest) / 2**64
    return SPLITS[sum(share >= end for end in HASH_SHARES)]


def _meant(name: str) -> str:
    near = difflib.get_close_matches(name.lower(), SPLIT_NAMES, n=1, cutoff=0.5)
    return f" ({near[0]}?)" if near else ""


def _canonical(splits: pl.DataFrame, source: str) -> pl.DataFrame:
    unknown = splits.filter(~pl.col("split").is_in(list(SPLIT_NAMES)))
    if len(unknown):
        names = unknown["split"].value_counts(sort=True)["split"].to_list()
        few = ", ".join(f"{name[:20]!r}{_meant(name)}" for name in names[:3])
        which = f"the unknown split {few}" if len(names) <= MOST_NAMES else f"{len(names)} values that are no split"
        raise ConfigError(
            f"{KEYS[source]}: column split has {which} ({unknown['subject_id'].n_unique()} subjects); write one of "
            f"{', '.join(SPLIT_NAMES)}, or leave it empty for a split by a hash of the subject"
        )
    return splits.select("subject_id", pl.col("split").replace_strict(SPLIT_NAMES, return_dtype=pl.String)).unique()
