"""Bytes of images changed at random: a scan is read or refused with a reason, never another exception, never a crash.

A short run here, ten thousand mutations a kind in `make chaos`.
"""

import resource
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from ttepretrain.errors import BadStudy
from ttepretrain.volume.checks import Reason
from ttepretrain.volume.dicom.coding import decoder
from ttepretrain.volume.preprocess import read_ct

COMPRESSED = {"rle": RLELossless, "jpegls": JPEGLSLossless, "jpeg2000": JPEG2000Lossless}
PLAIN = {"implicit": ImplicitVRLittleEndian, "deflated": DeflatedExplicitVRLittleEndian}
KINDS = ("explicit", "enhanced", *PLAIN, *COMPRESSED, "nifti", "nifti.gz", "nifti2")
MEMORY_GROWTH = 512 << 20


@pytest.fixture
def scan(tmp_path, geometry, enhanced, write_series, write_nifti):
    """(kind) -> (path to read, file to damage) of a scan of 4 x 33 x 40 voxels; JPEG 2000 takes none smaller."""
    affine = geometry.dicom_affine((4, 33, 40), (8.0, 5.0, 5.0))
    hu_DHW = np.round(geometry.phantom_hu(geometry.grid_mm(affine, (4, 33, 40)))).astype(np.int16)

    def write(kind: str) -> tuple[Path, Path]:
        if kind == "nifti2":
            path = tmp_path / "scan.nii"
            nibabel.Nifti2Image(hu_DHW.transpose(2, 1, 0), affine[:, [2, 1, 0, 3]]).to_filename(path)
            return path, path
        if kind.startswith("nifti"):
            path = write_nifti(tmp_path / kind.replace("nifti", "scan.nii"), hu_DHW, affine)
            return path, path
        if kind == "enhanced":
            enhanced(hu_DHW, affine, [2, 0, 3, 1], per_frame=("PlaneOrientationSequence",)).save_as(
                tmp_path / "scan.dcm"
            )
            return tmp_path / "scan.dcm", tmp_path / "scan.dcm"
        syntax = {"syntax": PLAIN[kind]} if kind in PLAIN else {}
        files = write_series(tmp_path / "scan", hu_DHW, affine, **syntax)
        if kind in COMPRESSED:
            for file in files:
                dataset = pydicom.dcmread(file)
                dataset.compress(COMPRESSED[kind], generate_instance_uid=False)
                dataset.save_as(file)
        return tmp_path / "scan", files[2]

    return write


def mutated(whole: bytes, rng: np.random.Generator) -> bytes:
    """A few bytes changed, a stretch removed, doubled or zeroed, or the end cut; mostly where the header is."""
    data = bytearray(whole)
    end = len(data) if rng.random() < 0.5 else min(len(data), 1200)
    kind = rng.integers(8)
    if kind < 5:
        for at in rng.integers(0, end, rng.integers(1, 6)):
            data[at] = rng.choice([rng.integers(256), 0, 255, data[at] ^ 1 << rng.integers(8)])
        return bytes(data)
    start, length = int(rng.integers(end)), int(rng.integers(1, 64))
    if kind == 5:
        del data[start : start + length]
    elif kind == 6:
        data[start:start] = data[start : start + length]
    else:
        del data[start:]
    return bytes(data)


def fuzz(path: Path, file: Path, count: int, seed: int, inside_gzip: bool) -> set[Reason]:
    """Reasons of `count` mutations; raises what is no BadStudy."""
    whole = file.read_bytes()
    if inside_gzip:
        whole = zlib.decompress(whole, wbits=31)
    rng = np.random.default_rng(seed)
    reasons = set()
    for number in range(count):
        damaged = mutated(whole, rng)
        if inside_gzip and number % 2:  # half of them with a checksum that is right
            deflate = zlib.compressobj(1, wbits=31)
            damaged = deflate.compress(damaged) + deflate.flush()
        elif inside_gzip:
            damaged = mutated(zlib.compress(whole, 1, wbits=31), rng)
        file.write_bytes(damaged)
        try:
            read_ct(path)
        except BadStudy as refusal:
            reasons.add(refusal.code)
        except Exception as error:
            raise AssertionError(f"mutation {number} of seed {seed}: {type(error).__name__}: {error}") from error
    return reasons


def check(scan, kind: str, count: int, seed: int) -> None:
    path, file = scan(kind)
    read_ct(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    reasons = fuzz(path, file, count, seed, inside_gzip=kind == "nifti.gz")
    assert reasons <= set(Reason)
    assert len(reasons) > 1
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10 < MEMORY_GROWTH


@pytest.mark.parametrize("kind", KINDS)
def test_mutated_scans_end_in_a_declared_reason(scan, kind):
    check(scan, kind, 30, seed=2)


@pytest.mark.chaos
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_ten_thousand_mutated_scans_end_in_a_declared_reason(scan, kind, monkeypatch):
    hasty = (
        "import ttepretrain.volume.dicom.coding.decoder_child as child; child.CPU_SECONDS_PER_PICTURE = 1.0; serve()"
    )
    monkeypatch.setattr(decoder, "START", decoder.START.replace("serve()", hasty))
    monkeypatch.setattr(decoder, "MAX_DEATHS", 1)  # what a mutation does to one child it does to the next
    decoder._stop_idle()
    check(scan, kind, 10_000, seed=3)
