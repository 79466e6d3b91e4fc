"""Image formats that are not read, by the first bytes of a file or by its name, and what to do about them."""

from __future__ import annotations

import struct
from itertools import islice
from pathlib import Path

CONVERT = "convert it to NIfTI (.nii.gz) or give the DICOM folder"
PAIR = f"half of a .hdr/.img pair; {CONVERT}"
NO_HU = "a picture for screens, which holds no HU; give the DICOM folder"
UNPACK = "an archive; unpack it first"
METAIMAGE, NRRD, MGH = (f"{name}; {CONVERT}" for name in ("a MetaImage", "an NRRD file", "a FreeSurfer volume"))
NUMPY, HDF5 = (f"{name}, which does not say what its numbers mean; {CONVERT}" for name in ("a NumPy file", "HDF5"))

BEGINNINGS = (  # first bytes; the longest file head needed is HEAD_BYTES
    (b"NRRD000", NRRD),
    (b"ObjectType", METAIMAGE),
    (b"NDims", METAIMAGE),
    (b"\x93NUMPY", NUMPY),
    (b"\x89HDF\r\n", HDF5),
    (b"PK\x03\x04", UNPACK),
    (b"7z\xbc\xaf\x27\x1c", UNPACK),
    (b"Rar!\x1a\x07", UNPACK),
    (b"\xfd7zXZ", UNPACK),
    (b"BZh", UNPACK),
    (b"\x28\xb5\x2f\xfd", UNPACK),  # zstd
    (b"\x89PNG", NO_HU),
    (b"\xff\xd8\xff", NO_HU),  # JPEG
    (b"II*\0", NO_HU),  # TIFF
    (b"MM\0*", NO_HU),
    (b"%PDF", NO_HU),
)
NAMES = {
    METAIMAGE: (".mha", ".mhd"),
    NRRD: (".nrrd", ".nhdr"),
    MGH: (".mgh", ".mgz"),
    NUMPY: (".npy", ".npz"),
    HDF5: (".h5", ".hdf5", ".mat"),
    UNPACK: (".zip", ".tar", ".tgz", ".tar.gz", ".7z", ".rar", ".tar.xz", ".tar.bz2", ".tar.zst"),
    PAIR: (".hdr", ".img", ".hdr.gz", ".img.gz"),
    NO_HU: (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"),
}
HEAD_BYTES = 352
FILES_LOOKED_AT = 100  # of a folder


def named_format(head: bytes) -> str | None:
    """What a file with these first HEAD_BYTES is, and the remedy; None for DICOM and what is not known."""
    if head[128:132] == b"DICM":
        return None
    for beginning, name in BEGINNINGS:
        if head.startswith(beginning):
            return name
    if head[257:262] == b"ustar":
        return UNPACK
    if head[344:348] in (b"ni1\0", b"ni2\0") or head[4:8] == b"ni2\0":
        return PAIR
    if head[344:348] == b"n+1\0" or head[4:8] == b"n+2\0":
        return "NIfTI under another name; rename it to .nii (.nii.gz if it is compressed)"
    sizes = [struct.unpack_from(order + "i", head)[0] for order in "<>" if len(head) >= 4]
    if 348 in sizes:
        return f"Analyze 7.5, which does not tell left from right; {CONVERT}"
    return None


def other_format(path: Path) -> str | None:
    """What the file is, or the first such file of the folder, and the remedy; None if it is none of these."""
    files = [path] if path.is_file() else (file for file in sorted(path.iterdir()) if file.is_file())
    for file in islice(files, FILES_LOOKED_AT):
        with file.open("rb") as handle:
            head = handle.read(HEAD_BYTES)
        name = named_format(head)
        lower = file.name.lower()
        if name is None and head[128:132] != b"DICM":
            name = next((name for name, suffixes in NAMES.items() if lower.endswith(suffixes)), None)
        if name is not None:
            return name
    return None
