"""One patient's body: what a CT of it shows, and the coordinates that several organs share.

Anatomical frame: millimetres, x right, y anterior, z superior; the carina is near z = 45, the domes near z = -55.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from data.cohort.exam import BIOMARKERS
from data.cohort.paint.canvas import Canvas

# Half widths and centres of the trunk's outline and of the rib cage's inside, by height z (mm).
HEIGHTS = (-170, -120, -60, 0, 50, 85, 110, 128, 145, 175)
BODY_X = (152, 154, 158, 163, 166, 165, 160, 150, 128, 92)
BODY_Y = (116, 117, 118, 117, 115, 112, 107, 101, 94, 84)
BODY_CENTRE_Y = (0, 0, 0, 0, -2, -5, -8, -11, -14, -18)
CAGE_X = (128, 131, 133, 131, 121, 105, 84, 58, 34, 20)
CAGE_Y = (88, 91, 93, 90, 80, 68, 55, 42, 30, 18)
CAGE_CENTRE_Y = (0, 0, 0, -2, -8, -13, -18, -23, -26, -28)


@dataclass(frozen=True)
class Patient:
    """What one CT shows: biomarkers in physical units, and how this body happens to be built and breathing."""

    biomarker: dict[str, float]
    female: bool
    size_xyz: np.ndarray  # scale of the whole body
    fat_mm: float  # subcutaneous
    inflation_mm: float  # domes lower (+) or higher (-)
    lung_hu: float
    blood_hu: float  # right heart and pulmonary artery, where the contrast arrives first
    aorta_hu: float
    effusion_right: float  # share of the fluid that lies on the right side


def draw_patient(rng: np.random.Generator, severity_J: np.ndarray, female: bool) -> Patient:
    """One visit's chance variation around the subject's biomarkers."""
    values = {b.name: b.at_zero + (b.at_one - b.at_zero) * s for b, s in zip(BIOMARKERS, severity_J)}
    blood = rng.uniform(130, 310)
    side = rng.random()
    return Patient(
        biomarker=values,
        female=female,
        size_xyz=np.clip(rng.normal(0.95 if female else 1.0, 0.045) + rng.normal(0, 0.02, 3), 0.84, 1.12),
        fat_mm=float(np.clip(rng.gamma(4.0, 4.0), 3, 34)),
        inflation_mm=float(rng.normal(0, 9)),
        lung_hu=float(np.clip(rng.normal(-845, 22), -890, -790)),
        blood_hu=float(blood),
        aorta_hu=float(blood * rng.uniform(0.55, 1.1)),
        effusion_right=float(1.0 if side < 0.35 else 0.0 if side < 0.6 else 0.5),
    )


class Space:
    """Box around the rib cage with coordinates and signed depths (mm, positive inside) that several organs share."""

    def __init__(self, canvas: Canvas, patient: Patient):
        self.box = canvas.box(np.array([0.0, -4, 0]), np.abs(canvas.inverse) @ np.array([152.0, 116, 400]))
        self.x, self.y, self.z = (canvas.affine(r, o, self.box) for r, o in zip(canvas.linear, canvas.origin))
        level = level_of(self.z)
        y = self.y - profile_at(CAGE_CENTRE_Y)[level]
        self.cage = depth_in(self.x, y, profile_at(CAGE_X)[level], profile_at(CAGE_Y)[level], 0.55)
        right = -48 - 66 * (np.square((self.x - 68) / 64) + np.square((self.y - 8) / 92))
        left = -60 - 58 * (np.square((self.x + 72) / 60) + np.square((self.y - 8) / 92))
        tendon = -74 - 46 * (np.square(self.x / 62) + np.square((self.y - 22) / 80))  # below the heart
        dome = np.maximum(np.maximum(right, left), np.maximum(tendon, -122)) - np.float32(patient.inflation_mm)
        self.above = self.z - dome  # the diaphragm


@cache
def profile_at(values: tuple[int, ...]) -> np.ndarray:
    """Smooth table over z = -200 ... 199 mm, float32 [400]."""
    padded = np.pad(np.interp(np.arange(-200, 200), HEIGHTS, values), 12, mode="edge")
    return np.convolve(padded, np.ones(25) / 25, mode="valid").astype(np.float32)


def level_of(z: np.ndarray) -> np.ndarray:
    return np.clip(z + 200, 0, 399).astype(np.int16)


def depth_in(x: np.ndarray, y: np.ndarray, half_x: np.ndarray, half_y: np.ndarray, roundness: float) -> np.ndarray:
    """Depth below an upright wall in mm, negative outside. `roundness`: 1 an ellipse, less is nearer to a rectangle.

    With u = (x/half_x)^2, v = (y/half_y)^2, r = roundness the wall is r (u + v) + (1 - r) (u^2 + v^2) = 1.
    """
    u, v = np.square(x / half_x), np.square(y / half_y)
    square = 1 - roundness
    level = roundness * (u + v) + square * (u * u + v * v)
    radius = np.sqrt((np.sqrt(roundness**2 + 4 * square * level) - roundness) / (2 * square))
    # The radius has no unit; the mean half width makes walls about as thick in every direction.
    return (1 - radius) * (0.45 * half_x + 0.55 * half_y)
