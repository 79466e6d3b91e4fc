"""The whole synthetic cohort on disk, written once per (size, seed)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from data.cohort.exam import SIZES, VERSION, draw_latents
from data.cohort.paint.images import Identity, write_image
from data.cohort.paint.patient import draw_patient
from data.cohort.paint.phantom import render
from data.cohort.paint.scanner import SCANNERS, damaged_kind, draw_acquisition, expose
from data.cohort.timelines.catalogue import build_catalogue
from data.cohort.timelines.histories import DAY_US, YEAR_DAYS, draw_course, draw_events, draw_studies
from data.cohort.timelines.meds_files import write_meds
from data.cohort.truth import write_truth
from data.config import CohortConfig
from ttepretrain.errors import ConfigError

IMAGES_PER_CALL = 4  # amortises the start of a task; small enough that two cores finish together


@dataclass(frozen=True)
class ImageOrder:
    """Everything one CT is a function of."""

    row: int
    seed: int
    severity_J: np.ndarray
    identity: Identity
    damage_order: int | None  # which damage; None: an undamaged image


def write_cohort(folder: Path, config: CohortConfig, map_images: Callable) -> bool:
    """Write the cohort to `folder` unless it is there already; returns whether it was written.

    A killed run leaves nothing under the final name. `map_images(function, items)` yields results in any order.
    Raises ConfigError when the folder holds another cohort.
    """
    folder = folder.absolute()  # workers have a working directory of their own
    stamp = {"size": config.size, "seed": config.seed, "version": VERSION}
    if folder.exists():
        found = _read_stamp(folder)
        if found == stamp:
            return False
        raise ConfigError(
            f"cohort: {folder} holds {found or 'something else'}, asked for {stamp}; set another name or remove it"
        )
    partial_folder = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial_folder, ignore_errors=True)
    partial_folder.mkdir(parents=True)
    _write(partial_folder, config, map_images)
    (partial_folder / "cohort.json").write_text(json.dumps(stamp, indent=1) + "\n")
    partial_folder.rename(folder)
    return True


def _read_stamp(folder: Path) -> dict | None:
    try:
        return json.loads((folder / "cohort.json").read_text())
    except (OSError, ValueError):
        return None


def _write(folder: Path, config: CohortConfig, map_images: Callable) -> None:
    size = SIZES[config.size]
    rngs = [np.random.default_rng([config.seed, stream]) for stream in range(5)]
    latents = draw_latents(rngs[0], size.subjects)
    catalogue = build_catalogue(size.catalogue)
    course = draw_course(rngs[1], size, latents)
    studies = draw_studies(rngs[2], size, course)
    events = draw_events(rngs[3], size, latents, catalogue, course, studies)
    write_meds(folder / "ehr", events, course, catalogue, size)

    (folder / "images").mkdir()
    time_us_S = course.t0_us_N[studies.subject_S] + np.round(studies.day_S * DAY_US).astype(np.int64)
    damaged = {int(row): order for order, row in enumerate(rngs[4].permutation(len(time_us_S))[: size.damaged])}
    orders = [
        ImageOrder(
            row=row,
            seed=config.seed,
            severity_J=latents.severity_NJ[subject],
            identity=Identity(
                study_id=str(studies.study_id_S[row]),
                subject_id=int(course.subject_id_N[subject]),
                female=bool(latents.female_N[subject]),
                age_years=float(latents.age_years_N[subject] + studies.day_S[row] / YEAR_DAYS),
                time=datetime(1970, 1, 1) + timedelta(microseconds=int(time_us_S[row])),
            ),
            damage_order=damaged.get(row),
        )
        for row, subject in enumerate(studies.subject_S)
    ]
    chunks = [orders[i : i + IMAGES_PER_CALL] for i in range(0, len(orders), IMAGES_PER_CALL)]
    written = sorted(row for rows in map_images(partial(make_images, folder / "images"), chunks) for row in rows)
    pl.DataFrame(
        {
            "study_id": list(studies.study_id_S),
            "subject_id": course.subject_id_N[studies.subject_S],
            "study_time": pl.Series(time_us_S).cast(pl.Datetime("us")),
            "image": [f"images/{name}" for _, name, _, _ in written],
            "split": pl.Series(list(course.split_N[studies.subject_S]), dtype=pl.String),
            "site": [site for _, _, site, _ in written],
        }
    ).write_parquet(folder / "studies.parquet")
    damage = {orders[row].identity.study_id: kind for row, _, _, kind in written if kind}
    write_truth(folder / "truth", size, latents, catalogue, course, studies, damage)


def make_images(folder: Path, orders: list[ImageOrder]) -> list[tuple[int, str, str, str | None]]:
    """Render and write some CTs; (row, file or folder name, site, damage) each."""
    results = []
    for order in orders:
        rng = np.random.default_rng([order.seed, 100, order.row])
        patient = draw_patient(rng, order.severity_J, order.identity.female)
        acquisition, damage = draw_acquisition(rng, patient), None
        if order.damage_order is not None:
            damage, acquisition = damaged_kind(acquisition, order.damage_order)
        hu_DHW = render(patient, acquisition.shape_DHW, acquisition.to_anatomy, rng)
        hu_DHW = expose(hu_DHW, acquisition, rng)
        name = write_image(folder, hu_DHW, acquisition, order.identity, damage)
        results.append((order.row, name, f"site-{SCANNERS[acquisition.scanner][0].lower()}", damage))
    return results
