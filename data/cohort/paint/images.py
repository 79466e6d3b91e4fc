"""CT volumes on disk: real DICOM series in several transfer syntaxes, and gzipped NIfTI in several orientations.

Axes D H W as in scanner.py: inferior-superior, anterior-posterior, right-left.
"""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data.cohort.paint.scanner import SCANNERS, Acquisition

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pydicom.uid import UID

IMPLEMENTATION_UID = "2.25.226497415926535897932384626433832795"
# SOPInstanceUID, InstanceNumber, ImagePositionPatient, SliceLocation, PixelData: the elements that slices do not share.
SLICE_TAGS = (0x00080018, 0x00200013, 0x00200032, 0x00201041, 0x7FE00010)
TO_LPS = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class Identity:
    """The fake patient and moment that an image's header names."""

    study_id: str
    subject_id: int
    female: bool
    age_years: float
    time: datetime


def write_image(
    folder: Path, hu_DHW: np.ndarray, acquisition: Acquisition, identity: Identity, damage: str | None
) -> str:
    """Write one study below `folder`; returns its path relative to it. `damage`: see scanner.damaged_kind."""
    if damage == "constant":
        hu_DHW = np.zeros_like(hu_DHW)
    if acquisition.is_dicom:
        name = identity.study_id
        skipped = len(hu_DHW) // 2 if damage == "missing_slice" else None
        _write_series(folder / name, hu_DHW, acquisition, identity, skipped)
        return name
    name = f"{identity.study_id}.nii.gz"
    content = _nifti_bytes(hu_DHW, acquisition)
    (folder / name).write_bytes(content[: len(content) * 55 // 100] if damage == "truncated" else content)
    return name


def _nifti_bytes(hu_DHW: np.ndarray, acquisition: Acquisition) -> bytes:
    import nibabel

    current = nibabel.io_orientation(acquisition.affine)
    wanted = nibabel.orientations.axcodes2ornt(acquisition.storage)
    transform = nibabel.orientations.ornt_transform(current, wanted)
    array = nibabel.orientations.apply_orientation(hu_DHW, transform)
    affine = acquisition.affine @ nibabel.orientations.inv_ornt_aff(transform, hu_DHW.shape)
    image = nibabel.Nifti1Image(np.ascontiguousarray(array), affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    # Level 1: noise does not compress, and a fifth of the time goes here. mtime=0: equal bytes for equal seeds.
    return gzip.compress(image.to_bytes(), compresslevel=1, mtime=0)


def _write_series(
    folder: Path, hu_DHW: np.ndarray, acquisition: Acquisition, identity: Identity, skipped: int | None
) -> None:
    """One file per slice. What the slices share is encoded once: 0.8 ms a slice instead of 2."""
    folder.mkdir()
    header = _series_header(acquisition, identity, hu_DHW.shape)
    shared = [_encode(header[low:high]) for low, high in pairwise((0, *SLICE_TAGS, None))]
    stored_DHW = (hu_DHW - acquisition.intercept) / np.float32(acquisition.slope)
    stored_DHW = stored_DHW.astype(np.int16 if acquisition.signed else np.uint16)
    step = TO_LPS @ acquisition.affine[:3, 0]
    first = TO_LPS @ acquisition.affine[:3, 3]
    for d, pixels_HW in enumerate(stored_DHW):
        if d == skipped:
            continue
        own = _slice_elements(header, pixels_HW, acquisition.storage)
        own.SOPInstanceUID = _uid(identity.study_id, "instance", d)
        own.InstanceNumber = d + 1
        own.ImagePositionPatient = [_decimal(v) for v in first + d * step]
        own.SliceLocation = _decimal(first[2] + d * step[2])
        elements = [shared[0]]
        for tag, following in zip(SLICE_TAGS, shared[1:]):
            elements += [_encode(own[tag : tag + 1]), following]
        content = _file_meta(header, own.SOPInstanceUID) + b"".join(elements)
        (folder / f"IM{d + 1:04d}.dcm").write_bytes(content)


def _slice_elements(header: Dataset, pixels_HW: np.ndarray, storage: str) -> Dataset:
    """The slice's pixel data, encoded; sets the header's transfer syntax."""
    from pydicom.dataset import Dataset
    from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.add_new("PixelData", "OW", np.ascontiguousarray(pixels_HW).tobytes())
    codecs = {
        "rle": (RLELossless, "pylibjpeg"),
        "jpegls": (JPEGLSLossless, "pyjpegls"),
        "jpeg2000": (JPEG2000Lossless, "pylibjpeg"),
    }
    if storage in codecs:
        syntax, plugin = codecs[storage]
        header.compress(syntax, encoding_plugin=plugin, generate_instance_uid=False)
    own = Dataset()
    own.add(header["PixelData"])
    return own


def _encode(dataset: Dataset) -> bytes:
    """Elements in explicit little endian, the encoding of every transfer syntax used here."""
    from pydicom.filebase import DicomBytesIO
    from pydicom.filewriter import write_dataset

    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    write_dataset(buffer, dataset)
    return buffer.getvalue()


def _file_meta(header: Dataset, instance_uid: UID) -> bytes:
    """Preamble, magic and file meta information."""
    from pydicom.filebase import DicomBytesIO
    from pydicom.filewriter import write_file_meta_info

    header.file_meta.MediaStorageSOPInstanceUID = instance_uid
    buffer = DicomBytesIO()
    write_file_meta_info(buffer, header.file_meta, enforce_standard=True)
    return bytes(128) + b"DICM" + buffer.getvalue()


def _series_header(acquisition: Acquisition, identity: Identity, shape_DHW: tuple[int, ...]) -> Dataset:
    """Everything the slices of one series share."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID, CTImageStorage

    vendor, model, soft, sharp, _, _ = SCANNERS[acquisition.scanner]
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
    dataset.file_meta.ImplementationClassUID = UID(IMPLEMENTATION_UID)
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.Modality = "CT"
    dataset.StudyInstanceUID = _uid(identity.study_id, "study")
    dataset.SeriesInstanceUID = _uid(identity.study_id, "series")
    dataset.FrameOfReferenceUID = _uid(identity.study_id, "frame")
    dataset.StudyID, dataset.SeriesNumber, dataset.AcquisitionNumber = "1", 2, 1
    dataset.StudyDescription, dataset.SeriesDescription = "CT CHEST WITH CONTRAST", "CHEST AXIAL"
    day, clock = identity.time.strftime("%Y%m%d"), identity.time.strftime("%H%M%S.%f")
    dataset.StudyDate = dataset.SeriesDate = dataset.AcquisitionDate = dataset.ContentDate = day
    dataset.StudyTime = dataset.SeriesTime = dataset.AcquisitionTime = dataset.ContentTime = clock
    dataset.AcquisitionDateTime = day + clock
    dataset.PatientName, dataset.PatientID = f"Synthetic^{identity.subject_id}", f"SYN{identity.subject_id}"
    dataset.PatientSex = "F" if identity.female else "M"
    dataset.PatientAge = f"{int(identity.age_years):03d}Y"
    dataset.PatientBirthDate, dataset.ReferringPhysicianName = "", ""
    dataset.AccessionNumber = f"ACC{identity.study_id}"
    dataset.PatientPosition, dataset.BodyPartExamined = "HFS", "CHEST"
    dataset.Manufacturer, dataset.ManufacturerModelName = vendor, model
    dataset.ConvolutionKernel = sharp if acquisition.sharp else soft
    dataset.KVP, dataset.ContrastBolusAgent = acquisition.kvp, "IODINATED CONTRAST"
    dataset.GantryDetectorTilt = _decimal(acquisition.tilt_degrees)
    dataset.SliceThickness = _decimal(acquisition.spacing_mm[0])
    dataset.PixelSpacing = [_decimal(acquisition.spacing_mm[1]), _decimal(acquisition.spacing_mm[2])]
    row = TO_LPS @ acquisition.affine[:3, 2] / acquisition.spacing_mm[2]
    column = TO_LPS @ acquisition.affine[:3, 1] / acquisition.spacing_mm[1]
    dataset.ImageOrientationPatient = [_decimal(v) for v in (*row, *column)]
    _, dataset.Rows, dataset.Columns = shape_DHW
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, int(acquisition.signed)
    dataset.RescaleIntercept, dataset.RescaleSlope = _decimal(acquisition.intercept), _decimal(acquisition.slope)
    dataset.RescaleType = "HU"
    return dataset


def _decimal(value: float) -> str:
    """DICOM decimal string: at most 16 characters."""
    return f"{value + 0.0:.8g}" if abs(value) > 1e-9 else "0"


def _uid(*parts: object) -> UID:
    """Valid, unique and the same in every run: 2.25 and a 128-bit integer (PS3.5 B.2)."""
    from pydicom.uid import UID

    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=16).digest()
    return UID(f"2.25.{int.from_bytes(digest)}")
