"""Tables of an OMOP CDM extract or an Athena export, found by name.

person.parquet   PERSON.csv.gz   person/part-0.parquet   conceptAncestor.csv   (either letter case, _ or not)
person_1.csv     person-00001-of-00004.parquet     drug_exposure_2019.parquet  (parts)
2b_concept.csv   cdm_person.csv.gz                 (a prefix, where no other file has the name)

Not read, but named: other files that resemble a table. Left alone and counted: what macOS adds to archives (`._*`,
`__MACOSX`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from ttepretrain.errors import ConfigError
from ttepretrain.log import log

EVENT_TABLES = (
    "visit_occurrence", "condition_occurrence", "drug_exposure", "procedure_occurrence", "measurement", "observation",
    "device_exposure", "death",
)  # fmt: skip
VOCABULARY_TABLES = ("concept", "concept_relationship", "concept_ancestor")
_NAMES = ("person", *EVENT_TABLES, "visit_detail", "observation_period", "cdm_source", *VOCABULARY_TABLES)
# Of OMOP too, and not read: their names hold those of others.
_OTHERS = (
    "concept_class", "concept_synonym", "concept_set", "source_to_concept_map", "cause_of_death", "person_ext",
    "condition_occurrence_ext", "drug_exposure_ext", "procedure_occurrence_ext", "measurement_ext", "observation_ext",
    "device_exposure_ext", "visit_occurrence_ext", "visit_detail_ext", "death_ext",
)  # fmt: skip
_BY_PLAIN_NAME = {name.replace("_", ""): name for name in (*_NAMES, *_OTHERS)}

PARQUET, _PACKED = ".parquet", ("", ".gz", ".bz2", ".zst")
_EXTENSIONS = (PARQUET, *(kind + packed for kind in (".csv", ".tsv") for packed in _PACKED))
# Of data that we do not read; other files (README.md, person.sql) are none.
_DATA = (
    ".txt", ".dat", ".psv", ".pq", ".parq", ".zip", ".gz", ".bz2", ".zst", ".zstd", ".xz", ".lz4", ".7z", ".tar",
    ".tgz", ".xls", ".xlsx", ".orc", ".avro", ".arrow", ".feather", ".json", ".jsonl", ".ndjson", ".sas7bdat", ".xpt",
    ".rds", ".rdata", ".dta", ".bak", ".old", ".part", ".crdownload", ".db", ".duckdb", ".sqlite", *_EXTENSIONS,
)  # fmt: skip
_WORD = r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+"
_PART = ("part", "chunk", "shard", "split", "batch", "file", "of", "p")
_CODECS = ("snappy", "gz", "gzip", "zstd", "lz4", "brotli", "c000")
_NOT_THE_TABLE = ("old", "backup", "bak", "copy", "tmp", "temp", "sample", "test", "deleted", "removed", "archive")

_MOST_NAMED, _MOST_PARTS = 20, 100_000


@dataclass(frozen=True)
class Tables:
    """The tables of one folder. Plain data: travels to workers."""

    folder: Path
    files: dict[str, tuple[str, ...]]  # OMOP name -> file names relative to the folder, ascending
    ignored: int  # files that an archiver of macOS left
    unread: tuple[str, ...] = ()  # other data files, or folders, that resemble a table, relative to the folder
    gaps: tuple[str, ...] = ()  # tables with numbers that their numbered parts leave out: "person: 3, 4"

    def warn_of_files(self, key: str) -> None:
        """Of files that were not read, and of those that may be missing."""
        if self.unread:
            more = len(self.unread) - _MOST_NAMED
            log.warning(
                f"{key}: not read, though named like an OMOP table: {', '.join(self.unread[:_MOST_NAMED])}"
                + (f" and {more} more" if more > 0 else "")
                + "; put parts of a table into a folder of its name, and move away what is none"
            )
        if self.gaps:
            log.warning(
                f"{key}: the numbers of a table's parts leave some out: {'; '.join(self.gaps)}; is a file missing?"
            )


class _Name(NamedTuple):
    """A file's name, taken apart: <before>_<table>_<numbers>."""

    table: str
    before: tuple[str, ...]
    numbers: tuple[str, ...] | None  # none: other words stand behind


def find_tables(folder: Path) -> Tables:
    """OMOP tables of a folder, or of the only folder inside it; none found is no error.

    Raises ConfigError when one table is there twice.
    """
    junk = sum(_is_junk(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    root, (found, unread) = folder, _tables_at(folder)
    while not found:
        inner = [path for path in root.iterdir() if path.is_dir() and not _is_junk(Path(path.name))]
        if len(inner) != 1:
            break
        root = inner[0]
        found, unread = _tables_at(root)
    files = {name: tuple(str(path.relative_to(folder)) for path in paths) for name, paths in sorted(found.items())}
    gaps = tuple(f"{name}: {_listed(gap)}" for name, paths in sorted(found.items()) if (gap := _left_out(paths)))
    return Tables(folder, files, junk, tuple(str(path.relative_to(folder)) for path in sorted(unread)), gaps)


def _tables_at(root: Path) -> tuple[dict[str, list[Path]], list[Path]]:
    """Files of each table, and data files that resemble a table and are of none."""
    exact: dict[str, list[Path]] = {}
    prefixed: dict[str, dict[tuple[str, ...], list[Path]]] = {}
    unread = []
    for path in sorted(root.iterdir()):
        name = _taken_apart(path)
        if name is None or _is_junk(Path(path.name)) or not _may_be_data(path):
            continue
        if name.numbers is None or set(name.before) & {*_NOT_THE_TABLE} or not (path.is_dir() or extension(path)):
            unread.append(path)
        elif name.before:
            prefixed.setdefault(name.table, {}).setdefault(name.before, []).append(path)
        else:
            exact.setdefault(name.table, []).append(path)
    for table, groups in prefixed.items():
        if table in exact or len(groups) > 1:
            unread += [path for paths in groups.values() for path in paths]
        else:
            exact[table] = next(iter(groups.values()))
    found = {}
    for table, paths in exact.items():
        _refuse_copies(table, paths)
        found[table] = [part for path in paths for part in (_parts(path, unread) if path.is_dir() else [path])]
    return {table: paths for table, paths in found.items() if paths}, unread


def _taken_apart(path: Path) -> _Name | None:
    """None: the name resembles that of no table we read."""
    stem = path.name
    if path.is_file():
        while ending := next((end for end in _DATA if stem.lower().endswith(end)), None):
            stem = stem[: -len(ending)]
    words = [word.lower() for word in re.findall(_WORD, stem)]
    while words and words[-1] in _CODECS:
        words.pop()
    runs = [(end - start, start, end) for start in range(len(words)) for end in range(start + 1, len(words) + 1)]
    for _, start, end in sorted(runs, reverse=True):  # concept_ancestor before concept
        table = _BY_PLAIN_NAME.get("".join(words[start:end]))
        if table in _OTHERS:
            return None
        if table is not None:
            behind = words[end:]
            numbered = all(word.isdigit() or word in _PART for word in behind) and any(w.isdigit() for w in behind)
            numbers = tuple(word for word in behind if word.isdigit()) if numbered or not behind else None
            return _Name(table, tuple(words[:start]), numbers)
    return None


def _may_be_data(path: Path) -> bool:
    if path.is_dir():
        return any(file.is_file() and not _is_junk(file.relative_to(path.parent)) for file in path.rglob("*"))
    return path.name.lower().endswith(_DATA)


def _parts(folder: Path, unread: list[Path]) -> list[Path]:
    """Data files of a table's folder; others are added to `unread`, but for what writers hide (_SUCCESS, .part, .crc).

    ConfigError for a Delta table: files of its older versions lie beside those of the newest.
    """
    parts = []
    for path in sorted(folder.rglob("*")):  # which does not follow links to folders
        if path.is_dir():
            unread += [path] if path.is_symlink() else []
            continue
        below = path.relative_to(folder).parts
        if "_delta_log" in below:
            raise ConfigError(
                f"{folder}: is a Delta table, which keeps rows that were deleted since; write its newest version as "
                "plain parquet files"
            )
        hidden = any(name.startswith(("_", ".")) for name in below) or path.suffix == ".crc"
        if extension(path) and not hidden:
            parts.append(path)
        elif not hidden:
            unread.append(path)
    return parts


def _refuse_copies(table: str, paths: list[Path]) -> None:
    """ConfigError unless the files are one, or numbered parts of one table."""
    if len(paths) == 1:
        return
    numbers = [name.numbers or () for path in paths if (name := _taken_apart(path))]
    names = f"{', '.join(path.name for path in paths[:3])}{', ...' if len(paths) > 3 else ''}"
    where = f"{paths[0].parent}: table {table} is there"
    whole = [path for path, number in zip(paths, numbers) if not number]
    if whole or len(set(numbers)) < len(numbers):
        raise ConfigError(f"{where} twice ({names}); keep one of them, or put its parts into a folder {table}/")
    if all(_is_day(number[-1]) for number in numbers):
        raise ConfigError(
            f"{where} under several dates ({names}): versions or parts? Keep the one that counts, or put the parts "
            f"into a folder {table}/"
        )


def _left_out(paths: list[Path]) -> list[int]:
    """Numbers between those of the parts, or up to the N of `-of-N`; none where most are absent: they do not count."""
    numbers = [name.numbers or () for path in paths if (name := _taken_apart(path))]
    columns = list(zip(*numbers)) if len({len(its) for its in numbers}) == 1 else []
    counting = [column for column in columns if len({*column}) > 1]
    if len(paths) < 2 or len(counting) != 1:
        return []
    there = {int(number) for number in counting[0]}
    total = re.search(r"(?i)[\W_]of[\W_]*(\d+)", paths[0].name)
    first = min(*there, 1) if total else min(there)
    end = first + int(total[1]) if total else max(there) + 1
    absent = sorted({*range(first, min(end, first + _MOST_PARTS))} - there)
    return absent if len(absent) <= len(there) or total else []


def _listed(numbers: list[int]) -> str:
    more = len(numbers) - _MOST_NAMED
    return ", ".join(map(str, numbers[:_MOST_NAMED])) + (f" and {more} more" if more > 0 else "")


def _is_day(digits: str) -> bool:
    try:
        return len(digits) == 8 and 1950 <= datetime.strptime(digits, "%Y%m%d").year <= 2100
    except ValueError:
        return False


def _is_junk(relative: Path) -> bool:
    return "__MACOSX" in relative.parts or relative.name.startswith("._")


def extension(path: Path) -> str | None:
    return next((ending for ending in _EXTENSIONS if path.name.lower().endswith(ending)), None)
