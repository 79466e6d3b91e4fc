"""Oracle: labels by plain Python loops, one event, task and study at a time (rules: docs/reference/label-rules.md).

Shares no code with `ehr` (pyarrow reads, the standard library decides). Clock times are integer microseconds.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from datetime import date, datetime, timedelta
from pathlib import Path

import pyarrow.parquet as parquet

DAY = 86_400_000_000
EPOCH = datetime(1970, 1, 1)


def micro(time: datetime) -> int:
    return (time - EPOCH) // timedelta(microseconds=1)


def read_folder(folder: Path) -> tuple[dict, dict]:
    """Events {subject: [(time or None, code)]} and parents {code: set of codes}."""
    events = defaultdict(list)
    for path in sorted(Path(folder).glob("data/**/*.parquet")):
        table = parquet.read_table(path, columns=["subject_id", "time", "code"])
        for subject, time, code in zip(*(table[name].to_pylist() for name in ("subject_id", "time", "code"))):
            if code:
                code = code.split("//")[0] if code.startswith(("MEDS_DEATH//", "MEDS_BIRTH//")) else code
                events[subject].append((None if time is None else micro(time), code))
    parents = defaultdict(set)
    metadata = Path(folder) / "metadata" / "codes.parquet"
    if metadata.exists():
        for row in parquet.read_table(metadata, columns=["code", "parent_codes"]).to_pylist():
            parents[row["code"]] |= {p for p in row["parent_codes"] or [] if p and p != row["code"]}
    return dict(events), dict(parents)


def icd_parent(code: str) -> str | None:
    """The ICD code with one character less, down to the category."""
    for prefix in ("ICD10CM/", "ICD10/", "ICD9CM/", "ICD9/", "DIAGNOSIS//ICD//10//", "DIAGNOSIS//ICD//9//"):
        if code.startswith(prefix) and "/" not in code[len(prefix) :]:
            body = code[len(prefix) :]
            if prefix.startswith("ICD9") and body.isdigit():  # 0066 may be the procedure 00.66
                return None
            category = 4 if "9" in prefix and body.startswith("E") else 3
            if len(body) > category:
                return prefix + body[:-1].rstrip(".")
    return None


def with_icd(parents: dict, codes: set[str]) -> dict:
    """Parents of ICD codes that have none, at any level."""
    parents, waiting = dict(parents), codes | set(parents) | {p for above in parents.values() for p in above}
    while waiting:
        code = waiting.pop()
        if not parents.get(code) and icd_parent(code):
            parents[code] = {icd_parent(code)}
            waiting.add(icd_parent(code))
    return parents


def ancestors(code: str, parents: dict) -> set[str]:
    """The code and everything above it."""
    found, waiting = set(), [code]
    while waiting:
        current = waiting.pop()
        if current not in found:
            found.add(current)
            waiting.extend(parents.get(current, ()))
    return found


class Event:
    """An interval [start, end) of a date, or a point with start == end; a date-only death is its day's end."""

    def __init__(self, time: int, code: str, date_only: str):
        clock = (EPOCH + timedelta(microseconds=time)).strftime("%H:%M:%S.%f")
        day_ends = clock == "23:59:00.000000" or clock.startswith("23:59:59")
        bare = date_only != "never" and (clock == "00:00:00.000000" or (date_only == "day_end" and day_ends))
        day = time // DAY * DAY
        self.code, self.start, self.end = code, day if bare else time, day + DAY if bare else time
        if code == "MEDS_DEATH":
            self.start = self.end

    def after(self, scan: dict, blackout: int) -> bool:
        """Certainly later than t0 + blackout."""
        if scan["date_only"]:  # t0 is any moment of [day, next day)
            return self.start >= scan["t0"] + DAY + blackout
        return self.start > scan["t0"] + blackout

    def known(self, scan: dict) -> bool:
        """Certainly at or before t0."""
        return self.end <= scan["t0"]


def observed_until(periods: list[tuple[int, int]], t0: int) -> int | None:
    """End of the observation that holds t0, through every period that goes on where another ends."""
    end = max((stop for start, stop in periods if start <= t0 < stop), default=None)
    while end is not None and any(start <= end < stop for start, stop in periods):
        end = max(stop for start, stop in periods if start <= end < stop)
    return end


def last_day_end(cutoff: str) -> int:
    return micro(datetime.combine(date.fromisoformat(cutoff) + timedelta(days=1), datetime.min.time()))


def end_of_extract(raw: dict, studies: list[dict], cutoff: str | None) -> int:
    """First moment after the last day with records; later ones are mistakes. A cutoff date may lie later."""
    last = {
        s: max(t for t, _ in events if t is not None)
        for s, events in raw.items()
        if any(t is not None for t, _ in events)
    }
    scanned = [(s["subject_id"], micro(s["study_time"])) for s in studies]
    end = max(last.values())
    for bound in sorted(last.values(), reverse=True):  # the lowest gap is tried last, and wins
        later = {s: t for s, t in last.items() if t > bound}
        gap = min(later.values(), default=bound) - bound > 3650 * DAY
        few = 20 * len({t // DAY for t in later.values()}) <= len(last) and 2 * len(later) <= len(last)
        if gap and few and not any(s in later and t0 > bound for s, t0 in scanned):
            end = bound
    end = (end // DAY + 1) * DAY
    return max(end, last_day_end(cutoff)) if cutoff else end


def end_of_follow_up(
    events: list[Event], latest: int, followup: str | list, cutoff: str | None, undated: bool
) -> tuple[int | None, bool]:
    """C and whether death set it. followup: the rule's name, or [the subject's periods, t0].

    events, latest: within the extract. undated: the subject has died, and only that is known.
    """
    deaths = [e.start for e in events if e.code == "MEDS_DEATH"]
    if isinstance(followup, list):
        end = observed_until(*followup)
        if end is None:
            return None, False
    elif followup == "last_event":
        end = max((e.end for e in events), default=None)
    elif followup == "cutoff":
        end = last_day_end(cutoff)
    else:
        end = latest
    if undated:
        end = min([end, max(e.end for e in events)]) if events else None
    if deaths and (end is None or min(deaths) <= end):
        return min(deaths), True
    return end, False


def own_stay(events: list[Event], scan: dict) -> tuple[int, int] | None:
    """First and last moment of the hospital stay that holds the scan."""
    t0_last = scan["t0"] + (DAY - 1 if scan["date_only"] else 0)
    entries = sorted({e.start for e in events if e.code.startswith("HOSPITAL_ADMISSION")})
    leaves = sorted({(max(e.start, e.end - 1), e.start) for e in events if e.code.startswith("HOSPITAL_DISCHARGE")})
    earlier = [entry for entry in entries if entry <= t0_last]
    # an admission that was never closed before the next one is no stay; a date may close it on the next one's day
    for entry in reversed(earlier):
        following = [e for e in entries if e > entry]
        closing = [leave for leave in leaves if leave[0] >= entry]
        if not closing or (following and closing[0][1] > following[0]):
            continue
        return (entry, closing[0][0]) if closing[0][0] >= scan["t0"] else None
    return None


def in_visit(event: Event, scan: dict, stay: tuple[int, int] | None, censor: int) -> bool:
    day = scan["t0"] // DAY * DAY
    first, last = stay or (day, day + DAY - 1)
    event_last = event.end - 1 if event.end > event.start else event.start
    return event_last >= first and event.start <= min(last, censor)


def label_study(scan: dict, events: list[Event], blackout: int, end: tuple, closure: dict) -> dict | None:
    """{task code: ...} of every code, or None without follow-up."""
    censor, died = end
    if censor is None or not _point(censor).after(scan, blackout):
        return None
    stay = own_stay(events, scan)
    first, history, past, visit = {}, set(), set(), set()
    for event in events:
        after, known, here = event.after(scan, blackout), event.known(scan), in_visit(event, scan, stay, censor)
        for code in closure[event.code]:
            if not after:
                history.add(code)
            elif event.start <= censor:
                first[code] = min(first.get(code, event.start), event.start)
            if known:
                past.add(code)
            if here:
                visit.add(code)

    days = {code: (time - scan["t0"]) / DAY for code, time in first.items()}
    return {
        "censor": (censor - scan["t0"]) / DAY,
        "censor_us": censor,
        "died": died,
        "stay": stay,
        "events": days,
        "history": history,
        "past": past,
        "visit": visit,
    }


def _point(time: int) -> Event:
    return Event(time, "", "never")


def prevalence(events: dict, parents: dict, subjects: list[int]) -> dict[str, float]:
    count = defaultdict(int)
    for subject in subjects:
        codes = set()
        for _, code in events[subject]:
            codes |= ancestors(code, parents)
        for code in codes:
            count[code] += 1
    return {code: n / len(subjects) for code, n in count.items()}


def direct_parents(code: str, parents: dict, kept: set[str]) -> set[str]:
    """Nearest kept ancestors."""
    found, walked, waiting = set(), set(), list(parents.get(code, ()))
    while waiting:
        current = waiting.pop()
        if current in walked:
            continue
        walked.add(current)
        if current in kept:
            found.add(current)
        else:
            waiting.extend(parents.get(current, ()))
    return found - {code}


def score(p: float, b: float) -> float | None:
    w = min(1.0, p / b)
    return None if w <= 0 or w >= 1 else b * (w * math.log(w) + (1 - w) * math.log(1 - w))


def rank(events: dict, parents: dict, subjects: list[int]) -> dict[str, tuple[float, float | None]]:
    """{code: (prevalence, score)} of the pruned ontology."""
    p = prevalence(events, parents, subjects)
    seen = {code for subject in subjects for _, code in events[subject]}
    kept = {c for c in p if c in seen or c.split("/")[0] not in ("SPL", "ATC", "HemOnc", "LOINC")}
    result = {}
    for code in kept:
        b = min([1.0, *(p[q] for q in direct_parents(code, parents, kept))])
        result[code] = (p[code], score(p[code], b))
    return result


def matches(patterns: list[str], code_closure: set[str]) -> bool:
    return any(
        c == pattern or (pattern.endswith("*") and c.startswith(pattern[:-1]))
        for pattern in patterns
        for c in code_closure
    )


def outcome(rule: dict, scan: dict, label: dict, mine: list[Event], blackout: int, unknown: bool) -> dict:
    """event, competing, time, history of one phenotype of one study; `mine` are the phenotype's own events.

    unknown: the subject died, nobody knows when, and death is what the phenotype asks for.
    """
    if rule.get("kind") == "diagnosis":
        lo, hi = (round(d * DAY) for d in rule.get("window_days", [-1, 1]))
        shift = DAY - 1 if scan["date_only"] else 0
        hit = any(e.start >= scan["t0"] + shift + lo and e.end <= scan["t0"] + hi for e in mine)
        happened = True if hit else None if unknown else False
        return {
            "kind": "diagnosis", "event": happened, "competing": False, "time": None, "history": False,
            "unknown": unknown,
        }  # fmt: skip
    entry = max(blackout, round((rule.get("start_days") or 0) * DAY))
    times = []
    for event in mine:
        outside = not rule.get("after_stay") or label["stay"] is None or event.start > label["stay"][1]
        if event.after(scan, entry) and outside and event.start <= label["censor_us"]:
            times.append(event.start)
    history = not rule.get("after_stay") and any(not e.after(scan, entry) for e in mine)
    time = (min(times) - scan["t0"]) / DAY if times else label["censor"]
    competing = not times and label["died"]
    return {
        "kind": "prognosis", "event": bool(times), "competing": competing, "time": time, "history": history,
        "unknown": unknown,
    }  # fmt: skip


def binary_label(result: dict, horizon: float | None, death_before_horizon: str) -> bool | None:
    if result["kind"] == "diagnosis":
        return result["event"]
    if result["event"] and (horizon is None or result["time"] <= horizon):
        return True
    if horizon is None or result["unknown"]:
        return None
    if result["time"] >= horizon:
        return False
    return False if result["competing"] and death_before_horizon == "negative" else None


def percentile(values: list[float], q: float) -> float:
    """Linear interpolation between order statistics."""
    ordered = sorted(values)
    place = q / 100 * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def slow_labels(
    folder: Path | None, studies: list[dict], phenotypes: dict[str, dict], config: dict,
    records: tuple[dict, dict] | None = None, periods: dict | None = None,
) -> dict:  # fmt: skip
    """studies: study_id, subject_id, study_time, date_only, split. config: EhrConfig's fields by name.

    records: events and parents as read_folder gives them, instead of a folder; periods: {subject: [(start, end)]}.

    Returns rows {study_id: label_study}, tasks [dict], edges, phenotypes {(study, name, horizon): ...}, people.
    """
    raw, parents = records or read_folder(folder)
    parents = with_icd(parents, {code for events in raw.values() for _, code in events})
    blackout, rule = round(config["blackout_days"] * DAY), config["date_only"]
    closure = {code: ancestors(code, parents) for events in raw.values() for _, code in events}
    until = end_of_extract(raw, studies, config["cutoff_date"])
    timed = {s: [Event(t, c, rule) for t, c in events if t is not None and t < until] for s, events in raw.items()}
    latest = min(until, max(t for events in raw.values() for t, _ in events if t is not None))
    died = {s for s, events in raw.items() for _, code in events if code == "MEDS_DEATH"}
    undated = died - {s for s, events in timed.items() for e in events if e.code == "MEDS_DEATH"}
    scans = [{**s, "t0": micro(s["study_time"])} for s in studies if s["subject_id"] in raw]

    mine, scanned = {}, {scan["subject_id"] for scan in scans}
    for name, phenotype in phenotypes.items():
        meant = {code for code, above in closure.items() if matches(phenotype["codes"], above)}
        if not any(code in meant for subject in scanned for _, code in raw[subject]):
            continue  # whether it happened cannot be known
        mine |= {(subject, name): [e for e in events if e.code in meant] for subject, events in timed.items()}

    rows, results, people = {}, {}, {}

    for scan in scans:
        subject = scan["subject_id"]
        observed = config["followup"] == "observation_period"
        rule = [(periods or {}).get(subject, []), scan["t0"]] if observed else config["followup"]
        end = end_of_follow_up(timed[subject], latest, rule, config["cutoff_date"], subject in undated)
        if observed and end[0] is not None and config["period_end"] == "last_event":
            own = next(stop for start, stop in periods[subject] if start <= scan["t0"] < stop)
            last = max((e.end for e in timed[subject] if e.end <= own), default=0)
            end = (min(end[0], last), end[1])
        end = (None if end[0] is None else min(end[0], until), end[1])
        row = label_study(scan, timed[subject], blackout, end, closure)
        if row is not None:
            rows[scan["study_id"]] = row
            people[scan["study_id"]] = person(raw[subject], scan["t0"], config["date_only"])
        for name, phenotype in phenotypes.items():
            unanswered = row is None and (phenotype.get("kind") != "diagnosis" or (observed and end[0] is None))
            if (subject, name) not in mine or unanswered:
                continue
            mortal = any(matches(phenotype["codes"], closure[c]) for c in closure if c == "MEDS_DEATH")
            result = outcome(phenotype, scan, row, mine[subject, name], blackout, mortal and subject in undated)
            usual = "exclude" if config["recurrence"] == "incident" else "keep"
            if result["history"] and (phenotype.get("prevalent") or usual) == "exclude":
                continue
            horizons = [] if result["kind"] == "diagnosis" else phenotype.get("horizons_days", [])
            for horizon in [*horizons, None]:
                rule_of_death = phenotype.get("death_before_horizon") or config["death_before_horizon"]
                label = binary_label(result, horizon, rule_of_death)
                results[scan["study_id"], name, horizon] = {**result, "label": label}

    train = [s for s in scans if s["split"] == "train"]
    ranked = rank(raw, parents, sorted({s["subject_id"] for s in train}))
    labelled = [(s, rows[s["study_id"]]) for s in train if s["study_id"] in rows]
    tasks = choose(ranked, labelled, phenotypes, parents, closure, config)
    times = [row["events"][t["code"]] for t in tasks for _, row in labelled if counts(row, t["code"], config)]
    bins = config["num_bins"]
    edges = sorted({percentile(times, 100 * i / bins) for i in range(1, bins)}) if times else []
    return {"rows": rows, "tasks": tasks, "edges": [0.0, *edges, math.inf], "phenotypes": results, "people": people}


def counts(row: dict, code: str, config: dict) -> bool:
    """Whether the row has an event of the code in the risk set."""
    return code in row["events"] and not (config["recurrence"] == "incident" and code in row["history"])


def choose(ranked: dict, labelled: list, phenotypes: dict, parents: dict, closure: dict, config: dict) -> list[dict]:
    every = {c: ancestors(c, parents) for c in {*ranked, *closure, *parents, *(config["exclude"] or [])}}
    hiding = [p for p in phenotypes.values() if config["exclude_phenotypes"] or p.get("kind") == "diagnosis"]
    hidden = [c for p in hiding for c in [*p["codes"], *p.get("twins", [])]]
    roots = {c for c in every if c in (config["exclude"] or []) or matches(hidden, {c})}
    up = {a for c in roots for a in ancestors(c, parents)}
    banned = up | {c for c, above in every.items() if above & roots}
    table = []
    for code, (p, s) in ranked.items():
        hits = [(scan["subject_id"], row) for scan, row in labelled if counts(row, code, config)]
        who = {subject for subject, _ in hits}
        at_risk = 0.0
        for _, row in labelled:
            if config["recurrence"] == "incident" and code in row["history"]:
                continue
            at_risk += row["events"].get(code, row["censor"]) - config["blackout_days"]
        task = {"code": code, "prevalence": p, "score": s, "events": len(hits), "patients": len(who), "who": who}
        task["rate"] = len(hits) / at_risk if at_risk else None
        table.append(task)
    pinned = [t for t in table if t["code"] == "MEDS_DEATH" and t["events"]]
    rest = [
        t
        for t in table
        if t["code"] != "MEDS_DEATH" and t["events"] >= config["min_events"] and t["patients"] >= config["min_patients"]
        and t["code"] not in banned and t["score"] is not None
    ]  # fmt: skip
    chosen = list(pinned)
    for task in sorted(rest, key=lambda t: (round(t["score"], 12), t["code"])):
        bound = config["max_task_overlap"]
        twin = bound is not None and any(overlap(task["who"], other["who"]) > bound for other in chosen)
        if not twin and len(chosen) < len(pinned) + config["num_tasks"]:
            chosen.append(task)
    return chosen


def overlap(one: set, other: set) -> float:
    """Jaccard."""
    return len(one & other) / len(one | other)


def person(events: list, t0: int, date_only: str) -> dict:
    births = [Event(t, "", date_only).start for t, c in events if c == "MEDS_BIRTH" and t is not None]
    sexes = {m[2][0].upper() for _, c in events if (m := re.fullmatch(r"(?i)(gender|sex)//?(m|f|male|female)", c))}
    age = (t0 - min(births)) / (365.25 * DAY) if births and max(births) - min(births) <= 366 * DAY else None
    return {
        "age": age if age is not None and 0 <= age <= 120 else None,
        "sex": sexes.pop() if len(sexes) == 1 else None,
    }
