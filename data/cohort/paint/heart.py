"""Heart, great vessels and airways of the phantom. Frame and units as in patient.py."""

from __future__ import annotations

from functools import cache

import numpy as np

from data.cohort.paint.canvas import AIR, FAT, Canvas
from data.cohort.paint.patient import Patient


def paint_mediastinum(canvas: Canvas, patient: Patient) -> None:
    """Airways, aorta, pulmonary artery, superior vena cava, oesophagus."""
    blood, aorta = patient.blood_hu, patient.aorta_hu
    canvas.ellipsoid((0, 2, 55), (30, 40, 48), -40, soft=3)
    arch = [(10, 16, 15), (17, 22, 45), (14, 18, 68), (2, 4, 80), (-12, -20, 80), (-24, -36, 70), (-27, -44, 40)]
    canvas.path(arch, 15.0, aorta)
    canvas.path([(-27, -44, 40), (-27, -46, 0), (-22, -42, -60), (-10, -34, -170)], 12.5, aorta)
    for start, end in (((16, 16, 74), (24, 4, 110)), ((3, 4, 84), (-8, 2, 112)), ((-10, -12, 84), (-20, -12, 112))):
        canvas.tube(start, end, 5.5, aorta)
    vein = 4.5 + 4.5 * np.sqrt(patient.biomarker["rv_lv"])  # the caval veins widen with a failing right heart
    canvas.path([(28, 2, 112), (27, 6, 80), (28, 6, 20), (28, 2, -5)], vein, blood * 1.15)
    canvas.path([(26, 2, -40), (27, -14, -90), (20, -22, -175)], 1.2 * vein, 0.5 * aorta + 20)
    radius = patient.biomarker["pulmonary_artery"] / 2
    canvas.path([(-14, 38, 8), (-18, 30, 28), (-20, 12, 42)], radius, blood)
    canvas.path([(-20, 12, 42), (4, -2, 36), (36, -8, 30), (52, -14, 18)], radius * 0.76, blood)
    canvas.path([(-20, 12, 42), (-38, -10, 42), (-48, -22, 26)], radius * 0.76, blood)
    canvas.path([(0, -32, 110), (-4, -34, 40), (-8, -30, -60), (-14, -22, -90)], 7.5, 35)
    canvas.path([(0, -16, 150), (0, -18, 88), (1, -22, 48)], 10.5, 30)
    canvas.path([(0, -16, 160), (0, -18, 88), (1, -22, 48)], 8.5, AIR)
    canvas.path([(1, -22, 48), (24, -24, 26), (44, -24, 12)], 6.6, AIR)
    canvas.path([(1, -22, 48), (-28, -26, 22), (-46, -28, 8)], 6.0, AIR)


CALCIUM = 1500.0
APEX = np.array([-0.66, 0.60, -0.45])  # long axis of the heart
LEFTWARD = np.array([-0.62, -0.76, -0.10])  # from the right to the left ventricle


@cache
def _heart_axes() -> np.ndarray:
    long = APEX / np.linalg.norm(APEX)
    across = LEFTWARD - (LEFTWARD @ long) * long
    across /= np.linalg.norm(across)
    return np.stack([long, across, np.cross(long, across)])


def paint_heart(canvas: Canvas, patient: Patient, rng: np.random.Generator) -> None:
    """Muscle, four chambers filled with contrast, fat around, calcium along the coronaries."""
    scale = patient.biomarker["heart_size"]
    axes = _heart_axes()
    centre = np.array([-17.0, 20.0, -24.0 - 0.3 * patient.inflation_mm])
    ratio = np.sqrt(patient.biomarker["rv_lv"])
    blood, aorta = patient.blood_hu, patient.aorta_hu

    def at(along: float, across: float, up: float) -> np.ndarray:
        return centre + scale * (np.array([along, across, up]) @ axes)

    canvas.ellipsoid(centre, np.array([70, 54, 52]) * scale, FAT + 40, axes)
    canvas.ellipsoid(centre, np.array([64, 49, 47]) * scale, 75 + 0.12 * aorta, axes)
    canvas.ellipsoid(at(10, 18, -2), np.array([41, 22 / ratio, 24 / ratio]) * scale, aorta, axes)
    canvas.ellipsoid(
        at(8, 18 - 21 / ratio - 4 - 15 * ratio, 2), np.array([42, 15 * ratio, 27 * ratio]) * scale, blood, axes
    )
    # The right atrium stretches with its ventricle.
    atrium = np.array([23, 27, 32]) * (0.42 + 0.58 * ratio) * scale
    canvas.ellipsoid(centre + scale * np.array([43, -2, 4]), atrium, blood)
    canvas.ellipsoid(centre + scale * np.array([14, -38, 22]), np.array([35, 18, 24]) * scale, 0.9 * aorta)
    canvas.tube(tuple(at(-34, 4, 8)), (10, 16, 15), 14.0, aorta)
    canvas.tube(tuple(at(-24, -30, 14)), (-14, 38, 8), 12.0 * scale, blood)
    amount = patient.biomarker["calcium"]
    if amount > 1:
        foci_P3, mm3_P = _calcium(rng, amount)
        box = canvas.box(centre, np.abs(canvas.inverse) @ np.full(3, 90.0 * scale))
        canvas.mix(box, canvas.splat(centre + scale * (foci_P3 @ axes), mm3_P, box), CALCIUM)


def _calcium(rng: np.random.Generator, amount_mm3: float) -> tuple[np.ndarray, np.ndarray]:
    """Plaques on three arteries over the heart's surface, in its own frame; points [P,3] and their volumes."""
    plaques = max(1, round(amount_mm3 / 160))
    artery = rng.choice(3, plaques, p=[0.5, 0.25, 0.25])
    part = rng.beta(1.3, 2.2, plaques)
    angle = np.choose(artery, [1.35 + 0.1 * part, 0.2 - 0.4 * part, 2.9 + 0.5 * part])  # around the long axis
    along = np.choose(artery, [-0.5 + 1.2 * part, -0.62 + 0.35 * part, -0.62 + 0.45 * part])
    ring = np.sqrt(1 - along**2)
    surface = np.column_stack([67 * along, 51 * ring * np.cos(angle), 49 * ring * np.sin(angle)])
    size = rng.dirichlet(np.full(plaques, 2.0)) * amount_mm3
    offsets = rng.normal(0, 1.3, (plaques, 5, 3))
    return (surface[:, None] + offsets).reshape(-1, 3), np.repeat(size / 5, 5)
