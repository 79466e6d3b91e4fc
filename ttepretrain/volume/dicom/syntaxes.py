"""Transfer syntaxes: which ones are read, and with which decoder. No pydicom here."""

from __future__ import annotations

IMPLICIT_LITTLE, EXPLICIT_BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"
NATIVE = (IMPLICIT_LITTLE, "1.2.840.10008.1.2.1", EXPLICIT_BIG)
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
