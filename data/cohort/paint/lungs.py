"""Lungs of the phantom: parenchyma, vessels, emphysema, opacities, pleural fluid, a nodule.

Frame and units as in patient.py. P points.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from data.cohort.paint.canvas import Canvas, soften
from data.cohort.paint.patient import Patient, Space
from data.cohort.paint.texture import noise_field, normal_quantile

WATER = 8.0
COARSE, FINE = 13.0, 8.0  # grain of opacities, and of emphysema
VESSEL_TREES = 4  # variants of the vascular tree


def paint_lungs(canvas: Canvas, space: Space, patient: Patient, rng: np.random.Generator) -> None:
    """Both lungs: denser towards the back, with vessels and the subject's lung and pleural disease."""
    x, y, z = space.x, space.y, space.z
    mediastinum = np.clip(27 - 0.0052 * np.square(y + 4), 4, 27) + 9 * np.clip((z - 88) / 30, 0, 1)
    depth = np.minimum(np.minimum(space.cage - 1, np.abs(x) - mediastinum), space.above)
    texture, patches = noise_field(rng, depth.shape, COARSE), noise_field(rng, depth.shape, FINE)
    hu = patient.lung_hu - 0.32 * (y + 10) + 14 * texture
    share = patient.biomarker["emphysema"]
    if share > 0:
        upper = np.clip((z - 5) / 70, 0, 1)
        hu += soften(patches - normal_quantile(1 - share * upper), 0.5) * (-978 - hu)
    share = patient.biomarker["lung_opacity"]
    if share > 0:
        lower = np.clip((25 - z) / 60, 0, 1) * np.clip((30 - y) / 60, 0.3, 1)
        hu += soften(texture - normal_quantile(1 - share * lower), 0.7) * (-280 + 60 * patches - hu)
    hu += canvas.splat(*_vessels(int(rng.integers(VESSEL_TREES))), space.box) * (45 - hu)
    if patient.biomarker["effusion"] > 0:
        _pour_fluid(hu, canvas, space, patient)
    canvas.mix(space.box, soften(depth, canvas.voxel_mm), hu)


def _pour_fluid(hu: np.ndarray, canvas: Canvas, space: Space, patient: Patient) -> None:
    """Pleural fluid lies behind and below (the patient is on the back); compressed lung borders it."""
    shares = np.minimum(1.35 * np.array([1 - patient.effusion_right, patient.effusion_right]), 1)
    left, right = (patient.biomarker["effusion"] * shares).astype(np.float32)
    amount = np.where(space.x > 0, right, left)
    taper = np.clip((95 - space.z) / 170, 0, 1)  # deepest at the base
    behind = 1.25 * amount * taper - 92 - space.y
    along_wall = 0.45 * amount * taper - np.maximum(space.cage, 0) - 0.25 * np.maximum(space.y, 0)
    depth = np.where(amount > 0.5, np.maximum(behind, along_wall), np.float32(-50))
    hu += np.float32(0.8) * soften(depth + 0.25 * amount, 10) * (-420 - hu)
    hu += soften(depth, canvas.voxel_mm) * (np.float32(WATER) - hu)


def paint_nodule(canvas: Canvas, patient: Patient, rng: np.random.Generator) -> None:
    """One solid lesion in the upper or middle lung, away from the hila."""
    radius = patient.biomarker["nodule"] / 2
    centre = (rng.choice([-1, 1]) * rng.uniform(66, 84), rng.uniform(-45, 25), rng.uniform(20, 78))
    stretch = rng.uniform(0.88, 1.12, 3)
    if radius > 1:
        box, cover = canvas.ellipsoid_cover(centre, radius * stretch)
        canvas.mix(box, cover, 45)


@cache
def _vessels(variant: int) -> tuple[np.ndarray, np.ndarray]:
    """Arteries and veins of both lungs, branching from the hila: points [P,3] and the mm3 each stands for [P]."""
    rng = np.random.default_rng([1904, variant])
    points: list[np.ndarray] = []
    volumes: list[np.ndarray] = []
    for side in (-1, 1):
        hilum = np.array([side * 38.0, -14.0, 16.0])
        for _ in range(90):
            target = np.array([side * rng.uniform(40, 120), rng.uniform(-82, 72), rng.uniform(-95, 112)])
            root = hilum + rng.normal(0, (5, 6, 12))
            _branch(rng, root, target, rng.uniform(2.0, 3.6), 2, points, volumes)
    return np.concatenate(points), np.concatenate(volumes)


def _branch(
    rng: np.random.Generator,
    start: np.ndarray,
    end: np.ndarray,
    radius: float,
    generations: int,
    points: list[np.ndarray],
    volumes: list[np.ndarray],
) -> None:
    """Append one vessel, as points every 2.5 mm that thin outwards, and its children."""
    length = float(np.linalg.norm(end - start))
    steps = max(2, int(length / 2.5))
    part = (np.arange(steps) + 0.5) / steps
    bow = np.sin(np.pi * part)[:, None] * rng.normal(0, 0.06 * length, 3)
    line = start + part[:, None] * (end - start) + bow
    thin = radius * (1 - 0.65 * part)
    points.append(line)
    volumes.append(np.pi * thin**2 * length / steps)
    if generations == 0 or length < 12:
        return
    for where in rng.uniform(0.35, 0.9, 2):
        direction = (end - start) / length + rng.normal(0, 0.55, 3)
        direction *= length * rng.uniform(0.3, 0.5) / np.linalg.norm(direction)
        origin = line[int(where * steps)]
        narrowed = radius * (1 - 0.65 * where) * 0.75
        _branch(rng, origin, origin + direction, narrowed, generations - 1, points, volumes)
