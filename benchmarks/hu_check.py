"""False alarms of the HU check on sound scans, and what it says of spoiled ones; a table in Markdown.

    python -m benchmarks.hu_check                       a minute; docs/reference/hu-check.md shows what it prints

Sound scans: the real ones of the fixtures (TTE_FIXTURES), the cohort's chest, and a drawn body in many variants. Every
sound scan is spoiled in each way that converters, de-identifiers and windowing are known to spoil HU.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from benchmarks.bodies import masked, phantoms, ringed
from ttepretrain.errors import BadStudy
from ttepretrain.volume.hu import check_hu

Spoil = Callable[[np.ndarray], np.ndarray]


def cohort_chests() -> Iterator[tuple[str, np.ndarray]]:
    from data.cohort.exam import BIOMARKERS
    from data.cohort.paint.patient import draw_patient
    from data.cohort.paint.phantom import render
    from data.cohort.paint.scanner import draw_acquisition, expose

    for seed in range(12):
        rng = np.random.default_rng(seed)
        patient = draw_patient(rng, rng.random(len(BIOMARKERS)), female=bool(seed % 2))
        acquisition = draw_acquisition(rng, patient)
        drawn = render(patient, acquisition.shape_DHW, acquisition.to_anatomy, rng)
        yield f"synthetic cohort {seed}", expose(drawn, acquisition, rng)


def real_scans(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Series as they are read, without the check; and single slices, repeated to a stack."""
    import pydicom

    from ttepretrain.volume.dicom.reader import read_dicom
    from ttepretrain.volume.nifti import read_nifti

    for series in ("ct_totalseg/example_ct_dicom", "ct_cip_lowres/ct-64Dicom", "ct_dcmqa_ge_tilt/GE"):
        yield f"{series} (DICOM)", read_dicom(folder / series).hu_DHW
    yield "dicomdir_98892001/CT5N (DICOM)", read_dicom(folder / "dicom_pydicom_odd/dicomdir_98892001/CT5N").hu_DHW
    for file in ("example_ct.nii.gz", "example_ct_sm.nii.gz"):
        yield f"ct_totalseg/{file}", read_nifti(folder / "ct_totalseg" / file).hu_DHW
    for file in ("ct_transfer_syntaxes/wg04/*CT1*", "ct_transfer_syntaxes/wg04/*CT2*",
                 "ct_transfer_syntaxes/cornerstone_CTImage/*.dcm", "dicom_pydicom_odd/CT_small.dcm",
                 "dicom_pydicom_odd/J2K_pixelrep_mismatch.dcm"):  # fmt: skip
        for found in sorted(folder.glob(file)):
            try:
                dataset = pydicom.dcmread(found)
                stored_HW = dataset.pixel_array
            except Exception:  # a codec this machine lacks: the next file shows the same slice
                continue
            hu_HW = stored_HW * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
            yield f"{found.relative_to(folder)}, one slice", np.repeat(hu_HW.astype(np.int16)[None], 3, axis=0)
            break


def _wrapped(hu_DHW: np.ndarray) -> np.ndarray:
    return hu_DHW.astype(np.int16).view(np.uint16).astype(np.float32)


def _equalised(hu_DHW: np.ndarray) -> np.ndarray:
    _, rank, counts = np.unique(hu_DHW, return_inverse=True, return_counts=True)
    return (counts.cumsum() / hu_DHW.size * 4095)[rank].reshape(hu_DHW.shape).astype(np.int16)


def _clip(low: float, high: float) -> Spoil:
    return lambda x: np.clip(x, low, high)


def _iodine(x: np.ndarray) -> np.ndarray:
    """HU of iodine within the body; the rest set to the lowest value."""
    body = masked(x, -1024) > -1024
    rng = np.random.default_rng(3)
    return np.where(body, np.clip((x > 90) * (x - 60) * 0.5 + rng.normal(0, 12, x.shape), 0, 400), -1024).astype(
        np.int16
    )


def spoils() -> dict[str, Spoil]:
    return {
        "1,024 added": lambda x: x + 1024,
        "1,024 added, ring of -2,000": lambda x: ringed(x + 1024),
        "1,024 added, ring of -1,024": lambda x: ringed(x + 1024, -1024),
        "1,000 added, ring of -3,024": lambda x: ringed(x + 1000, -3024),
        "1,024 added to half of the slices": lambda x: (
            x + 1024 * (np.arange(len(x)) < len(x) / 2)[:, None, None].astype(np.int16)
        ),
        "intercept applied twice": lambda x: x - 1024,
        "intercept of -1,000 applied twice": lambda x: x - 1000,
        "sign lost": np.abs,
        "sign turned": np.negative,
        "inverted, 3,071 - HU": lambda x: 3071 - x,
        "negative values as unsigned": _wrapped,
        "modulo 256": lambda x: np.rint(x).astype(np.int16) & 255,
        "modulo 4,096": lambda x: np.rint(x).astype(np.int16) & 4095,
        "ten times": lambda x: x.astype(np.float32) * 10,
        "doubled": lambda x: x * 2,
        "slope 2 for 1, intercept -1,024": lambda x: 2 * (x + 1024) - 1024,
        "halved": lambda x: x // 2,
        "slope 0.5 for 1, intercept -1,024": lambda x: (x + 1024) // 2 - 1024,
        "divided by 1,000": lambda x: x / np.float32(1000),
        "scaled to 0..1": lambda x: (x - x.min()) / np.float32(x.max() - x.min()),
        "scaled to -1..1": lambda x: np.clip(x, -1000, 1000) / np.float32(1000),
        "scaled to 0..255": lambda x: np.clip((x + 160) * (255 / 400), 0, 255).astype(np.uint8),
        "standardised": lambda x: ((x - x.mean()) / x.std()).astype(np.float32),
        "attenuation, 1/mm": lambda x: np.maximum(0, 0.019 * (1 + x / np.float32(1000))),
        "equalised": _equalised,
        "clipped to -160..240": _clip(-160, 240),
        "clipped to -200..300": _clip(-200, 300),
        "clipped to -1,000..1,000": _clip(-1000, 1000),
        "clipped to -1,000..400": _clip(-1000, 400),
        "clipped to -1,350..150": _clip(-1350, 150),
        "clipped to -500..1,300": _clip(-500, 1300),
        "256 grey levels": lambda x: x // 16 * 16,
        "iodine or perfusion map": _iodine,
        "water map, mg/ml": lambda x: np.maximum(0, 1000 + x),
        "MR-like": lambda x: np.maximum(0, x + 300).astype(np.int16),
        "labels": lambda x: np.digitize(x, [-300, -20, 150]).astype(np.int16),
    }


def verdict(hu_DHW: np.ndarray) -> tuple[str, str]:
    """`sound`, flags or `refused`; and the detail of the refusal."""
    try:
        flags = check_hu(hu_DHW)
    except BadStudy as refusal:
        return "refused", f"{refusal.code}: {refusal.detail}"
    return ", ".join(flags) or "sound", ""


def _differs(spoiled: np.ndarray, hu_DHW: np.ndarray) -> bool:
    """Whether a thousandth of the tissue changed: clipping above a scan's own highest value spoils nothing."""
    tissue = hu_DHW > -900
    return float((spoiled != hu_DHW)[tissue].mean()) > 0.001


def sound_scans() -> Iterator[tuple[str, np.ndarray]]:
    folder = Path(os.environ.get("TTE_FIXTURES", "../shared/fixtures"))
    if folder.is_dir():
        yield from real_scans(folder)
    yield from cohort_chests()
    yield from phantoms()


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.hu_check")
    parser.add_argument(
        "--verbose", action="store_true", help="every verdict, and every scan in which nothing is noticed"
    )
    verbose = parser.parse_args().verbose
    scans = dict(sound_scans())
    said = {name: verdict(hu_DHW) for name, hu_DHW in scans.items()}
    print("| sound scans | verdict |\n|---|---|")
    for what in sorted({what for what, _ in said.values()}, reverse=True):
        names = [name for name, (found, _) in said.items() if found == what]
        print(f"| {len(names)}: {'; '.join(names)} | {what} |")
    print("\n| what was done to them | scans it changes | refused | flagged | not noticed | detail, for one chest |")
    print("|---|---|---|---|---|---|")
    for name, spoil in spoils().items():
        said = {scan: verdict(bad) for scan, hu_DHW in scans.items() if _differs(bad := spoil(hu_DHW), hu_DHW)}
        count = [sum(what == wanted for what, _ in said.values()) for wanted in ("refused", "sound")]
        example = verdict(spoil(scans["chest"]))[1].removeprefix("NOT_HU: ")
        print(f"| {name} | {len(said)} | {count[0]} | {len(said) - sum(count)} | {count[1]} | {example} |")
        if verbose:
            print("    not noticed:", [scan for scan, (what, _) in said.items() if what == "sound"])
            print(*(f"    {scan}: {what} {detail}" for scan, (what, detail) in said.items()), sep="\n")
    big = np.resize(scans["chest"], (300, 512, 512))
    for kind in (np.int16, np.float32):
        x, times = big.astype(kind), []
        for _ in range(5):
            start = time.perf_counter()
            check_hu(x)
            times.append(time.perf_counter() - start)
        print(f"\n300 x 512 x 512 {kind.__name__}: {sorted(times)[2] * 1000:.0f} ms")


if __name__ == "__main__":
    main()
