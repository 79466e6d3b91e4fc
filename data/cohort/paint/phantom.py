"""A chest CT in HU of a subject whose biomarkers are known.

Anatomical frame: millimetres, x right, y anterior, z superior (patient.py). D H W slices rows columns.
"""

from __future__ import annotations

import numpy as np

from data.cohort.paint.canvas import FAT, Canvas, soften
from data.cohort.paint.heart import paint_heart, paint_mediastinum
from data.cohort.paint.lungs import paint_lungs, paint_nodule
from data.cohort.paint.patient import BODY_CENTRE_Y, BODY_X, BODY_Y, Patient, Space, depth_in, level_of, profile_at


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


def _paint_table(canvas: Canvas) -> None:
    for x in (-112, -37, 38, 113):
        canvas.ellipsoid((x, -146 + x * x / 1100, 0), (60, 6, 400), -820)


def _paint_outline(canvas: Canvas, patient: Patient) -> None:
    """Breasts, skin, and fat down to the wall."""
    if patient.female:
        for side in (-74, 74):
            canvas.ellipsoid((side, 92, 0), (54, 42, 56), FAT)
            canvas.ellipsoid((side, 100, -4), (30, 20, 30), 10, soft=6)
    box = canvas.box(np.array([0.0, -4, 0]), np.abs(canvas.inverse) @ np.array([190.0, 140, 400]))
    x, y, z = (canvas.affine(row, offset, box) for row, offset in zip(canvas.linear, canvas.origin))
    level = level_of(z)
    # Fat lies outside the wall: the outline grows with it, the rib cage does not.
    grow = patient.fat_mm - 14
    half_x, half_y = profile_at(BODY_X)[level] + grow, profile_at(BODY_Y)[level] + 0.8 * grow
    depth = depth_in(x, y - profile_at(BODY_CENTRE_Y)[level], half_x, half_y, 0.72)
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
