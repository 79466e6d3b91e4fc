"""Headers of DICOM files, parsed by pydicom and limited to a list of tags. The pixels stay in the file.

A file without the DICOM marker is DICOM only if it begins with meta information, or with a data set beyond doubt.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, MutableSequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from pydicom import DataElement
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement, convert_raw_data_element
from pydicom.errors import InvalidDicomError
from pydicom.filereader import data_element_generator, read_dataset, read_preamble

from ttepretrain.errors import BadStudy
from ttepretrain.volume.checks import Reason
from ttepretrain.volume.dicom.coding.syntaxes import (
    DEFLATED,
    EXPLICIT_BIG,
    IMPLICIT_LITTLE,
    bare_syntax,
    has_readable_header,
)
from ttepretrain.volume.dicom.tags import TAGS

KEYWORDS = {tag: keyword for keyword in TAGS if (tag := tag_for_keyword(keyword)) is not None}
PADDING = ("PixelPaddingValue", "PixelPaddingRangeLimit")
TRANSFER_SYNTAX, STORAGE_CLASS, PIXEL_DATA = 0x00020010, 0x00020002, 0x7FE00010
BEFORE_PIXELS = (
    PIXEL_DATA.__gt__
)  # of a tag; a plain int, since pydicom's comparison is slow and called for every element
# The pixels must start within it, inflated or not. A header of a thousand frames has 4 MB; a deflated gigabyte, or a
# file full of empty sequences, would fill the memory before it can be checked.
MAX_HEADER_BYTES = 2**24
MAX_SKIPS = 8  # of elements that nobody reads and that go beyond it, such as raw data of a vendor; they do not count
HEAD_BYTES = 1024
UNDEFINED = 0xFFFFFFFF
# In all sequences of a header; each takes a kilobyte when parsed. 4,096 frames with sixty items have half as many.
MAX_ITEMS, ITEM_BYTES, ITEM_TAGS = 2**19, 8, (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")


@dataclass(frozen=True)
class Header:
    """One DICOM file without its pixels."""

    file: Path
    syntax: str
    storage_class: str  # as stated in the file meta information
    values: dict[str, Any]  # by keyword: those of TAGS in the file; empty if the syntax is unknown
    body_at: int  # first byte after the meta information
    pixels_at: int | None  # first byte of the pixels, within the inflated body if deflated; None: no pixels
    pixels_length: int  # bytes; 0xFFFFFFFF if undefined, as for compressed pixels
    elsewhere: int = 0  # bytes in private elements and pixels of other types; all of 4 GB for an undefined length
    damage: BadStudy | None = None  # of everything after the meta information, which is all that was read


@dataclass(frozen=True)
class _Body:
    """What a header has after the meta information; the middle three as in Header."""

    values: dict[str, Any]
    pixels_at: int | None = None
    pixels_length: int = 0
    elsewhere: int = 0
    last: int = 0  # where the value of the last element begins, within what was parsed


@contextmanager
def declared_damage() -> Iterator[None]:
    """BadStudy for anything pydicom raises because of a damaged byte, also later, when a nested value is read."""
    try:
        yield
    except (BadStudy, MemoryError):
        raise
    except Exception as error:
        if (
            isinstance(error, OSError) and error.errno is not None
        ):  # pydicom's own errors, about damaged sequences, have none
            raise
        raise BadStudy(Reason.UNREADABLE, "the header is damaged") from None


class HeaderReader:
    """Reads the headers of one study. Equal values are converted once, since slices share nearly all of them."""

    def __init__(self) -> None:
        self._known: dict[tuple, Any] = {}

    def read(self, file: Path) -> Header:
        """Header of the file; BadStudy if not even its meta information can be read."""
        with file.open("rb") as handle:
            try:
                read_preamble(handle, force=False)
            except (InvalidDicomError, EOFError):
                return self._without_marker(file, handle)
            with declared_damage():
                return self._parse(file, handle)

    def _without_marker(self, file: Path, handle: BinaryIO) -> Header:
        """Header of a file whose first 128 or 132 bytes are missing, or all its meta information."""
        handle.seek(0)
        head = handle.read(HEAD_BYTES)
        if head.startswith((b"DICM\2\0", b"\2\0\0\0UL\4\0", b"\2\0\1\0OB\0\0", b"\2\0\2\0UI")):
            handle.seek(4 if head.startswith(b"DICM") else 0)
            with declared_damage():
                return self._parse(file, handle)
        syntax = bare_syntax(head)
        header = self._header(file, handle, syntax, "", 0) if syntax else None
        if header is None or (header.damage is None and header.values.keys().isdisjoint(("SOPClassUID", "Modality"))):
            raise BadStudy(Reason.NOT_DICOM, "no DICOM marker")
        # compressed pixels without the name of the compression
        return replace(header, syntax="") if header.pixels_length == UNDEFINED else header

    def _parse(self, file: Path, handle: BinaryIO) -> Header:
        meta = {int(e.tag): e.value for e in data_element_generator(handle, False, True, stop_when=_behind_meta)}
        syntax, storage_class = (_uid(meta.get(tag)) for tag in (TRANSFER_SYNTAX, STORAGE_CLASS))
        body_at = handle.tell()
        if not syntax:
            syntax = bare_syntax(handle.read(HEAD_BYTES))
            if not syntax:
                raise BadStudy(Reason.UNREADABLE, "no transfer syntax")
        if not has_readable_header(syntax):
            return Header(file, syntax, storage_class, {}, body_at, None, 0)
        header = self._header(file, handle, syntax, storage_class, body_at)
        named = TRANSFER_SYNTAX in meta
        return header if named or header.pixels_length != UNDEFINED else replace(header, syntax="")

    def _header(self, file: Path, handle: BinaryIO, syntax: str, storage_class: str, body_at: int) -> Header:
        try:
            handle.seek(body_at)
            with declared_damage():
                body = self._body(handle, syntax, body_at)
        except BadStudy as damage:
            return Header(file, syntax, storage_class, {}, body_at, None, 0, damage=damage)
        found = body.values, body_at, body.pixels_at, body.pixels_length, body.elsewhere
        return Header(file, syntax, storage_class, *found)

    def _body(self, handle: BinaryIO, syntax: str, body_at: int) -> _Body:
        size = os.fstat(handle.fileno()).st_size
        if syntax == DEFLATED:
            deflated = handle.read(MAX_HEADER_BYTES)
            inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(deflated, MAX_HEADER_BYTES)
            return self._elements(_bounded(inflated), syntax, 0)
        if size <= MAX_ITEMS * ITEM_BYTES:
            return self._elements(handle, syntax, 0)
        start, left, whole = body_at, MAX_HEADER_BYTES, _Body({})
        for _ in range(MAX_SKIPS + 1):
            handle.seek(start)
            part = _bounded(handle.read(left))
            found = self._elements(part, syntax, start)
            whole = replace(found, values=whole.values | found.values, elsewhere=whole.elsewhere + found.elsewhere)
            # an element that nobody reads is passed over, also where it ends beyond this part
            if found.pixels_at is not None or part.tell() <= left or start + part.tell() >= size:
                break
            start, left = start + part.tell(), left - found.last
        return whole

    def _elements(self, body: BinaryIO, syntax: str, start: int) -> _Body:
        """The body in one stream, which begins at `start` of the file."""
        pixels_at, pixels_length, elsewhere, last = None, 0, 0, 0

        def at_pixels(tag: int, _vr: str | None, length: int) -> bool:
            nonlocal pixels_at, pixels_length, elsewhere, last
            last = body.tell()
            if (tag >> 16) % 2 or (tag >> 16 == PIXEL_DATA >> 16 and tag != PIXEL_DATA):
                elsewhere += length
            if not BEFORE_PIXELS(tag):
                if tag == PIXEL_DATA:
                    pixels_at, pixels_length = start + last, length
                return True
            return False

        dataset = read_dataset(
            body,
            is_implicit_VR=syntax == IMPLICIT_LITTLE,
            is_little_endian=syntax != EXPLICIT_BIG,
            stop_when=at_pixels,
            defer_size=MAX_HEADER_BYTES,
            specific_tags=list(KEYWORDS),
        )
        charset = dataset.original_character_set
        elements = ((KEYWORDS.get(int(element.tag)), element) for element in dataset.values())
        values = {keyword: self._value(keyword, element, charset) for keyword, element in elements if keyword}
        return _Body(values, pixels_at, pixels_length, elsewhere, last)

    def _value(self, keyword: str, element: RawDataElement | DataElement, charset: str | MutableSequence[str]) -> Any:
        if isinstance(element, DataElement):
            return element.value
        if keyword in PADDING:  # its sign is not stored if implicit, and often wrong otherwise
            return _whole(element)
        key = (keyword, element.VR, element.value, element.is_little_endian, str(charset))
        if key not in self._known:
            self._known[key] = convert_raw_data_element(element, encoding=charset).value
        return self._known[key]


def _whole(element: RawDataElement) -> int | None:
    """One whole number without its sign, in two bytes, in four, or as text."""
    value = element.value or b""
    if element.VR in ("IS", "DS"):
        return int(float(value.decode("ascii").strip("\0 ")))
    if len(value) == 2 or (len(value) == 4 and element.VR in ("SL", "UL")):
        return int.from_bytes(value, "little" if element.is_little_endian else "big")
    return None


def _bounded(header: bytes) -> BytesIO:
    """The same as a stream; BadStudy if its sequences would take too much memory."""
    if sum(header.count(tag) for tag in ITEM_TAGS) > MAX_ITEMS:
        raise BadStudy(Reason.TOO_LARGE, f"more than {MAX_ITEMS} items in one header")
    return BytesIO(header)


def _behind_meta(tag: int, _vr: str | None, _length: int) -> bool:
    return tag >> 16 != 2


def _uid(value: bytes | None) -> str:
    return (value or b"").decode("ascii").strip("\0 ")
