"""Which quotation marks of a delimited text quote, and which are text: one compiled pass over its bytes.

    1,"two, or               a cell that begins with a mark is quoted if its mark is closed: doubled marks are text,
    three",7                 and behind the closing one comes a delimiter or the end of the line
    2,"Needle 5,7            not closed: the mark is text
    3,"Needle" 5,7           closed before other text: both marks are text

A record must have as many cells as the header. If it only does with all its marks as text, they are text. A quoted cell
may span lines; but where its first and last line, or most of several between, have the header's number of cells by
themselves, a stray mark may have swallowed them: nothing in the file decides, and the file is refused (not if the
header is quoted: then every text is).
"""

from __future__ import annotations

import numpy as np

from ehr.compiled import compiled

LONGEST_CELL = 1 << 20  # bytes; what is not closed by then is not closed
SOUND, CELLS, SWALLOWED, BACKSLASH = 0, 1, 2, 3  # what is wrong with a record
_QUOTED, _LINE, _LITERAL = 0, 1, 2  # readings: marks may span lines; close on their line; are text
_QUOTE, _BACKSLASH, _LF, _CR = 34, 92, 10, 13


@compiled
def _closing(text: np.ndarray, start: int, delimiter: int, spans: bool, final: bool) -> int:
    """Where the mark that opens a cell at `start` is closed; -1: it is not, -2: more text is needed to know."""
    at, size = start + 1, len(text)
    while at < size and at - start < LONGEST_CELL:
        byte = text[at]
        if byte == _QUOTE:
            if at + 1 == size:
                return at if final else -2
            behind = text[at + 1]
            if behind == _QUOTE:
                at += 2
                continue
            return at if behind in (delimiter, _LF, _CR) else -1
        if not spans and byte in (_LF, _CR):
            return -1
        at += 1
    return -1 if final or at < size or at - start >= LONGEST_CELL else -2


@compiled
def _read(
    text: np.ndarray, start: int, delimiter: int, reading: int, final: bool, begins: np.ndarray, ends: np.ndarray
) -> tuple[int, int, int, bool, int]:
    """cells, end (behind the line's end; -1: not in the text), start of the last line if a cell spans lines (else -1),
    whether a cell begins with a mark, and how many of those are text (from `begins` to `ends`)."""
    at, size, cells, last_line, marked, literal = start, len(text), 1, -1, False, 0
    opening = True
    while at < size:
        byte = text[at]
        if opening and byte == _QUOTE:
            marked = True
            closing = -1 if reading == _LITERAL else _closing(text, at, delimiter, reading == _QUOTED, final)
            if closing == -2:
                return cells, -1, last_line, marked, literal
            if closing >= 0:
                for inside in range(at, closing):
                    if text[inside] == _LF or (text[inside] == _CR and text[inside + 1] != _LF):
                        last_line = inside + 1
                at, opening = closing + 1, False
                continue
            begins[literal] = at
            at += 1
            while at < size and text[at] != delimiter and text[at] != _LF and text[at] != _CR:
                at += 1
            ends[literal] = at
            literal, opening = literal + 1, False
            continue
        opening = False
        if byte == delimiter:
            cells, opening = cells + 1, True
        elif byte == _LF:
            return cells, at + 1, last_line, marked, literal
        elif byte == _CR:
            if at + 1 == size and not final:
                return cells, -1, last_line, marked, literal
            behind = at + 2 if at + 1 < size and text[at + 1] == _LF else at + 1
            return cells, behind, last_line, marked, literal
        at += 1
    return cells, size if final else -1, last_line, marked, literal


@compiled
def _fits(text: np.ndarray, start: int, delimiter: int, num_cells: int, begins: np.ndarray, ends: np.ndarray) -> bool:
    """Whether the line has the header's number of cells by itself."""
    return _read(text, start, delimiter, _LINE, True, begins, ends)[0] == num_cells


@compiled
def _swallowed(
    text: np.ndarray, start: int, last_line: int, delimiter: int, num_cells: int, begins: np.ndarray, ends: np.ndarray
) -> bool:
    """Whether a record of several lines looks like several records."""
    first = _fits(text, start, delimiter, num_cells, begins, ends)
    if first and _fits(text, last_line, delimiter, num_cells, begins, ends):
        return True
    lines, whole, at = 0, 0, start
    while True:
        at = _read(text, at, delimiter, _LITERAL, True, begins, ends)[1]
        if at >= last_line:
            return whole > 1 and 2 * whole > lines
        lines += 1
        whole += _fits(text, at, delimiter, num_cells, begins, ends)


@compiled
def find_literal(
    text: np.ndarray, delimiter: int, num_cells: int, all_quoted: bool, literal_first: bool, every: bool, final: bool,
    num_marks: int,
) -> tuple[int, int, int, np.ndarray, np.ndarray]:  # fmt: skip
    """How far `text` (uint8, from the start of a record) is whole records or sound, what is wrong with the next one,
    its cells, and where cells begin and end whose marks are text.

    all_quoted: the header's cells are, and so a mark at the start of a cell is not stray.
    literal_first: marks are text where that fits the header. every: judge records without a mark too.
    final: nothing follows. num_marks: of the text.
    """
    begins, ends = np.empty(num_marks + 1, np.int64), np.empty(num_marks + 1, np.int64)
    spare_begins, spare_ends = np.empty(num_marks + 1, np.int64), np.empty(num_marks + 1, np.int64)
    at, found = 0, 0
    while at < len(text):
        into, until = begins[found:], ends[found:]
        cells, end, last_line, marked, literal = _read(text, at, delimiter, _QUOTED, final, into, until)
        if end < 0:
            break
        empty = cells == 1 and (text[at] == _LF or text[at] == _CR)
        if not marked:
            if every and cells != num_cells and not empty:
                return at, CELLS, cells, begins[:found], ends[:found]
            at = end
            continue
        fits, as_text = cells == num_cells, False
        if literal_first or not fits:
            as_text = _read(text, at, delimiter, _LITERAL, True, spare_begins, spare_ends)[0] == num_cells
        if fits and not (literal_first and as_text):
            spans = last_line >= 0 and not all_quoted
            if spans and _swallowed(text, at, last_line, delimiter, num_cells, spare_begins, spare_ends):
                return at, SWALLOWED, cells, begins[:found], ends[:found]
        elif _read(text, at, delimiter, _LINE, True, spare_begins, spare_ends)[0] == num_cells and not (
            literal_first and as_text
        ):
            _, end, _, _, literal = _read(text, at, delimiter, _LINE, True, into, until)
        elif as_text:
            _, end, _, _, literal = _read(text, at, delimiter, _LITERAL, True, into, until)
        else:
            return at, CELLS, cells, begins[:found], ends[:found]
        for cell in range(found, found + literal):
            for inside in range(begins[cell] + 1, ends[cell]):
                if text[inside] == _QUOTE and text[inside - 1] == _BACKSLASH:
                    return at, BACKSLASH, cells, begins[:found], ends[:found]
        found += literal
        at = end
    return at, SOUND, 0, begins[:found], ends[:found]
