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


def no_date(time: int, birth: bool = False) -> bool:
    """Whether a written time stands for none: before 1900-01-02, from 2300 on, 1970-01-01 or 2099-12-31 as dates."""
    if time < micro(date(1900, 1, 2)) or time >= micro(date(2300, 1, 1)):
        return True
    bare = time % DAY in (0, DAY - 60_000_000) or time % DAY >= DAY - 1_000_000
    filler = time - time % DAY in (micro(date(1970, 1, 1)), micro(date(2099, 12, 31)))
    return filler and bare and not birth


def time_of(row: dict, stem: str) -> int | None:
    """The datetime, or else the date, of those that are usable; the date where they lie more than a day apart."""
    cells = [row.get(f"{stem}_{kind}") for kind in ("datetime", "date")]
    exact, day = (None if cell is None or no_date(micro(cell)) else micro(cell) for cell in cells)
    if exact is not None and day is not None and abs(exact // DAY - day // DAY) > 1:
        return day
    return day if exact is None else exact


def concept_names(*folders: Path) -> dict[int, str]:
    return {
        int(row["concept_id"]): f"{row['vocabulary_id']}/{row['concept_code']}"
        for folder in reversed(folders)
        for row in rows_of(folder, "concept")
        if int(row["concept_id"]) != 0
    }


def inpatient_concepts(folder: Path, listed: tuple[int, ...]) -> set[int]:
    """9201, 262, 8717 and the listed ones; what lies below them; what maps to one of these, through others too."""
    found = {9201, 262, 8717, *listed}
    relations = [row for row in rows_of(folder, "concept_relationship") if row["invalid_reason"] not in ("D", "U")]
    levels = rows_of(folder, "concept_ancestor")
    found |= {row["descendant_concept_id"] for row in levels if int(row["ancestor_concept_id"]) in found}
    up = {"Maps to"} if levels else {"Maps to", "Is a"}
    pairs = [(row["concept_id_1"], row["concept_id_2"]) for row in relations if row["relationship_id"] in up]
    while more := {child for child, parent in pairs if parent in found} - found:
        found |= more
    return found - {0}


def visit_stays(folder: Path, listed: tuple[int, ...]) -> tuple[dict[int, list], list[dict]]:
    """{subject: [(start, end or None)]} of all tables, and the rows of visit_occurrence that are no stays."""
    inside, names = inpatient_concepts(folder, listed), concept_names(folder)
    starts = [time_of(row, stem) for table, (_, stem) in START.items() for row in rows_of(folder, table)]
    tables = {"visit_occurrence": "visit", "visit_detail": "visit_detail"}
    starts += [time_of(row, f"{stem}_start") for table, stem in tables.items() for row in rows_of(folder, table)]
    starts += [time_of(row, "death") for row in rows_of(folder, "death")]
    latest = max((start for start in starts if start is not None), default=0)
    stays, others = defaultdict(list), []
    for table, stem in tables.items():
        for row in rows_of(folder, table):
            concept, source = (int(row.get(f"{stem}{of}_concept_id") or 0) for of in ("", "_source"))
            decides = concept if concept in inside or concept in names else source
            begin, end = time_of(row, f"{stem}_start"), time_of(row, f"{stem}_end")
            bare = begin is not None and end is not None and (begin % DAY == 0 or end % DAY == 0)
            backwards = (
                begin is not None and end is not None and (end // DAY < begin // DAY or (end < begin and not bare))
            )
            if backwards or (end is not None and end > latest + 365 * DAY):
                end = None
            inpatient = decides in inside or source in listed
            if begin is None or not inpatient or (end is not None and end <= begin):
                others += [row] * (table == "visit_occurrence")
            else:
                stays[int(row["person_id"])].append((begin, end))
    return stays, others


def slow_events(folder: Path, listed: tuple[int, ...] = ()) -> dict[int, list[tuple[int | None, str]]]:
    """{subject: [(time or None, code)]}; listed: further concepts of inpatient visits."""
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
        mine += [(born(row), "MEDS_BIRTH")] * (born(row) is not None)
        sex = {8507: "GENDER//M", 8532: "GENDER//F"}.get(row["gender_concept_id"]) or code(row, "gender")
        mine += [(None, static) for static in (sex, code(row, "race"), code(row, "ethnicity")) if static]
    for table, (stem, start) in START.items():
        seen = set()
        for row in rows_of(folder, table):
            known = int(row["person_id"]) in events and time_of(row, start) is not None and codes(row, stem)
            if known and repr(row) not in seen:
                events[int(row["person_id"])] += [(time_of(row, start), each) for each in known]
                seen.add(repr(row))
    stays, others = visit_stays(folder, listed)
    for row in others:
        begin = time_of(row, "visit_start")
        if begin is not None:
            events.get(int(row["person_id"]), []).extend((begin, each) for each in codes(row, "visit"))
    for subject, given in stays.items():
        for begin, end in joined(given) if subject in events else ():
            events[subject].append((begin, "HOSPITAL_ADMISSION"))
            events[subject] += [(end, "HOSPITAL_DISCHARGE")] * (end is not None)
    deaths = defaultdict(list)
    for row in rows_of(folder, "death"):
        deaths[int(row["person_id"])].append(time_of(row, "death"))
    for row in rows_of(folder, "person"):  # CDM 6.0
        cell = row.get("death_datetime")
        if cell is not None and not no_date(micro(cell)):
            deaths[int(row["person_id"])].append(micro(cell))
    for subject, times in deaths.items():
        dated = [time for time in times if time is not None]
        events.get(subject, []).extend((time, "MEDS_DEATH") for time in dated or times)
    return {subject: mine for subject, mine in events.items() if mine}


def last_moment(stay: tuple[int, int | None]) -> int:
    """Of a stay's last day where its end is a date; one without an end is over as it starts."""
    end = stay[0] if stay[1] is None else stay[1]
    return end + DAY - 1 if end % DAY == 0 else end


def joined(stays: list[tuple[int, int | None]]) -> list[tuple[int, int | None]]:
    """Those that overlap or touch as one, one pair at a time until none is left."""
    for one in range(len(stays)):
        for other in range(one):
            pair = stays[one], stays[other]
            if pair[0][0] <= last_moment(pair[1]) and pair[1][0] <= last_moment(pair[0]):
                rest = [stay for place, stay in enumerate(stays) if place not in (one, other)]
                closed = [stay for stay in pair if stay[1] is not None]
                end = max(closed, key=last_moment)[1] if closed else None
                return joined([*rest, (min(pair[0][0], pair[1][0]), end)])
    return stays


def without_placeholders(events: dict) -> dict:
    """As every MEDS data set is read: dates that stand for no date are gone, and subjects left with nothing."""
    kept = {
        subject: [(t, code) for t, code in mine if t is None or not no_date(t, code == "MEDS_BIRTH")]
        for subject, mine in events.items()
    }
    return {subject: mine for subject, mine in kept.items() if mine}


def born(row: dict) -> int | None:
    """birth_datetime where it is usable (1970-01-01 and 2099-12-31 are if the year says so too), else the parts."""
    year, month, day = (row.get(f"{part}_of_birth") for part in ("year", "month", "day"))
    try:
        parts = micro(date(year, month or 7, day or (15 if month else 1)))
    except (TypeError, ValueError):
        parts = None
    parts = None if parts is None or no_date(parts, True) else parts
    exact = row.get("birth_datetime")
    if exact is not None and not no_date(micro(exact), parts is None or exact.year == year):
        return micro(exact)
    return parts


def slow_periods(folder: Path, listed: tuple[int, ...] = ()) -> dict[int, list[tuple[int, int]]]:
    """{subject: [(start, first moment after it)]}, as written: unmerged; without an end to the last record."""
    periods, events = defaultdict(list), None
    for row in rows_of(folder, "observation_period"):
        subject = int(row["person_id"])
        start, end = (time_of(row, f"observation_period_{of}") for of in ("start", "end"))
        if start is None:  # 1900-01-01: from the beginning
            start = micro(row["observation_period_start_date"])
        if end is None:
            events = slow_events(folder, listed) if events is None else events
            times = [time for time, _ in events.get(subject, []) if time is not None]
            end = max((time + DAY if time % DAY == 0 else time for time in times), default=start)
        elif end % DAY == 0:
            end += DAY
        if end > start:
            periods[subject].append((start, end))
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
