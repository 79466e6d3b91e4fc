"""The scans in a folder at any depth, and what was passed over. No torch here.

Every folder is read once: links are followed, real folders first. A folder that cannot be listed counts as a scan, so
that it is refused with its reason.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter, deque
from pathlib import Path

from ttepretrain.volume.other_formats import NAMES, UNPACK
from ttepretrain.volume.source import is_nifti

# Files found beside DICOM files, which have any suffix or none.
DOCUMENTS = (
    *(".csv", ".parquet", ".tsv", ".json", ".txt", ".md", ".pdf", ".html", ".xml", ".yaml", ".png", ".jpg", ".jpeg"),
    *(".log", ".bval", ".bvec"),
)
ARCHIVES = NAMES[UNPACK]
OTHER_FORMATS = tuple(suffix for kind, suffixes in NAMES.items() if kind != UNPACK for suffix in suffixes)

# Kinds of what is passed over, and what to do; a person may miss scans of those in LOST.
LOST = {
    "archive": "unpack it",
    "file in a format that is not read": "convert it to NIfTI",
    "link that leads nowhere": "restore its target",
    "link to a folder above": "it would go round for ever",
    "pipe, socket or device": "only files are read",
    "file that is no DICOM beside other scans": "give it by itself if it is one",
}
HARMLESS = ("hidden file or folder", "document", "DICOMDIR", "link to a folder that is read already")

NOWHERE = (errno.ENOENT, errno.ELOOP, errno.ENOTDIR)  # of a link
Place = tuple[int, int]  # device and inode of a folder


class FolderScans:
    """`paths` of the scans below `root`; `passed_over` counts everything else by kind, without any name."""

    def __init__(self, root: Path):
        self.paths: list[Path] = []
        self.passed_over: Counter[str] = Counter()
        self._above = {_place(folder) for folder in Path(os.path.realpath(root)).parents}
        self._seen: set[Place | None] = set()
        self._links: deque[tuple[Path, bool]] = deque()
        self._walk(root, within_dicom=False)
        while self._links:
            link, within_dicom = self._links.popleft()
            self._walk(link, within_dicom)

    def _walk(self, top: Path, within_dicom: bool) -> None:
        """Depth first, with a stack of its own: a tree may be deeper than Python's."""
        stack = [(top, within_dicom)]
        while stack:
            folder, within = stack.pop()
            place = _place(folder)
            if place in self._above:
                self.passed_over["link to a folder above"] += 1
                continue
            if place is not None and place in self._seen:
                if folder.is_symlink() and not within:
                    self.passed_over["link to a folder that is read already"] += 1
                continue
            self._seen.add(place)
            inner, is_dicom = self._look_into(folder, within)
            stack += [(path, within or is_dicom) for path in reversed(inner)]

    def _look_into(self, folder: Path, within_dicom: bool) -> tuple[list[Path], bool]:
        """Real folders in this one, and whether it is a DICOM folder, which is read with all that is below it."""
        inner: list[Path] = []
        links: list[Path] = []
        files: list[Path] = []
        passed: Counter[str] = Counter()
        try:
            with os.scandir(folder) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    path = Path(folder, entry.name)
                    if entry.name.startswith("."):
                        passed["hidden file or folder"] += 1
                    elif entry.is_dir(follow_symlinks=False):
                        inner.append(path)
                    elif entry.is_symlink() and os.path.isdir(path):  # noqa: PTH112  Path.is_dir raises in a closed folder
                        links.append(path)
                    else:
                        files.append(path)
        except OSError:
            if not within_dicom:  # else the DICOM folder is refused
                self.paths.append(folder)
            return [], False
        nifti: list[Path] = []
        unknown: list[Path] = []
        for file in files:
            if kind := _aside(file):
                passed[kind] += 1
            else:
                (nifti if is_nifti(file) else unknown).append(file)
        is_dicom = False
        if not within_dicom and unknown:
            answers = {_is_dicom(file) for file in unknown}
            leaf = not (inner or links or nifti)  # any unknown file counts: a damaged scan is refused, not overlooked
            is_dicom = True in answers or leaf
            if is_dicom or None in answers:  # a closed file gets its folder refused, but what is below is still read
                self.paths.append(folder)
            else:
                passed.update(_strange(file) for file in unknown)
        self.paths += nifti
        if not within_dicom:
            self.passed_over += passed
        self._links += [(link, within_dicom or is_dicom) for link in links]
        return inner, is_dicom


def described(passed_over: Counter[str]) -> str:
    """One line: kinds with their counts, and what to do."""
    return "; ".join(
        f"{passed_over[kind]} x {kind}" + (f" ({LOST[kind]})" if kind in LOST else "")
        for kind in (*LOST, *HARMLESS)
        if passed_over[kind]
    )


def _aside(file: Path) -> str | None:
    """The kind of a file that is no scan by its name."""
    name = file.name.lower()
    if name == "dicomdir":
        return "DICOMDIR"
    if name.endswith(ARCHIVES):
        return "archive"
    return "document" if name.endswith(DOCUMENTS) else None


def _is_dicom(path: Path) -> bool | None:
    """By its content; None for a file that cannot be read."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would block
            return False
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError as error:
        return False if error.errno in NOWHERE else None


def _strange(file: Path) -> str:
    """The kind of any other file that is no DICOM."""
    try:
        regular = stat.S_ISREG(file.stat().st_mode)
    except OSError:
        return "link that leads nowhere"
    if file.name.lower().endswith(OTHER_FORMATS):
        return "file in a format that is not read"
    return "file that is no DICOM beside other scans" if regular else "pipe, socket or device"


def _place(folder: Path) -> Place | None:
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
