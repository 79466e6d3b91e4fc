"""The one reader of csv and tsv files, as text, in batches of bounded memory; and what a file is that is none.

Content decides, not the name: compression, what separates the columns, and which quotation marks quote (quotes.py).
Errors name file and line, never a cell.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv as arrow_csv

from ttepretrain.errors import ConfigError, IntegrityError
from ttepretrain.log import log

_BLOCK_BYTES = 4 << 20
_LONGEST_LINE = 64 << 20
_HEADER_BYTES = 1 << 18
_BOM = b"\xef\xbb\xbf"
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zstd"}
_MOST_NAMES = 40  # of columns, in a message


class Header(NamedTuple):
    names: list[str]  # none: a file of no bytes, or of blank lines
    delimiter: str
    quoted: bool  # the names are
    num_bytes: int  # up to the end of the line, with its end, a byte order mark and blank lines before it
    line: int  # number of the next line


def listed(names: Sequence[str]) -> str:
    """Column names for a message, in their order."""
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "") if names else "none"


def refuse_twins(names: Sequence[str], where: str) -> None:
    """ConfigError where two columns have one name, in either letter case."""
    seen: dict[str, str] = {}
    for name in names:
        if name.lower() in seen:
            raise ConfigError(
                f"{where}: columns {seen[name.lower()]} and {name} have the same name (letter case does not count); "
                "keep one"
            )
        seen[name.lower()] = name


def read_header(path: Path, where: str) -> Header:
    """The first line that is not blank. ConfigError for what is no delimited text, IntegrityError for a stream that is
    cut short.
    """
    start = _decompressed(path, _HEADER_BYTES, where)
    if problem := _no_text(start, path.name):
        raise ConfigError(f"{where} {problem}")
    bom = len(_BOM) if start.startswith(_BOM) else 0
    begin = len(start) - len(start[bom:].lstrip(b"\r\n"))
    end = re.compile(rb"\r\n|\n|\r").search(start, begin)
    line = 1 + _line_ends(start, begin)
    text = _text(start[begin : end.start() if end else len(start)], where, line)
    unquoted = re.sub(r'"(?:[^"]|"")*"', "", text)
    delimiter = max(",\t;|", key=unquoted.count)
    names = next(csv.reader([text], delimiter=delimiter), [])
    quoted = bool(names) and all(len(cell) > 1 and cell[0] == cell[-1] == '"' for cell in text.split(delimiter) if cell)
    return Header(names, delimiter, quoted, end.end() if end else len(start), line + 1)


def read_delimited(
    path: Path, where: str, wanted: Sequence[str] | None, nulls: Sequence[str], literal_first: bool = False
) -> Iterator[pl.DataFrame]:
    """Batches of the columns `wanted` (in lower case; None: all), as text.

    Null are cells without text, and cells of `nulls` that are not quoted. where: names key and file in messages.
    literal_first: in a file separated by tabs whose names are not quoted, as Athena's, marks are text wherever that
    gives the header's number of cells.
    Raises ConfigError for what is no delimited text, and for a record that cannot be read, by line; IntegrityError for
    a compressed stream that is cut short.
    """
    header = read_header(path, where)
    literal_first &= header.delimiter == "\t" and not header.quoted
    chosen = [at for at, name in enumerate(header.names) if name and (wanted is None or name.lower() in wanted)]
    names = [str(at) for at in range(len(header.names))]
    parse = arrow_csv.ParseOptions(delimiter=header.delimiter, newlines_in_values=True)
    convert = arrow_csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()),
        include_columns=[names[at] for at in chosen] or names[:1],
        null_values=list(nulls),
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
    )
    for block, line in _blocks(path, where, header, literal_first):
        options = arrow_csv.ReadOptions(column_names=names, block_size=len(block) + 1, use_threads=False)
        try:
            table = arrow_csv.read_csv(pa.BufferReader(block), options, parse, convert)
        except pa.ArrowException as error:
            raise _explained(block, line, where, header, error) from None
        # quoted nulls are text, but a quoted nothing is nothing
        frame = pl.DataFrame(pl.from_arrow(table)).with_columns(pl.when(pl.all() != "").then(pl.all()))
        yield (
            frame.rename({names[at]: header.names[at] for at in chosen})
            if chosen
            else frame.select(pl.all().name.prefix("\0"))
        )


def _blocks(path: Path, where: str, header: Header, literal_first: bool) -> Iterator[tuple[bytes, int]]:
    """Whole records below the header in which every mark quotes, and the line of the first one."""
    rest, line, literal = b"", header.line, 0
    with _opened(path) as stream:
        _read(stream, header.num_bytes, where)
        while True:
            piece = _read(stream, _BLOCK_BYTES, where)
            text, final = rest + piece, not piece
            if len(text) > _LONGEST_LINE:
                raise ConfigError(f"{where}, line {line}: a line of more than {_LONGEST_LINE >> 20} MiB is no record")
            if b'"' in text:
                block, used, marks = _with_marks(text, line, where, header, literal_first, final)
                literal += marks
            else:
                used = len(text) if final else (text.rfind(b"\n") + 1 or text[:-1].rfind(b"\r") + 1)
                block = text[:used]
            if block:
                yield block, line
            line += _line_ends(text, used)
            rest = text[used:]
            if final:
                break
    if literal and not literal_first:
        log.warning(
            f"{where}: {literal} cells begin with a quotation mark that quotes nothing; the mark is read as text"
        )


def _with_marks(
    text: bytes, line: int, where: str, header: Header, literal_first: bool, final: bool
) -> tuple[bytes, int, int]:
    """Whole records at the start of the text, with the marks that are text doubled; their bytes before that; and how
    many cells begin with such a mark."""
    from ehr.sources.quotes import find_literal  # numba takes half a second, and few files need it

    bytes_of = np.frombuffer(text, np.uint8)
    arguments = bytes_of, ord(header.delimiter), len(header.names), header.quoted, literal_first, False, final
    used, wrong, cells, begins, ends = find_literal(*arguments, text.count(b'"'))
    if wrong:
        raise _refused(wrong, cells, line + _line_ends(text, used), where, header, text[used : used + 4096])
    parts, at = [], 0
    for begin, end in zip(begins.tolist(), ends.tolist()):
        parts += [text[at:begin], b'"', text[begin:end].replace(b'"', b'""'), b'"']
        at = end
    return b"".join([*parts, text[at:used]]), used, len(begins)


def _refused(wrong: int, cells: int, line: int, where: str, header: Header, record: bytes) -> ConfigError:
    from ehr.sources.quotes import BACKSLASH, SWALLOWED

    place = f"{where}, line {line}"
    if wrong == SWALLOWED:
        return ConfigError(
            f"{place}: a cell begins with a quotation mark that is closed some lines below, and lines that look like "
            "whole rows stand between; remove the mark, or export with all cells quoted, those of the header too"
        )
    if wrong == BACKSLASH or b'\\"' in re.split(rb"[\r\n]", record, maxsplit=1)[0]:
        return ConfigError(
            f'{place}: a quotation mark is escaped by a backslash (\\"); export with marks doubled (""), as csv has it'
        )
    marks = ", however its quotation marks are read" if b'"' in record else ""
    return ConfigError(
        f"{place}: {cells} cells, but the header has {len(header.names)}{marks}; quote cells that hold "
        f"{'a tab' if header.delimiter == chr(9) else repr(header.delimiter)}, a quotation mark or a line end"
    )


def _explained(block: bytes, line: int, where: str, header: Header, error: Exception) -> Exception:
    """Why arrow cannot read a block, by line; its own words hold cells."""
    from ehr.sources.quotes import find_literal

    text = np.frombuffer(block, np.uint8)
    used, wrong, cells, _, _ = find_literal(
        text, ord(header.delimiter), len(header.names), header.quoted, False, True, True, block.count(b'"')
    )
    if wrong:
        return _refused(wrong, cells, line + _line_ends(block, used), where, header, block[used : used + 4096])
    with suppress(UnicodeDecodeError):
        block.decode()
        return ConfigError(f"{where}: cannot be read as delimited text ({type(error).__name__})")
    return _not_utf8(block, line, where)


def _text(text: bytes, where: str, line: int) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError:
        raise _not_utf8(text, line, where) from None


def _not_utf8(text: bytes, line: int, where: str) -> ConfigError:
    try:
        text.decode()
    except UnicodeDecodeError as error:
        line += _line_ends(text, error.start)
    return ConfigError(
        f"{where}, line {line}: is not UTF-8 text, perhaps Latin-1 or Windows-1252; convert it, as with "
        "`iconv -f WINDOWS-1252 -t UTF-8`"
    )


def _line_ends(text: bytes, until: int) -> int:
    return text.count(b"\n", 0, until) or text.count(b"\r", 0, until)


def _opened(path: Path) -> pa.NativeFile:
    with path.open("rb") as file:
        start = file.read(4)
    return pa.input_stream(str(path), compression=next((_MAGIC[m] for m in _MAGIC if start.startswith(m)), None))


def _read(stream: pa.NativeFile, num_bytes: int, where: str) -> bytes:
    """As many bytes, or fewer at the end; a compressed stream may give less at once."""
    parts: list[bytes] = []
    try:
        while num_bytes and (part := stream.read(num_bytes)):
            parts.append(part)
            num_bytes -= len(part)
    except (OSError, pa.ArrowException) as error:
        raise IntegrityError(f"{where}: {cut_short(error)}") from None
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _decompressed(path: Path, num_bytes: int, where: str) -> bytes:
    with _opened(path) as stream:
        return _read(stream, num_bytes, where)


def cut_short(error: Exception) -> str:
    return f"is damaged or cut short ({type(error).__name__}); copy it again"


def what_it_is(path: Path) -> str | None:
    """What a file is that is named as a parquet file and is none; None: parquet, by its first bytes."""
    with path.open("rb") as file:
        start = file.read(4096)
    if start.startswith(b"PAR1"):
        return None
    if not start:
        return "is empty: a file of no bytes"
    if packed := next((_MAGIC[m] for m in _MAGIC if start.startswith(m)), None):
        return f"is not parquet, but {packed}-compressed; unpack it, or name it .csv.gz if it is csv"
    return _no_text(start, path.name) or "is not parquet; if it is text, name it .csv or .tsv"


def _no_text(start: bytes, name: str) -> str | None:
    """What a file is that is no UTF-8 text, by its first bytes, and what to do."""
    if start.startswith(b"PAR1"):
        return "is a parquet file; name it .parquet"
    if start.startswith(b"PK\x03\x04"):
        workbook = name.lower().endswith((".xlsx", ".xlsm")) or b"xl/" in start or b"[Content_Types].xml" in start
        return "is an Excel workbook; save it as csv" if workbook else "is a zip archive; unpack it"
    if start.startswith(b"\xd0\xcf\x11\xe0"):
        return "is an old Excel or Office file; save it as csv"
    if start.startswith((b"\xff\xfe", b"\xfe\xff")) or _alternating(start):
        return "is UTF-16 text; save it as UTF-8, as with `iconv -f UTF-16 -t UTF-8`"
    if b"\0" in start[:4096]:
        return "holds bytes that are zero: it is no text, or it was written badly; export it again as UTF-8 csv"
    begin = start.removeprefix(_BOM).lstrip()[:64].lower()
    if begin.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "is a web page, perhaps of a failed download, and no table; download it again"
    if begin.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file itself; run `git lfs pull`"
    if begin.startswith((b"{", b"[")):
        return "is JSON; write it as csv or parquet"
    return None


def _alternating(start: bytes) -> bool:
    """UTF-16 without a mark: every other byte of mostly western text is zero."""
    head = start[:512]
    return len(head) > 3 and any(
        head[odd::2].count(0) > 0.8 * len(head[odd::2]) and head[1 - odd :: 2].count(0) == 0 for odd in (0, 1)
    )
