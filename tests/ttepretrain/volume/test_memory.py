"""Peak memory of reading a scan, measured in a process of its own: at most so many times the bytes of input and output.

NIfTI                     1 x output, half as much again where the first value that is not whole comes late
DICOM                     1 x output
DICOM, uneven slices      1 x input + 1 x output, which is at most 8 times the input
preprocessing             beyond reading: a fixed amount, whatever the size of the scan
"""

import json
import subprocess
import sys
from pathlib import Path

import gdcm
import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset
from pydicom.uid import DeflatedExplicitVRLittleEndian

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")

MB = 10**6
FIXED_MB = 60  # buffers, headers, libraries that are loaded late
SHAPE = (96, 512, 320)  # 31 MB in 16 bits
CHILD = """
import json, os, sys
from pathlib import Path
from ttepretrain.volume.dicom import reader
from ttepretrain.volume.dicom.coding import decoder, decoder_child
from ttepretrain.volume import nifti

def peak(pid="self"):
    return next(int(l.split()[1]) * 1024 for l in open(f"/proc/{pid}/status") if l.startswith("VmHWM"))

path, how = Path(sys.argv[1]), sys.argv[2]
if how == "read":
    read = nifti.read_nifti if path.suffix in (".nii", ".gz") else reader.read_dicom
else:
    from ttepretrain.volume.preprocess import preprocess_ct
    from ttepretrain.volume.spec import PRESETS
    preprocess_ct(Path(sys.argv[3]), PRESETS[how])
    read = lambda path: preprocess_ct(path, PRESETS[how])
start = peak()
image = read(path)
children = [peak(child.pid) for child in decoder._idle.get(os.getpid(), [])]
print(json.dumps([peak() - start, image.hu_DHW.nbytes, str(image.hu_DHW.dtype), max(children, default=0)]))
"""


def measured(path, how="read", *more):
    """Peak and output in MB, type of the output, peak of the decoding process in MB."""
    command = [sys.executable, "-c", CHILD, path, how, *more]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peak, out, dtype, decoder = json.loads(done.stdout)
    return peak / MB, out / MB, dtype, decoder / MB


@pytest.fixture(scope="module")
def hu_DHW() -> np.ndarray:
    """Tissue with an ellipse of lung, and noise in a corner, so that it compresses as scans do."""
    d, h, w = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij", sparse=True)
    hu = np.where(h**2 + w**2 < 0.8, 40, -1000) + np.where((h * 2) ** 2 + (w * 2) ** 2 + d**2 < 0.8, -890, 0)
    hu[:, :64, :64] += np.random.default_rng(0).integers(-20, 20, (SHAPE[0], 64, 64))
    return hu.astype(np.int16)


@pytest.fixture(scope="module")
def affine(geometry) -> np.ndarray:
    return geometry.dicom_affine(SHAPE, (2.0, 0.8, 1.2))


NIFTI = {  # file type, slope, intercept, times the output
    "int16": ("<i2", 1, 0, 1),
    "int16 big endian": (">i2", 1, 0, 1),
    "uint16": ("<u2", 1, -1024, 1),
    "uint8": ("<u1", 8, -1024, 1),
    "int32": ("<i4", 1, 0, 1),
    "int64": ("<i8", 1, 0, 1),
    "float32": ("<f4", 1, 0, 1),
    "float64": ("<f8", 1, 0, 1),
    "float32 big endian": (">f4", 1, 0, 1),
    "slope not whole": ("<i2", 0.75, 0.5, 1),
    "float32 not whole at its end": ("<f4", 1, 0, 1.5),
}


PACKED = ("int16", "float64", "float32 not whole at its end")  # the smallest, the largest, and two outputs


@pytest.mark.parametrize(
    ("kind", "suffix"), [*((kind, ".nii") for kind in NIFTI), *((kind, ".nii.gz") for kind in PACKED)]
)
def test_nifti(tmp_path, hu_DHW, affine, kind, suffix):
    dtype, slope, intercept, times = NIFTI[kind]
    stored = ((hu_DHW - intercept) // slope).astype(dtype)
    if "end" in kind.split():
        stored[-1, -1, -1] += 0.5
    image = nibabel.Nifti1Image(stored.transpose(2, 1, 0), affine[:, [2, 1, 0, 3]], dtype=np.dtype(dtype))
    image = nibabel.Nifti1Image(image.dataobj, image.affine, image.header.as_byteswapped(dtype[0]))
    image.header.set_slope_inter(slope, intercept)
    nibabel.openers.Opener.default_compresslevel, level = 1, nibabel.openers.Opener.default_compresslevel
    image.to_filename(tmp_path / f"scan{suffix}")
    nibabel.openers.Opener.default_compresslevel = level
    peak, out, read_as, _ = measured(tmp_path / f"scan{suffix}")
    assert read_as == ("float32" if "not" in kind else "int16")
    assert out == pytest.approx(hu_DHW.size * (4 if "not" in kind else 2) / MB)
    assert peak <= FIXED_MB / 2 + times * out


def half_slopes(_, dataset):
    dataset.RescaleSlope, dataset.RescaleIntercept = 0.5, -512


RECODED = {
    "big endian": gdcm.TransferSyntax.ExplicitVRBigEndian,
    "JPEG lossless": gdcm.TransferSyntax.JPEGLosslessProcess14_1,
    "JPEG-LS": gdcm.TransferSyntax.JPEGLSLossless,
    "JPEG 2000": gdcm.TransferSyntax.JPEG2000Lossless,
    "RLE": gdcm.TransferSyntax.RLELossless,
}
WRITTEN = {"native": {}, "deflated": {"syntax": DeflatedExplicitVRLittleEndian}, "not whole": {"edit": half_slopes}}


@pytest.mark.parametrize("kind", [*WRITTEN, *RECODED])
def test_dicom(tmp_path, hu_DHW, affine, write_series, recode, kind):
    scan = hu_DHW[::2] if "J" in kind else hu_DHW
    for file in write_series(tmp_path / "scan", scan, affine, **WRITTEN.get(kind, {})):
        if kind in RECODED:
            recode(file, RECODED[kind])
    peak, out, read_as, decoder = measured(tmp_path / "scan")
    assert read_as == ("float32" if "not" in kind else "int16")
    assert peak <= FIXED_MB + out
    assert decoder <= 200


@pytest.mark.parametrize("kind", ["native", "JPEG-LS", "deflated"])
def test_multi_frame_dicom(tmp_path, hu_DHW, affine, enhanced, kind):
    dataset: FileDataset = enhanced(hu_DHW, affine, range(len(hu_DHW)))
    (tmp_path / "scan").mkdir()
    file = tmp_path / "scan" / "all.dcm"
    if kind == "JPEG-LS":
        dataset.compress(pydicom.uid.JPEGLSLossless)
    elif kind == "deflated":
        dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(file)
    peak, out, _, decoder = measured(tmp_path / "scan")
    assert out == pytest.approx(hu_DHW.nbytes / MB)
    assert peak <= FIXED_MB + out
    assert decoder <= 250


@pytest.mark.parametrize("thin", [1, 40])
def test_uneven_dicom(tmp_path, hu_DHW, affine, write_series, thin):
    """One thin slab among slices 10 mm apart: forty times the input, once."""
    gaps_mm = [10.0] * 30 + [0.5] * (4 if thin == 1 else 40) + [10.0] * 25
    count = len(gaps_mm) + 1

    def place(d, dataset):
        x, y, z = dataset.ImagePositionPatient
        dataset.ImagePositionPatient = [x, y, float(z) - 2.0 * d + sum(gaps_mm[:d])]

    write_series(tmp_path / "scan", hu_DHW[:count], affine, edit=place)
    peak, out, read_as, _ = measured(tmp_path / "scan")
    stored = hu_DHW[:count].nbytes / MB
    assert read_as == "int16"
    assert 5 * stored < out <= 8.01 * stored
    assert peak <= FIXED_MB + stored + out


@pytest.mark.parametrize("how", ["aligned", "oblique", "tilted", "stretched"])
def test_preprocessing_takes_a_fixed_amount_beyond_the_scan(tmp_path, geometry, chest, write_nifti, how):
    """Under a large rotation also twice the scan: it is smoothed as a whole, in 32 bits."""
    write_nifti(tmp_path / "small.nii", *chest)
    shape = (160, 512, 488)
    tilt = np.array([[1.0, 0, 0], [0, 1, 0.3], [0, 0, 1]])
    linear = {"oblique": geometry.rotation(9, -14, 20), "tilted": tilt}.get(how)
    affine = geometry.centred_affine(shape, (2.0, 0.7, 0.75), linear)
    hu_DHW = np.full(shape, -1000, np.int16)
    hu_DHW[20:140, 80:430, 40:450] = 40
    hu_DHW[30:130, 160:350, 120:370] = -850
    path = write_nifti(tmp_path / "large.nii", hu_DHW, affine)
    peak, _, _, _ = measured(path, "reference" if how == "stretched" else "default", tmp_path / "small.nii")
    scan = hu_DHW.nbytes / MB
    assert peak <= scan + 250 + (2 * scan if how == "oblique" else 0)
