"""The published design, re-created: a timeline of event objects per patient, a Python loop per event and ancestor.

As in FEMR's SurvivalCalculator (the library behind the reference): every event's codes are lifted by a cached set of
ancestors, all times of every task are kept in lists, and the events before the scan are taken off again. The reference
does this anew for every CT at every training step. Blackout and end of follow-up are ours, so that labels compare.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime, timedelta

DAY = timedelta(days=1)


@dataclass
class Event:
    time: datetime
    code: str


class Ontology:
    """Ancestors of a code, itself included, walked when they are first asked for."""

    def __init__(self, parents: dict[str, list[str]]):
        self.parents, self.known = parents, {}

    def all_parents(self, code: str) -> set[str]:
        if code not in self.known:
            found = {code}
            for parent in self.parents.get(code, ()):
                found |= self.all_parents(parent)
            self.known[code] = found
        return self.known[code]


def event_objects(times: list[datetime | None], codes: list[str]) -> list[Event]:
    return [Event(time, code) for time, code in zip(times, codes) if time is not None]


def label(events: list[Event], study_time: datetime, ontology: Ontology, tasks: set[str], blackout: timedelta) -> dict:
    """{task: days to its first event after study_time + blackout}, up to a death; events in the order of time."""
    future, survival = defaultdict(list), []
    death = min((event_end(e) for e in events if e.code == "MEDS_DEATH"), default=datetime.max)
    for event in events:
        means = {parent for parent in ontology.all_parents(event.code) if parent in tasks}
        time = event_end(event) if event.code == "MEDS_DEATH" else event.time
        if time > death:
            continue
        for code in means:
            future[code].append(time)
        survival.append((time, means))
    for times in future.values():
        times.reverse()
    survival.reverse()
    while survival and survival[-1][0] <= study_time + blackout:
        for code in survival.pop()[1]:
            future[code].pop()
    return {code: (min(times) - study_time) / DAY for code, times in future.items() if times}


def event_end(event: Event) -> datetime:
    """A date lasts until the next midnight."""
    return event.time + DAY if event.time.time() == datetime.min.time() else event.time
