"""What INPUT means on the command line: the scans, and the key of each one's results. No torch here.

scan.nii.gz                  one scan, key `scan.nii.gz`
folder with DICOM in it      one scan, key: the folder's name
folder of many               every NIfTI file and every folder with DICOM directly in it, at any depth;
                             key: path relative to the argument
table.csv | table.parquet    columns key and image (a path relative to the table); the key as given
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ttepretrain.errors import ConfigError
from ttepretrain.volume.source import is_nifti

TABLES = (".csv", ".parquet")
# Files found beside DICOM files, which have any suffix or none.
NOT_DICOM = (*TABLES, ".json", ".txt", ".tsv", ".md", ".pdf", ".html", ".xml", ".yaml", ".png", ".jpg", ".jpeg", ".zip")


@dataclass(frozen=True)
class Scan:
    key: str
    path: Path


def find_scans(inputs: Sequence[Path]) -> list[Scan]:
    """Scans of all arguments, in order. Raises ConfigError for none, a missing argument or a key used twice."""
    scans = [scan for path in inputs for scan in _scans_of(path)]
    if not scans:
        raise ConfigError("INPUT contains no NIfTI file and no DICOM folder")
    repeated = len(scans) - len({scan.key for scan in scans})
    if repeated:
        raise ConfigError(
            f"{repeated} of {len(scans)} scans have the same key as another; give a table with columns key and image"
        )
    return scans


def _scans_of(path: Path) -> list[Scan]:
    if path.is_dir():
        return _scans_below(path)
    if not path.exists():
        raise ConfigError(f"INPUT {path} does not exist")
    if path.name.lower().endswith(TABLES):
        return _scans_in_table(path)
    return [Scan(path.name, path)]


def _scans_below(root: Path) -> list[Scan]:
    paths: list[Path] = []

    def closed(error: OSError) -> None:
        paths.append(Path(error.filename))  # a folder that cannot be listed: reading it gives the reason

    for folder, subfolders, names in os.walk(root, onerror=closed):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        files = [Path(folder, name) for name in sorted(names) if not name.startswith(".")]
        nifti = [file for file in files if is_nifti(file)]
        if _holds_dicom(files, leaf=not subfolders and not nifti):
            paths.append(Path(folder))
            subfolders.clear()  # a DICOM folder is read with all that is below it
        paths += nifti
    name = root.resolve().name
    return [Scan(name if path == root else path.relative_to(root).as_posix(), path) for path in paths]


def _holds_dicom(files: Sequence[Path], leaf: bool) -> bool:
    """In a folder without subfolders any unknown file counts: a damaged scan is refused, not overlooked."""
    known = (*NOT_DICOM, "dicomdir")
    unknown = [file for file in files if not (is_nifti(file) or file.name.lower().endswith(known))]
    return bool(unknown) if leaf else any(_is_dicom(file) for file in unknown)


def _is_dicom(path: Path) -> bool:
    if not path.is_file():  # opening a pipe would block
        return False
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:  # a file that cannot be read is refused, not overlooked
        return True


def _scans_in_table(path: Path) -> list[Scan]:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    try:
        if path.name.lower().endswith(".csv"):
            text = pyarrow.csv.ConvertOptions(column_types={"key": pa.string(), "image": pa.string()})
            table = pyarrow.csv.read_csv(path, convert_options=text)
        else:
            table = pyarrow.parquet.read_table(path)
        columns = [table[name].cast(pa.string()).to_pylist() for name in ("key", "image")]
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ConfigError(f"{path} is not a table: {str(error).splitlines()[0]}") from None
    except KeyError:
        raise ConfigError(f"{path} needs the columns key and image; it has {', '.join(table.column_names)}") from None
    empty = sum(not (key and image) for key, image in zip(*columns))
    if empty:
        raise ConfigError(f"{path}: {empty} rows without key or image; remove them")
    return [Scan(key, path.parent / image) for key, image in zip(*columns)]
