"""The machine and the moment: voxel grid, position of the patient on it, kernel, noise, and how the file is stored."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from data.cohort.paint.patient import Patient
from data.cohort.paint.texture import noise_window

# vendor, model, soft kernel, sharp kernel, HU offset, noise factor
SCANNERS = (
    ("Arbor", "A-64", "SOFT20", "CHST60", 1.5, 1.0),
    ("Boreal", "Clarity", "B31f", "B60f", -1.0, 0.8),
    ("Cobalt", "CX 128", "STANDARD", "LUNG", 0.0, 1.2),
)
SYNTAXES = ("explicit", "rle", "rle", "jpegls", "jpegls", "jpeg2000")
ORIENTATIONS = ("LPS", "RAS", "LAS", "RPI", "SLA", "PIR")  # of NIfTI arrays, first axis first
FIELD_OF_VIEW_MM, COVERAGE_MM = 384.0, 306.0
DICOM_SHARE, TILTED = 0.6, 0.06


@dataclass(frozen=True)
class Acquisition:
    """Axes D H W run inferior-superior, anterior-posterior, right-left; affine: index -> RAS mm."""

    shape_DHW: tuple[int, int, int]
    affine: np.ndarray  # 4x4 float64
    to_anatomy: np.ndarray  # 4x4 float64: index -> the patient's own frame
    spacing_mm: tuple[float, float, float]
    tilt_degrees: float
    scanner: int
    sharp: bool
    noise_hu: float
    kvp: int
    storage: str  # a DICOM transfer syntax, or a NIfTI orientation code
    slope: float
    intercept: float
    signed: bool

    @property
    def is_dicom(self) -> bool:
        return self.storage in SYNTAXES


def draw_acquisition(rng: np.random.Generator, patient: Patient) -> Acquisition:
    dicom = rng.random() < DICOM_SHARE
    pixels = int(rng.integers(92, 101))
    in_plane = FIELD_OF_VIEW_MM / pixels
    step = float(rng.choice([5.0, 5.0, 5.5, 6.0]))
    slices = round(COVERAGE_MM / step)
    tilt = float(rng.choice([-1, 1]) * rng.uniform(4, 12)) if dicom and rng.random() < TILTED else 0.0
    spacing = (step, in_plane, in_plane)
    affine = _grid((slices, pixels, pixels), spacing, tilt, offset=rng.uniform(-40, 40, 3) * (1, 1, 4))
    centre = (affine @ [(slices - 1) / 2, (pixels - 1) / 2, (pixels - 1) / 2, 1])[:3]
    pose = _pose(rng, patient.size_xyz, centre)
    scanner = int(rng.integers(len(SCANNERS)))
    slope = float(rng.choice([1.0, 2.0])) if dicom else 1.0
    signed = bool(rng.random() < 0.5)
    return Acquisition(
        shape_DHW=(slices, pixels, pixels),
        affine=affine,
        to_anatomy=pose @ affine,
        spacing_mm=spacing,
        tilt_degrees=tilt,
        scanner=scanner,
        sharp=bool(rng.random() < 0.35),
        noise_hu=float(rng.uniform(6, 15) * SCANNERS[scanner][5]),
        kvp=int(rng.choice([100, 120, 120])),
        storage=str(rng.choice(SYNTAXES if dicom else ORIENTATIONS)),
        slope=slope,
        intercept=-1024.0 if dicom and (not signed or rng.random() < 0.5) else 0.0,
        signed=signed or not dicom,
    )


def _grid(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], tilt_degrees: float, offset: np.ndarray
) -> np.ndarray:
    """Affine of slices stacked along the table; a tilted gantry leans their rows, not the stack (a shear)."""
    angle = np.deg2rad(tilt_degrees)
    affine = np.eye(4)
    affine[:3, 0] = (0, 0, spacing[0])
    affine[:3, 1] = (0, -spacing[1] * np.cos(angle), spacing[1] * np.sin(angle))
    affine[:3, 2] = (-spacing[2], 0, 0)
    affine[:3, 3] = offset - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def _pose(rng: np.random.Generator, size_xyz: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """RAS mm of the scanner -> anatomical mm: a few degrees of rotation, off-centre placement, body size."""
    rotation = np.eye(3)
    for axis, sd in ((0, 2.0), (1, 1.5), (2, 3.0)):
        a, b = [i for i in range(3) if i != axis]
        angle = np.deg2rad(np.clip(rng.normal(0, sd), -2.5 * sd, 2.5 * sd))
        turn = np.eye(3)
        turn[[a, a, b, b], [a, b, a, b]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        rotation = turn @ rotation
    shift = np.array([rng.normal(0, 7), rng.normal(-8, 6), rng.normal(0, 9)])
    pose = np.eye(4)
    pose[:3, :3] = np.diag(1 / size_xyz) @ rotation
    pose[:3, 3] = -pose[:3, :3] @ (centre + shift)
    return pose


def expose(hu_DHW: np.ndarray, acquisition: Acquisition, rng: np.random.Generator) -> np.ndarray:
    """HU as stored, int16 [D,H,W]: kernel, noise, calibration, rounding to the rescale slope. Overwrites its input."""
    noise = noise_window(rng, hu_DHW.shape)
    if acquisition.sharp:
        noise = noise * np.float32(1.5 * acquisition.noise_hu)
    else:  # a soft kernel blurs edges and noise alike
        hu_DHW = _blur(hu_DHW)
        noise = _blur(noise) * np.float32(1.3 * acquisition.noise_hu)
    hu_DHW += noise
    hu_DHW += np.float32(SCANNERS[acquisition.scanner][4])
    np.clip(hu_DHW, -1024, 3071, out=hu_DHW)
    hu_DHW /= np.float32(acquisition.slope)
    return (np.rint(hu_DHW, out=hu_DHW) * np.float32(acquisition.slope)).astype(np.int16)


def _blur(volume: np.ndarray) -> np.ndarray:
    """[1 6 1] / 8 along rows and columns."""
    blurred = volume * np.float32(0.75)
    blurred[:, 1:] += volume[:, :-1] * np.float32(0.125)
    blurred[:, :-1] += volume[:, 1:] * np.float32(0.125)
    out = blurred * np.float32(0.75)
    out[:, :, 1:] += blurred[:, :, :-1] * np.float32(0.125)
    out[:, :, :-1] += blurred[:, :, 1:] * np.float32(0.125)
    return out


def damaged_kind(acquisition: Acquisition, order: int) -> tuple[str, Acquisition]:
    """The kind of damage of the order-th damaged image, and the acquisition with a storage that allows it."""
    kind = ("truncated", "missing_slice", "constant")[order % 3]
    if kind == "missing_slice" and not acquisition.is_dicom:
        return kind, replace(acquisition, storage="explicit")
    if kind != "missing_slice" and acquisition.is_dicom:
        flat = replace(acquisition, storage="RAS", slope=1.0, intercept=0.0, signed=True)
        return kind, flat
    return kind, acquisition
