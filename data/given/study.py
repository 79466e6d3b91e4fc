"""One study as a worker gets it: its image, and what the table says about that image. No polars here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ttepretrain.errors import BadStudy


@dataclass(frozen=True)
class Study:
    """What a row of the study table says about its image. Plain data: travels to workers."""

    study_id: str
    image: str  # relative to the table's folder
    series_uid: str | None = None  # the series to read
    patient_id: str | None = None  # as the images name the patient
    image_sha256: str | None = None  # of the file, or of the sums of a folder's files


def resolve_image(root: Path, image: str) -> Path:
    """Path of a study's image below the table's folder; raises BadStudy OUTSIDE_ROOT for anything that leaves it."""
    parts = Path(image).parts if "\0" not in image else ()
    expands = any(part.startswith(("~", "$")) for part in parts)
    if not parts or Path(image).is_absolute() or ".." in parts or expands or "://" in image:
        raise BadStudy("OUTSIDE_ROOT", "image is not a path relative to the table")
    path = root / image
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
        raise BadStudy("OUTSIDE_ROOT", "image leads out of the table's folder through a link")
    return path
