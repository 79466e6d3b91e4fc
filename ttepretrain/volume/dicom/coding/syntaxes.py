"""Transfer syntaxes: which ones are read, and with which decoder. No pydicom here."""

from __future__ import annotations

import struct

IMPLICIT_LITTLE, EXPLICIT_LITTLE, EXPLICIT_BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
NATIVE = (IMPLICIT_LITTLE, EXPLICIT_LITTLE, EXPLICIT_BIG)
DEFLATED = "1.2.840.10008.1.2.1.99"
RLE = "1.2.840.10008.1.2.5"
ENCAPSULATED = "1.2.840.10008.1.2.4."  # the JPEG family and videos; the header is always readable

# pydicom's names of its decoders. The first one installed is used; if it fails, no other is tried. ms per slice of
# 96 x 96: JPEG-LS pyjpegls .20, gdcm .81; JPEG 2000 pylibjpeg 1.9, gdcm 3.1; RLE pylibjpeg .09, pydicom .55.
DECODERS = {
    RLE: ("pylibjpeg", "pydicom"),
    "1.2.840.10008.1.2.4.57": ("gdcm",),  # JPEG lossless
    "1.2.840.10008.1.2.4.70": ("gdcm",),
    "1.2.840.10008.1.2.4.80": ("pyjpegls", "gdcm"),  # JPEG-LS
    "1.2.840.10008.1.2.4.81": ("pyjpegls", "gdcm"),
    "1.2.840.10008.1.2.4.90": ("pylibjpeg", "gdcm"),  # JPEG 2000
    "1.2.840.10008.1.2.4.91": ("pylibjpeg", "gdcm"),
    "1.2.840.10008.1.2.4.201": ("pylibjpeg",),  # HTJ2K
    "1.2.840.10008.1.2.4.202": ("pylibjpeg",),
    "1.2.840.10008.1.2.4.203": ("pylibjpeg",),
}  # Without 12-bit lossy JPEG: its only decoder for pydicom is under the GPL.
LOSSY = ("1.2.840.10008.1.2.4.81", "1.2.840.10008.1.2.4.91", "1.2.840.10008.1.2.4.203")


def has_readable_header(syntax: str) -> bool:
    return syntax in (*NATIVE, DEFLATED, RLE) or syntax.startswith(ENCAPSULATED)


def has_readable_pixels(syntax: str) -> bool:
    """Whether pixels of this syntax are read if ttepretrain[codecs] is installed."""
    return syntax in (*NATIVE, DEFLATED) or syntax in DECODERS


SHORT_VRS = b"AE AS CS DA DT IS LO PN SH TM UI UL US".split()  # with a length of two bytes
BARE_ELEMENTS, LONGEST_FIRST = 3, 1024  # that must follow each other, and bytes of each


def bare_syntax(head: bytes) -> str:
    """Transfer syntax of a data set without meta information, by its first kilobyte; "" if it is none beyond doubt.

    It begins with group 0008, in ascending order, short, of even length, and all in one encoding.
    """
    return next((syntax for syntax in (EXPLICIT_LITTLE, EXPLICIT_BIG, IMPLICIT_LITTLE) if _begins(head, syntax)), "")


def _begins(head: bytes, syntax: str) -> bool:
    order = ">" if syntax == EXPLICIT_BIG else "<"
    at, last = 0, -1
    for _ in range(BARE_ELEMENTS):
        if len(head) < at + 8:
            return False
        group, element = struct.unpack_from(order + "HH", head, at)
        if syntax == IMPLICIT_LITTLE:
            (length,) = struct.unpack_from("<L", head, at + 4)
        elif head[at + 4 : at + 6] in SHORT_VRS:
            (length,) = struct.unpack_from(order + "H", head, at + 6)
        else:
            return False
        if group != 8 or not last < element < 0x0100 or length % 2 or length > LONGEST_FIRST:
            return False
        at, last = at + 8 + length, element
    return True
