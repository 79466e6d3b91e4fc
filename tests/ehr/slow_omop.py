"""Oracle: an OMOP extract as events, observation periods and a graph of codes, row by row.

Written from docs/reference/health-records.md alone.

Shares no code with `ehr`: pyarrow reads the parquet files, the standard library decides.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from datetime import date, datetime, timedelta
from pathlib import Path

import pyarrow.parquet as parquet

EPOCH = datetime(1970, 1, 1)
DAY = 86_400_000_000
START = {  # table: concept column's stem, stem of the time's columns
    "condition_occurrence": ("condition", "condition_start"),
    "drug_exposure": ("drug", "drug_exposure_start"),
    "procedure_occurrence": ("procedure", "procedure"),
    "measurement": ("measurement", "measurement"),
    "observation": ("observation", "observation"),
    "device_exposure": ("device", "device_exposure_start"),
}


def rows_of(folder: Path, table: str) -> list[dict]:
    """Rows under lower-case names; none where the file is absent or its only row is its header."""
    path = folder / f"{table}.parquet"
    if not path.exists():
        return []
    rows = [{name.lower(): cell for name, cell in row.items()} for row in parquet.read_table(path).to_pylist()]
    return [] if (rows and "column0" in rows[0]) or (rows and "column00" in rows[0]) else rows


def micro(time: date | datetime) -> int:
    moment = time if isinstance(time, datetime) else datetime(time.year, time.month, time.day)
    return (moment - EPOCH) // timedelta(microseconds=1)


def time_of(row: dict, stem: str) -> int | None:
    """The datetime, or else the date."""
    given = row.get(f"{stem}_datetime") or row.get(f"{stem}_date")
    return None if given is None else micro(given)


def concept_names(*folders: Path) -> dict[int, str]:
    return {
        int(row["concept_id"]): f"{row['vocabulary_id']}/{row['concept_code']}"
        for folder in reversed(folders)
        for row in rows_of(folder, "concept")
        if int(row["concept_id"]) != 0
    }


def slow_events(folder: Path) -> dict[int, list[tuple[int | None, str]]]:
    """{subject: [(time or None, code)]}"""
    names = concept_names(folder)
    events = {int(row["person_id"]): [] for row in rows_of(folder, "person")}

    def codes(row: dict, stem: str) -> list[str]:
        """Of the concept and of the source's, as far as they are known and differ."""
        found = [names.get(int(row.get(f"{stem}{end}_concept_id") or 0)) for end in ("", "_source")]
        return list(dict.fromkeys(code for code in found if code))

    def code(row: dict, stem: str) -> str | None:
        return next(iter(codes(row, stem)), None)

    for row in rows_of(folder, "person"):
        mine = events[int(row["person_id"])]
        mine.append((born(row), "MEDS_BIRTH"))
        sex = {8507: "GENDER//M", 8532: "GENDER//F"}.get(row["gender_concept_id"]) or code(row, "gender")
        mine += [(None, static) for static in (sex, code(row, "race"), code(row, "ethnicity")) if static]
    for table, (stem, start) in START.items():
        seen = set()
        for row in rows_of(folder, table):
            known = int(row["person_id"]) in events and time_of(row, start) is not None and codes(row, stem)
            if known and repr(row) not in seen:
                events[int(row["person_id"])] += [(time_of(row, start), each) for each in known]
                seen.add(repr(row))
    stays = {subject: [] for subject in events}
    for row in rows_of(folder, "visit_occurrence"):
        begin, end = time_of(row, "visit_start"), time_of(row, "visit_end")
        mine = events.get(int(row["person_id"]), [])
        if row["visit_concept_id"] in (9201, 262, 8717) and end is not None and end > begin:
            stays.get(int(row["person_id"]), []).append((begin, end))
        else:
            mine += [(begin, each) for each in codes(row, "visit")]
    for subject, given in stays.items():
        for begin, end in joined(given):
            events[subject] += [(begin, "HOSPITAL_ADMISSION"), (end, "HOSPITAL_DISCHARGE")]
    for row in rows_of(folder, "death"):
        events.get(int(row["person_id"]), []).append((time_of(row, "death"), "MEDS_DEATH"))
    return {subject: mine for subject, mine in events.items() if mine}


def last_moment(end: int) -> int:
    """Of a stay's last day where its end is a date."""
    return end + DAY - 1 if end % DAY == 0 else end


def joined(stays: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Those that overlap or touch as one, one pair at a time until none is left."""
    for one in range(len(stays)):
        for other in range(one):
            (a, b), (c, d) = stays[one], stays[other]
            if a <= last_moment(d) and c <= last_moment(b):
                rest = [stay for place, stay in enumerate(stays) if place not in (one, other)]
                return joined([*rest, (min(a, c), max(b, d, key=last_moment))])
    return stays


def without_placeholders(events: dict) -> dict:
    """As every MEDS data set is read: dates that stand for no date are gone, and subjects left with nothing."""
    first, last = micro(date(1900, 1, 1)), micro(date(2300, 1, 1))
    filler = {micro(date(1970, 1, 1)), micro(date(2099, 12, 31))}

    def usable(time: int | None, code: str) -> bool:
        return time is None or (first < time < last and (time not in filler or code == "MEDS_BIRTH"))

    kept = {subject: [event for event in mine if usable(*event)] for subject, mine in events.items()}
    return {subject: mine for subject, mine in kept.items() if mine}


def born(row: dict) -> int:
    if row.get("birth_datetime"):
        return micro(row["birth_datetime"])
    month, day = row.get("month_of_birth"), row.get("day_of_birth")
    return micro(date(row["year_of_birth"], month or 7, day or (15 if month else 1)))


def slow_periods(folder: Path) -> dict[int, list[tuple[int, int]]]:
    """{subject: [(start, first moment after it)]}, as written: unmerged."""
    periods = defaultdict(list)
    for row in rows_of(folder, "observation_period"):
        start = micro(row["observation_period_start_date"])
        end = micro(row["observation_period_end_date"]) + 86_400_000_000
        periods[int(row["person_id"])].append((start, end))
    return dict(periods)


def slow_parents(folder: Path) -> dict[str, set[str]]:
    """{code: direct parents} of the whole vocabulary, unpruned."""
    names = concept_names(folder)
    concepts = {int(row["concept_id"]): row for row in rows_of(folder, "concept")}
    invalid = {c for c, row in concepts.items() if row["invalid_reason"] in ("D", "U")}
    relations = [row for row in rows_of(folder, "concept_relationship") if row["invalid_reason"] not in ("D", "U")]
    levels = rows_of(folder, "concept_ancestor")
    pairs = [
        (row["concept_id_1"], row["concept_id_2"])
        for row in relations
        if row["relationship_id"] == "Maps to"
        and concepts.get(row["concept_id_1"], {"standard_concept": "S"})["standard_concept"] not in ("S", "C")
    ]
    if levels:
        near = [row for row in levels if row["min_levels_of_separation"] == 1]
        pairs += [(row["descendant_concept_id"], int(row["ancestor_concept_id"])) for row in near]
    else:
        pairs += [(r["concept_id_1"], r["concept_id_2"]) for r in relations if r["relationship_id"] == "Is a"]
    above = defaultdict(set)
    for child, parent in pairs:
        if child in names and parent in names:
            above[child].add(parent)

    def valid_above(concept: int, passed: set[int]) -> set[int]:
        """The nearest valid parents: an invalid one stands for its own."""
        found = set()
        for parent in above.get(concept, ()):
            if parent not in invalid:
                found.add(parent)
            elif parent not in passed:
                passed.add(parent)
                found |= valid_above(parent, passed)
        return found

    parents = defaultdict(set)
    for child in above:
        for parent in valid_above(child, set()):
            if names[child] != names[parent]:
                parents[names[child]].add(names[parent])
    return dict(parents)


def counted(events: dict) -> Counter:
    return Counter((subject, time, code) for subject, mine in events.items() for time, code in mine)
