"""The loops over studies, events and codes.

    events  -read->  codes of a study  -lift->  its codes and their ancestors  -count, keep->  counts, cells
    cells   -->      tasks of a study  -->      label rows

One study at a time: its table has an entry per code of the run, C codes of 9 bytes, which the processor's cache holds.
An entry costs 2-3 ns there, where arrays over all studies cost 20, sorting 50 and hash joins 200.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ehr.compiled import compiled
from ehr.passes.cells import (
    FEATURE,
    HISTORY,
    SEEN,
    TIMED,
    VISIT,
    Cells,
    Closure,
    Counts,
    Events,
    Rows,
    Scans,
    code_type,
)
from ehr.schema import DAY_US
from ehr.timeline import NEVER, last_moment, side_of_scan

_side_of_scan, _last_moment = compiled(side_of_scan), compiled(last_moment)


class _Table(NamedTuple):
    """Of one study, empty between studies."""

    state: np.ndarray  # uint8 [C], bits
    first: np.ndarray  # int64 [C] us, earliest event of the risk set; NEVER without one


def count_cells(
    events: Events, scans: Scans, closure: Closure, blackout_us: int, incident: bool
) -> tuple[Counts, Cells]:
    """What the shard's train subjects count, and the cells of its followed studies. incident: history leaves the risk
    set.
    """
    room = len(closure.begin) + len(events.code) // 3  # seldom too little
    # numpy asks for large pages, numba does not: a third of the time went into touching small ones first
    code: np.ndarray = np.empty(room, code_type(len(closure.begin) - 1))
    state, days = np.empty(room, np.uint8), np.empty(room)
    return _count_cells(events, scans, closure, blackout_us, incident, code, state, days)


@compiled
def _count_cells(
    events: Events,
    scans: Scans,
    closure: Closure,
    blackout_us: int,
    incident: bool,
    code: np.ndarray,
    state: np.ndarray,
    days: np.ndarray,
) -> tuple[Counts, Cells]:
    num_codes = len(closure.begin) - 1
    own, meant = _empty(num_codes), _empty(num_codes)
    none = np.zeros(num_codes, np.int64)
    counts = Counts(none, none.copy(), none.copy(), none.copy())
    last_patient, codes = np.full(num_codes, -1), np.empty(num_codes, np.int32)
    size, num_days = 0, 0
    count, timed = np.zeros(len(scans.subject), np.int64), np.zeros(len(scans.subject), np.int64)
    for n in range(len(scans.subject)):
        if size + num_codes > len(code):
            code, state, days = _longer(code, num_codes), _longer(state, num_codes), _longer(days, num_codes)
        _read(own, events, scans, n, blackout_us)
        _lift(meant, own, codes, closure)
        its = codes[: _found(meant, codes)]
        if scans.train[n]:
            _count(counts, last_patient, meant, its, scans, n, blackout_us, incident)
        count[n], timed[n] = _keep(meant, its, scans, n, code[size:], state[size:], days[num_days:])
        size, num_days = size + count[n], num_days + timed[n]
    return counts, Cells(count, timed, code[:size], state[:size], days[:num_days])


@compiled
def _empty(num_codes: int) -> _Table:
    return _Table(np.zeros(num_codes, np.uint8), np.full(num_codes, NEVER))


@compiled
def _longer(array: np.ndarray, least: int) -> np.ndarray:
    longer = np.empty(2 * len(array) + least, array.dtype)
    longer[: len(array)] = array
    return longer


@compiled
def _put(table: _Table, code: int, state: np.uint8, first: int) -> None:
    table.state[code] |= state
    table.first[code] = min(table.first[code], first)


@compiled
def _read(table: _Table, events: Events, scans: Scans, n: int, blackout_us: int) -> None:
    """Fills the table with the events of study n."""
    subject, index, index_last = scans.subject[n], scans.index[n], scans.index_last[n]
    for moment in range(events.begin[subject], events.begin[subject + 1]):
        start, end = events.start[moment], events.end[moment]
        side = _side_of_scan(start, end, index, index_last, blackout_us)
        visit = start <= scans.visit_last[n] and _last_moment(start, end) >= scans.visit_start[n]
        state = np.uint8(SEEN + HISTORY * (not side.after) + FEATURE * side.feature + VISIT * visit)
        first = start if side.after and start <= scans.risk_last[n] else NEVER
        for event in range(events.first[moment], events.first[moment + 1]):
            _put(table, events.code[event], state, first)


@compiled
def _found(table: _Table, codes: np.ndarray) -> int:
    """Writes the table's codes to the beginning of `codes`, ascending; their number.

    Without a branch, which the processor would guess wrongly thousands of times a study: .4 ns an entry.
    """
    size = 0
    for code in range(len(table.state)):
        codes[size] = code
        size += table.state[code] != 0
    return size


@compiled
def _lift(meant: _Table, own: _Table, codes: np.ndarray, closure: Closure) -> None:
    """Fills `meant` with everything that the codes mean; empties `own`."""
    for code in codes[: _found(own, codes)]:
        for place in range(closure.begin[code], closure.begin[code + 1]):
            _put(meant, closure.ancestor[place], own.state[code], own.first[code])
        own.state[code], own.first[code] = 0, NEVER


@compiled
def _count(
    counts: Counts,
    last_patient: np.ndarray,
    table: _Table,
    codes: np.ndarray,
    scans: Scans,
    n: int,
    blackout_us: int,
    incident: bool,
) -> None:
    """Adds train study n, whose codes these are."""
    subject, end = scans.subject[n], scans.risk_last[n]
    first_study = n == 0 or scans.subject[n - 1] != subject
    followed_us = (end - scans.index[n] - blackout_us) * scans.followed[n]
    for code in codes:
        history = incident and table.state[code] & HISTORY != 0
        event = table.first[code] != NEVER and not history
        counts.subjects[code] += first_study
        counts.events[code] += event
        counts.patients[code] += event and last_patient[code] != subject
        counts.lost_us[code] += history * followed_us + event * (end - table.first[code])
        last_patient[code] = subject if event else last_patient[code]


@compiled
def _keep(
    table: _Table, codes: np.ndarray, scans: Scans, n: int, kept: np.ndarray, state: np.ndarray, days: np.ndarray
) -> tuple[int, int]:
    """Write the state of the codes in study n to the beginning of the arrays and empty the table.

    Returns the numbers of cells and of days.
    """
    size, timed = 0, 0
    for code in codes:
        event = table.first[code] != NEVER
        kept[size], state[size] = code, table.state[code] | TIMED * event
        days[timed] = (table.first[code] - scans.index[n]) / DAY_US
        size += scans.followed[n] and (event or table.state[code] > SEEN)
        timed += scans.followed[n] and event
        table.state[code], table.first[code] = 0, NEVER
    return size, timed


def task_rows(cells: Cells, task_of: np.ndarray, num_tasks: int) -> Rows:
    """Tasks with an event in the risk set, with history, of the visit; and all codes that are features.

    task_of: int32 [C], the task of every code or -1.
    """
    event, event_days = np.empty(len(cells.days), np.int32), np.empty(len(cells.days), np.float64)
    history, visit = np.empty(len(cells.code), np.int32), np.empty(len(cells.code), np.int32)
    past = np.empty(len(cells.code), cells.code.dtype)
    rows = _task_rows(cells, task_of, num_tasks, event, event_days, history, visit, past)
    return Rows(*(column.copy() for column in rows))  # the rows stay, the room they did not need does not


@compiled
def _task_rows(
    cells: Cells,
    task_of: np.ndarray,
    num_tasks: int,
    event: np.ndarray,
    event_days: np.ndarray,
    history: np.ndarray,
    visit: np.ndarray,
    past: np.ndarray,
) -> Rows:
    length, size = np.zeros((4, len(cells.count)), np.int64), np.zeros(4, np.int64)
    state_K, days_K = np.zeros(num_tasks, np.uint8), np.zeros(num_tasks, np.float64)  # of one study
    begin, timed = 0, 0
    for n in range(len(cells.count)):
        length[:, n] -= size
        for cell in range(begin, begin + cells.count[n]):
            code, state = cells.code[cell], cells.state[cell]
            task = task_of[code]
            if task >= 0:
                state_K[task] = state
            if state & FEATURE:
                past[size[3]] = code
                size[3] += 1
            if state & TIMED:
                if task >= 0:
                    days_K[task] = cells.days[timed]
                timed += 1
        begin += cells.count[n]
        for task in np.flatnonzero(state_K):  # the codes are in string order, the tasks in that of their scores
            if state_K[task] & TIMED:
                event[size[0]], event_days[size[0]] = task, days_K[task]
                size[0] += 1
            if state_K[task] & HISTORY:
                history[size[1]] = task
                size[1] += 1
            if state_K[task] & VISIT:
                visit[size[2]] = task
                size[2] += 1
        state_K[:] = 0
        length[:, n] += size
    return Rows(length, event[: size[0]], history[: size[1]], visit[: size[2]], past[: size[3]], event_days[: size[0]])
