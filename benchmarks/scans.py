"""What the volume benchmarks read: synthetic CTs of real size and the real ones at hand; and the MONAI pipeline."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np

from ttepretrain.volume.spec import VolumeSpec

NOISE_HU = 14.0  # of a voxel, as in a thin-slice chest CT with a soft kernel
REAL = {  # place below the folder of fixtures
    "real_dicom": "ct_totalseg/example_ct_dicom",
    "real_nifti": "ct_totalseg/example_ct.nii.gz",
    "real_dicom_lowres": "ct_cip_lowres/ct-64Dicom",
}


def write_scans(folder: Path, shape_DHW: tuple[int, int, int], seed: int = 0) -> dict[str, Path]:
    """One phantom of this size as an uncompressed DICOM series and as a .nii.gz."""
    from data.cohort.paint.images import Identity, write_image
    from data.cohort.paint.scanner import Acquisition

    hu_DHW, affine, spacing_mm = phantom(shape_DHW, seed)
    acquisition = Acquisition(
        shape_DHW, affine, np.eye(4), spacing_mm, tilt_degrees=0.0, scanner=1, sharp=False, noise_hu=NOISE_HU, kvp=120,
        storage="explicit", slope=1.0, intercept=-1024.0, signed=False,
    )  # fmt: skip
    paths = {}
    for name, storage in (("dicom", "explicit"), ("nifti", "LPS")):
        identity = Identity(name, seed, female=False, age_years=60.0, time=datetime(2020, 1, 1))
        paths[name] = folder / write_image(folder, hu_DHW, replace(acquisition, storage=storage), identity, None)
    return paths


def phantom(shape_DHW: tuple[int, int, int], seed: int) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float]]:
    """int16 HU, affine to RAS mm, spacing: anatomy drawn at a quarter of the resolution, noise at the whole of it."""
    import torch

    from data.cohort.exam import BIOMARKERS
    from data.cohort.paint.patient import draw_patient
    from data.cohort.paint.phantom import render
    from data.cohort.paint.scanner import COVERAGE_MM, FIELD_OF_VIEW_MM

    rng = np.random.default_rng(seed)
    patient = draw_patient(rng, rng.random(len(BIOMARKERS)), female=bool(seed % 2))
    coarse = tuple(max(8, size // 4) for size in shape_DHW)
    coarse_hu_DHW = render(patient, coarse, _affine(coarse, COVERAGE_MM, FIELD_OF_VIEW_MM), rng)
    x = torch.from_numpy(coarse_hu_DHW)[None, None]
    hu_DHW = torch.nn.functional.interpolate(x, size=shape_DHW, mode="trilinear")[0, 0].numpy()
    hu_DHW += rng.standard_normal(shape_DHW, np.float32) * np.float32(NOISE_HU)
    hu_DHW = np.rint(hu_DHW.clip(-1024, 3071)).astype(np.int16)
    affine = _affine(shape_DHW, COVERAGE_MM, FIELD_OF_VIEW_MM)
    return hu_DHW, affine, tuple(np.linalg.norm(affine[:3, :3], axis=0).tolist())


def _affine(shape_DHW, coverage_mm: float, field_mm: float) -> np.ndarray:
    step = np.array([coverage_mm, field_mm, field_mm]) / shape_DHW
    affine = np.eye(4)
    affine[:3, :3] = [[0, 0, -step[2]], [0, -step[1], 0], [step[0], 0, 0]]
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape_DHW) - 1) / 2)
    return affine


def real_scans() -> dict[str, Path]:
    """Those of the fixtures that are present (TTE_FIXTURES, default ../shared/fixtures)."""
    root = Path(os.environ.get("TTE_FIXTURES", Path(__file__).parents[2] / "shared" / "fixtures"))
    return {name: root / place for name, place in REAL.items() if (root / place).exists()}


def monai_pipeline(spec: VolumeSpec):
    """path -> float32 [1, W, H, D] in [0, 1] on the spec's grid, as MONAI's tutorials preprocess CT."""
    from monai import transforms as t

    low, high = spec.hu_range
    return t.Compose(
        [
            t.LoadImage(reader=["PydicomReader", "NibabelReader"], image_only=True, ensure_channel_first=True),
            t.Orientation(axcodes="RAS", labels=None),
            t.Spacing(pixdim=spec.spacing_mm[::-1], mode="bilinear"),
            t.ScaleIntensityRange(a_min=low, a_max=high, b_min=0.0, b_max=1.0, clip=True),
            t.ResizeWithPadOrCrop(spatial_size=spec.shape_DHW[::-1]),
        ]
    )


def cpu_seconds_of(work: Callable[[], object]) -> float:
    """Processor time of one call, in this process and in the children that it leaves; to a hundredth."""
    import psutil

    def spent() -> float:
        own = psutil.Process()
        return sum(sum(process.cpu_times()[:2]) for process in (own, *own.children(recursive=True)))

    began = spent()
    work()
    return spent() - began


def seconds_of(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
