"""An analytic chest, affines to sample it with, and a writer of DICOM series."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gdcm
import nibabel
import numpy as np
import pytest
from pydicom import Dataset
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

# centre and radii in RAS+ mm, HU: later ones lie inside earlier ones
ORGANS = (
    ((0, 0, 0), (90, 65, 200), 40.0),  # body
    ((45, 5, 15), (30, 40, 70), -850.0),  # right lung, the larger one
    ((-45, 5, 20), (25, 38, 60), -850.0),
    ((40, 10, -30), (40, 40, 22), 110.0),  # liver
    ((0, -45, 0), (12, 12, 200), 450.0),  # spine
)


def phantom_hu(points_mm: np.ndarray) -> np.ndarray:
    """float32 HU at RAS+ points [..., 3]; edges fade over about 8 mm, so that grids can be compared."""
    hu = np.full(points_mm.shape[:-1], -1000.0)
    for centre, radii, value in ORGANS:
        scaled = (points_mm - centre) / np.array(radii, float)
        outside_mm = (np.sqrt((scaled**2).sum(axis=-1)) - 1) * min(radii)
        share = 0.5 * (1 - np.tanh(outside_mm / 4.0))
        hu += share * (value - hu)
    return hu.astype(np.float32)


def grid_mm(affine: np.ndarray, shape_DHW: tuple[int, int, int]) -> np.ndarray:
    """RAS+ mm [D, H, W, 3] of every voxel centre."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape_DHW), indexing="ij"), axis=-1)
    return index @ affine[:3, :3].T + affine[:3, 3]


def centred_affine(
    shape_DHW: tuple[int, int, int], spacing_mm: tuple[float, float, float], linear: np.ndarray | None = None
) -> np.ndarray:
    """Affine whose middle voxel lies at the origin; `linear` (mm) is applied after the axis-aligned RAS+ grid."""
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if linear is None else linear) @ np.diag(spacing_mm)[::-1]
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape_DHW) - 1) / 2)
    return affine


def rotation(*degrees_xyz: float) -> np.ndarray:
    out = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees_xyz)):
        i, j = [k for k in range(3) if k != axis]
        turn = np.eye(3)
        turn[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        out = turn @ out
    return out


def dicom_affine(
    shape_DHW: tuple[int, int, int], spacing_mm: tuple[float, float, float], lean: float = 0.0
) -> np.ndarray:
    """Rows run to the back, columns to the patient's left, slices to the head, leaning `lean` mm forward per mm."""
    affine = np.zeros((4, 4))
    affine[:3, 0] = np.array([0.0, lean, 1.0]) * spacing_mm[0]
    affine[:3, 1] = np.array([0.0, -1.0, 0.0]) * spacing_mm[1]
    affine[:3, 2] = np.array([-1.0, 0.0, 0.0]) * spacing_mm[2]
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape_DHW) - 1) / 2)
    affine[3, 3] = 1.0
    return affine


def write_dicom_series(
    folder: Path,
    hu_DHW: np.ndarray,
    affine: np.ndarray,
    edit: Callable[[int, Dataset], None] | None = None,
    syntax: UID = ExplicitVRLittleEndian,
    series: int = 1,
) -> list[Path]:
    """One file a slice, stored as HU + 1024 in unsigned 16 bits; `edit(d, dataset)` may change each before writing."""
    folder.mkdir(parents=True, exist_ok=True)
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    to_lps = np.diag([-1.0, -1.0, 1.0])
    files = []
    for d, hu_HW in enumerate(hu_DHW):
        dataset = Dataset()
        dataset.SOPClassUID = CTImageStorage
        dataset.SOPInstanceUID = generate_uid(entropy_srcs=[str(series), str(d)])
        dataset.SeriesInstanceUID = generate_uid(entropy_srcs=["series", str(series)])
        dataset.StudyInstanceUID = generate_uid(entropy_srcs=["study"])
        dataset.PatientID, dataset.PatientName = "canary-patient", "Canary^Name"
        dataset.Modality, dataset.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
        dataset.Manufacturer, dataset.ConvolutionKernel, dataset.KVP = "SIEMENS", "B30f", 120
        dataset.InstanceNumber, dataset.SliceThickness = d + 1, float(spacing_mm[0])
        dataset.PixelSpacing = [float(spacing_mm[1]), float(spacing_mm[2])]
        along_W, along_H = (to_lps @ affine[:3, axis] / spacing_mm[axis] for axis in (2, 1))
        dataset.ImageOrientationPatient = [f"{v:.10g}" for v in (*along_W, *along_H)]
        dataset.ImagePositionPatient = [f"{v:.10g}" for v in to_lps @ (affine @ [d, 0, 0, 1])[:3]]
        dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = 1, -1024, "HU"
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.Rows, dataset.Columns = hu_HW.shape
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
        dataset.PixelData = (hu_HW.astype(np.int32) + 1024).astype(np.uint16).tobytes()
        if edit is not None:
            edit(d, dataset)
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
        meta.TransferSyntaxUID = syntax
        file = folder / f"{series}_{d:03d}.dcm"
        FileDataset(str(file), dataset, file_meta=meta, preamble=b"\0" * 128).save_as(file, enforce_file_format=True)
        files.append(file)
    return files


def _item(**values) -> Sequence:
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return Sequence([dataset])


def enhanced_ct(hu_DHW, affine, order, edit=None, per_frame=()) -> FileDataset:
    """Enhanced CT whose frames are the slices in `order`; `per_frame`: groups that each frame states itself.

    Odd slices have slope 2, where the transformation is stated frame by frame.
    """
    spacing_mm, to_lps = np.linalg.norm(affine[:3, :3], axis=0), np.diag([-1.0, -1.0, 1.0])
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = EnhancedCTImageStorage, generate_uid()
    dataset.SeriesInstanceUID = dataset.StudyInstanceUID = generate_uid()
    dataset.PatientID, dataset.Modality, dataset.ImageType = "canary-patient", "CT", ["ORIGINAL", "PRIMARY", "VOLUME"]
    dataset.Rows, dataset.Columns = hu_DHW.shape[1:]
    dataset.NumberOfFrames = len(order)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    along = [f"{v:.10g}" for axis in (2, 1) for v in to_lps @ affine[:3, axis] / spacing_mm[axis]]
    groups = {
        "PlaneOrientationSequence": lambda _: _item(ImageOrientationPatient=along),
        "PixelMeasuresSequence": lambda _: _item(PixelSpacing=list(spacing_mm[1:]), SliceThickness=2.0),
        "PixelValueTransformationSequence": lambda d: _item(
            RescaleSlope=slope(d), RescaleIntercept=-1024 * slope(d), RescaleType="HU"
        ),
        "CTImageFrameTypeSequence": lambda _: _item(FrameType=["ORIGINAL", "PRIMARY", "VOLUME"]),
    }

    def slope(d):
        return 1 + d % 2 if "PixelValueTransformationSequence" in per_frame else 1

    shared, frames = Dataset(), []
    for keyword in groups.keys() - set(per_frame):
        setattr(shared, keyword, groups[keyword](0))
    for d in order:
        frame = Dataset()
        frame.PlanePositionSequence = _item(
            ImagePositionPatient=[f"{v:.10g}" for v in to_lps @ (affine @ [d, 0, 0, 1])[:3]]
        )
        for keyword in per_frame:
            setattr(frame, keyword, groups[keyword](d))
        frames.append(frame)
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    dataset.PerFrameFunctionalGroupsSequence = Sequence(frames)
    stored = [(hu_DHW[d].astype(np.int32) // slope(d) + 1024).astype(np.uint16) for d in order]
    dataset.PixelData = np.stack(stored).tobytes()
    if edit is not None:
        edit(dataset)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return FileDataset("", dataset, file_meta=meta, preamble=b"\0" * 128)


@pytest.fixture(scope="session")
def enhanced():
    return enhanced_ct


@pytest.fixture(scope="session")
def chest() -> tuple[np.ndarray, np.ndarray]:
    """(hu_DHW int16, affine) of the phantom as a scanner writes it: 12 slices of 30 x 40 voxels, 8 x 5.5 x 5 mm."""
    shape = (12, 30, 40)
    affine = dicom_affine(shape, (8.0, 5.5, 5.0))
    return np.round(phantom_hu(grid_mm(affine, shape))).astype(np.int16), affine


def write_nifti_file(path: Path, hu_DHW: np.ndarray, affine: np.ndarray) -> Path:
    """A NIfTI file stored W H D, with sform and qform; `affine` maps D H W indices to RAS+ mm."""
    image = nibabel.Nifti1Image(hu_DHW.transpose(2, 1, 0), affine[:, [2, 1, 0, 3]])
    image.header.set_xyzt_units("mm")
    if np.allclose(np.linalg.det(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)) ** 2, 1):
        image.set_qform(affine[:, [2, 1, 0, 3]], code=1)
    image.to_filename(path)
    return path


@pytest.fixture(scope="session")
def write_nifti():
    return write_nifti_file


@pytest.fixture(scope="session")
def geometry():
    """This file's functions, for tests that cannot import a conftest."""

    class Geometry:
        phantom_hu = staticmethod(phantom_hu)
        grid_mm = staticmethod(grid_mm)
        centred_affine = staticmethod(centred_affine)
        rotation = staticmethod(rotation)
        dicom_affine = staticmethod(dicom_affine)

    return Geometry


@pytest.fixture(scope="session")
def write_series():
    return write_dicom_series


@pytest.fixture
def recode() -> Callable:
    """Function: (file, gdcm transfer syntax) rewrites the file in it, by another library's encoders."""

    def run(file: Path, syntax: int) -> None:
        reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
        reader.SetFileName(str(file))
        assert reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(syntax))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        writer.SetFileName(str(file))
        assert writer.Write()

    return run
