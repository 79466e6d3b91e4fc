"""A chest CT in HU of a subject whose biomarkers are known.

Anatomical frame: millimetres, x right, y anterior, z superior; the carina is near z = 45, the domes near z = -55.
D H W slices rows columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from data.cohort.canvas import FAT, Canvas, soften
from data.cohort.heart import paint_heart, paint_mediastinum
from data.cohort.latents import BIOMARKERS
from data.cohort.lungs import paint_lungs, paint_nodule

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


def render(
    patient: Patient, shape_DHW: tuple[int, int, int], to_anatomy: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Noise-free HU, float32 [D,H,W]. `to_anatomy`: 4x4, voxel index to anatomical millimetres."""
    canvas = Canvas(shape_DHW, to_anatomy)
    _paint_table(canvas)
    _paint_outline(canvas, patient)
    space = Space(canvas, patient)
    _paint_muscle(canvas, space, patient)
    _paint_ribs(canvas, space)
    _paint_abdomen(canvas, space, patient)
    paint_lungs(canvas, space, patient, rng)
    paint_mediastinum(canvas, patient)
    paint_heart(canvas, patient, rng)
    paint_nodule(canvas, patient, rng)
    _paint_spine(canvas, patient)
    return canvas.hu_DHW


class Space:
    """Box around the rib cage with coordinates and signed depths (mm, positive inside) that several organs share."""

    def __init__(self, canvas: Canvas, patient: Patient):
        self.box = canvas.box(np.array([0.0, -4, 0]), np.abs(canvas.inverse) @ np.array([152.0, 116, 400]))
        self.x, self.y, self.z = (canvas.affine(r, o, self.box) for r, o in zip(canvas.linear, canvas.origin))
        level = _level(self.z)
        y = self.y - _profile(CAGE_CENTRE_Y)[level]
        self.cage = _depth(self.x, y, _profile(CAGE_X)[level], _profile(CAGE_Y)[level], 0.55)
        right = -48 - 66 * (np.square((self.x - 68) / 64) + np.square((self.y - 8) / 92))
        left = -60 - 58 * (np.square((self.x + 72) / 60) + np.square((self.y - 8) / 92))
        tendon = -74 - 46 * (np.square(self.x / 62) + np.square((self.y - 22) / 80))  # below the heart
        dome = np.maximum(np.maximum(right, left), np.maximum(tendon, -122)) - np.float32(patient.inflation_mm)
        self.above = self.z - dome  # the diaphragm


@cache
def _profile(values: tuple[int, ...]) -> np.ndarray:
    """Smooth table over z = -200 ... 199 mm, float32 [400]."""
    padded = np.pad(np.interp(np.arange(-200, 200), HEIGHTS, values), 12, mode="edge")
    return np.convolve(padded, np.ones(25) / 25, mode="valid").astype(np.float32)


def _level(z: np.ndarray) -> np.ndarray:
    return np.clip(z + 200, 0, 399).astype(np.int16)


def _depth(x: np.ndarray, y: np.ndarray, half_x: np.ndarray, half_y: np.ndarray, roundness: float) -> np.ndarray:
    """Depth below an upright wall in mm, negative outside. `roundness`: 1 an ellipse, less is nearer to a rectangle.

    With u = (x/half_x)^2, v = (y/half_y)^2, r = roundness the wall is r (u + v) + (1 - r) (u^2 + v^2) = 1.
    """
    u, v = np.square(x / half_x), np.square(y / half_y)
    square = 1 - roundness
    level = roundness * (u + v) + square * (u * u + v * v)
    radius = np.sqrt((np.sqrt(roundness**2 + 4 * square * level) - roundness) / (2 * square))
    # The radius has no unit; the mean half width makes walls about as thick in every direction.
    return (1 - radius) * (0.45 * half_x + 0.55 * half_y)


def _paint_table(canvas: Canvas) -> None:
    for x in (-112, -37, 38, 113):
        canvas.ellipsoid((x, -146 + x * x / 1100, 0), (60, 6, 400), -820)


def _paint_outline(canvas: Canvas, patient: Patient) -> None:
    """Breasts, skin, and fat down to the wall."""
    if patient.female:
        for x in (-74, 74):
            canvas.ellipsoid((x, 92, 0), (54, 42, 56), FAT)
            canvas.ellipsoid((x, 100, -4), (30, 20, 30), 10, soft=6)
    box = canvas.box(np.array([0.0, -4, 0]), np.abs(canvas.inverse) @ np.array([190.0, 140, 400]))
    x, y, z = (canvas.affine(row, offset, box) for row, offset in zip(canvas.linear, canvas.origin))
    level = _level(z)
    # Fat lies outside the wall: the outline grows with it, the rib cage does not.
    grow = patient.fat_mm - 14
    half_x, half_y = _profile(BODY_X)[level] + grow, _profile(BODY_Y)[level] + 0.8 * grow
    depth = _depth(x, y - _profile(BODY_CENTRE_Y)[level], half_x, half_y, 0.72)
    canvas.mix(box, soften(depth.copy(), canvas.voxel_mm), 0.0)
    canvas.mix(box, soften(depth - 3, canvas.voxel_mm), FAT)


def _paint_muscle(canvas: Canvas, space: Space, patient: Patient) -> None:
    """Chest wall, back, chest, shoulder blade and flank muscle; fat inside the cage until organs fill it."""
    thickness = patient.biomarker["muscle"]
    lean = 30 + 2.2 * thickness  # wasted muscle is also infiltrated by fat
    canvas.mix(space.box, soften(space.cage + thickness + 7, canvas.voxel_mm), lean)
    canvas.mix(space.box, soften(space.cage - 1, canvas.voxel_mm), FAT + 15)
    grow = 0.55 + thickness / 24
    for side in (-1, 1):
        for z in (-150, -75, 0, 75):
            canvas.ellipsoid((side * 30, -94, z), (24 * grow, 17 * grow, 60), lean)
        canvas.ellipsoid((side * 62, 78, 62), (52, 13 * grow, 46), lean)
        canvas.ellipsoid((side * 98, -84, 70), (44, 14 * grow, 62), lean)
        canvas.ellipsoid((side * 128, -40, 10), (9 * grow, 46, 80), lean)


def _paint_ribs(canvas: Canvas, space: Space) -> None:
    """Ribs are the cage's shell cut by planes that fall from back to front, cartilage in front; sternum, shoulders."""
    pitch, slope = 25.0, 0.52
    across = np.abs(np.mod(space.z + slope * space.y + 3, pitch) - pitch / 2)
    shell = np.minimum(1 - space.cage, space.cage + 9.5)
    rib = soften(np.minimum(5.2 - across, shell), canvas.voxel_mm)
    rib *= (space.z < 122) & (np.abs(space.x) > 14)
    front = np.clip((space.y - 52) / 14, 0, 1)
    canvas.mix(space.box, rib, 330 - 235 * front)
    tilt = np.array([[1, 0, 0], [0, 0.97, 0.26], [0, -0.26, 0.97]])
    canvas.ellipsoid((0, 84, 25), (19, 6.5, 72), 190, tilt)
    canvas.ellipsoid((0, 66, 92), (27, 7, 22), 200, tilt)
    for side in (-1, 1):
        canvas.path([(side * 20, 66, 104), (side * 62, 52, 124), (side * 112, 20, 132)], 6.0, 380)
        plate = np.array([[0.92, -side * 0.38, 0], [side * 0.38, 0.92, 0], [0, 0, 1]])
        canvas.ellipsoid((side * 96, -84, 66), (36, 3.6, 52), 330, plate)
        canvas.tube((side * 76, -98, 104), (side * 132, -66, 116), 4.5, 330)


def _paint_abdomen(canvas: Canvas, space: Space, patient: Patient) -> None:
    """Below the domes: liver on the right with a left lobe, spleen and stomach with its air bubble on the left."""
    edge = np.clip(18 - 0.95 * (space.y + 5), -42, 26)  # the left lobe crosses the midline in front
    liver = np.minimum(np.minimum(space.cage - 0.5, -space.above - 3), space.x - edge)
    plain, contrast = patient.biomarker["liver_fat"], 0.1 * patient.aorta_hu
    canvas.mix(space.box, soften(liver, canvas.voxel_mm), plain + contrast)
    inside = np.zeros_like(canvas.hu_DHW)
    inside[space.box] = soften(np.minimum(space.cage - 2, -space.above - 3), canvas.voxel_mm)
    drop = patient.inflation_mm
    size = patient.biomarker["spleen_size"]
    turn = np.array([[0.94, 0.34, 0], [-0.34, 0.94, 0], [0, 0, 1]])
    for centre, radii, value, axes, highest_y in (
        ((-58, 28, -112 - drop), (46, 40, 36), 25.0, None, None),
        # Air rises to the front of the lying patient.
        ((-58, 28, -110 - drop), (41, 35, 31), -950.0, None, 36.0),
        ((-92, -42, -112 - drop), (24 * size, 42 * size, 40 * size), 55 + 0.2 * patient.aorta_hu, turn, None),
    ):
        box, cover = canvas.ellipsoid_cover(centre, radii, axes)
        if box is None:
            continue
        cover = cover * inside[box]
        if highest_y is not None:
            cover *= soften(canvas.affine(canvas.linear[1], canvas.origin[1] - highest_y, box), canvas.voxel_mm)
        canvas.mix(box, cover, value)


def _paint_spine(canvas: Canvas, patient: Patient) -> None:
    """Vertebral bodies and discs along the kyphosis, canal, laminae, transverse and spinous processes."""
    pitch, voxel = 24.0, canvas.voxel_mm
    box = canvas.box(np.array([0.0, -72, 0]), np.abs(canvas.inverse) @ np.array([40.0, 42, 400]))
    x, y, z = (canvas.affine(row, offset, box) for row, offset in zip(canvas.linear, canvas.origin))
    behind = y + 56 - 0.0007 * np.square(z)  # relative to the centre of the vertebral body
    level = np.abs(np.mod(z + 7, pitch) - pitch / 2)
    radius = np.sqrt(np.square(x / 18.5) + np.square(behind / 15.0))
    bone = patient.biomarker["bone_density"] + 190 * np.clip((radius - 0.72) / 0.2, 0, 1)
    disc = np.clip((level - 8.2) / 2, 0, 1)
    canvas.mix(box, soften((1 - radius) * 16, voxel), bone + disc * (85 - bone))
    arch = np.sqrt(np.square(x / 17) + np.square((behind + 25) / 13.5))
    canvas.mix(box, soften((1 - arch) * 14, voxel), 260 - 190 * np.clip((level - 7) / 3, 0, 1))
    transverse = np.minimum(4.5 - np.abs(behind + 24), np.minimum(36 - np.abs(x), 5.5 - level))
    canvas.mix(box, soften(transverse, voxel), 280)
    slanted = np.abs(np.mod(z + 7 - 0.5 * (behind + 30), pitch) - pitch / 2)
    spinous = np.minimum(np.minimum(4.0 - np.abs(x), 7.5 - slanted), np.minimum(-behind - 30, behind + 52))
    canvas.mix(box, soften(spinous, voxel), 300)
    canal = np.sqrt(np.square(x / 10.0) + np.square((behind + 22.5) / 8.0))
    canvas.mix(box, soften((1 - canal) * 9, voxel), 25)
