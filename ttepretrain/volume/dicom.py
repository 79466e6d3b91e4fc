"""Reading one CT series of single-frame DICOM images into HU. pydicom parses; what is a CT is decided here.

Headers are read through an allow-list of tags, with the pixels left in the file until a series is chosen. Files
without the DICOM marker are no DICOM to us: nothing is ever forced.
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pydicom
from pydicom import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.uid import CTImageStorage, MediaStorageDirectoryStorage

from ttepretrain.errors import BadStudy
from ttepretrain.volume.checks import Flag, Reason, check_affine, check_shape
from ttepretrain.volume.image import CTImage
from ttepretrain.volume.pixels import LOSSY_SYNTAXES, check_syntax, read_stack
from ttepretrain.volume.series import arrange
from ttepretrain.volume.source import source_files
from ttepretrain.volume.tags import TAGS, acquisition, slice_header, text, texts

LEFT_IN_FILE = 4096  # bytes; longer elements are read when they are used
DAMAGED = (Reason.TRUNCATED, Reason.UNREADABLE)
MULTIFRAME_CLASSES = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")  # enhanced, legacy converted
REMEDIES = {Reason.UNSUPPORTED_SYNTAX: "; most compressed syntaxes are read where ttepretrain[codecs] is installed"}
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


def read_dicom(path: Path) -> CTImage:
    """The CT series in a folder, or the one a file belongs to, in HU; BadStudy with its reason when there is none."""
    with _quiet():
        images, skipped = _find_images(path)
        damaged = [reason for reason in skipped.values() if reason in DAMAGED]
        if damaged and path.is_dir():
            raise BadStudy(damaged[0], "a damaged DICOM file among the slices; nothing says that it is not one of them")
        if not images:
            _refuse_without_images(skipped)
        if path.is_file() and path not in images:
            raise BadStudy(skipped[path], "the file itself is not a slice of a CT series")
        chosen, flags = _choose_series(images, path)
        slices = [slice_header(file, dataset) for file, dataset in chosen.items()]
        stack = arrange(slices)
        check_shape((len(stack.grid_mm), *slices[0].shape_HW))
        flags += stack.flags + check_affine(stack.affine)
        hu_DHW, pixel_flags = read_stack(stack, chosen)
        if any(reason not in (Reason.NOT_DICOM, Reason.NOT_IMAGE) for reason in skipped.values()):
            flags += (Flag.IMAGES_SKIPPED,)
        if any(_is_lossy(dataset) for dataset in chosen.values()):
            flags += (Flag.LOSSY,)
        return CTImage(hu_DHW, stack.affine, flags + pixel_flags, acquisition(chosen[stack.places[0][0].file]))


@contextmanager
def _quiet() -> Iterator[None]:
    """pydicom quotes values of the file in warnings and in its log; they may name the patient."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _find_images(path: Path) -> tuple[dict[Path, Dataset], dict[Path, Reason]]:
    """The CT slices among the source files, pixels left in the file, and the reason of every other file."""
    images, skipped = {}, {}
    for file in source_files(path):
        try:
            syntax = str(read_file_meta_info(file).get("TransferSyntaxUID", ""))
        except (InvalidDicomError, EOFError):
            skipped[file] = Reason.NOT_DICOM
            continue
        except (OSError, MemoryError):
            raise
        except Exception:  # pydicom raises whatever a damaged byte leads to
            skipped[file] = Reason.UNREADABLE
            continue
        # before the rest is parsed: reading a deflated file inflates all of it
        if not check_syntax(syntax):
            skipped[file] = Reason.UNSUPPORTED_SYNTAX if syntax else Reason.UNREADABLE
            continue
        try:
            dataset = pydicom.dcmread(file, defer_size=LEFT_IN_FILE, specific_tags=TAGS)
            for keyword in TAGS[:-1]:  # values are converted when first asked for: damage shows here, and only here
                dataset.get(keyword)
            reason = _why_no_slice(dataset)
        except (OSError, MemoryError):
            raise
        except Exception:
            reason = Reason.UNREADABLE
        if reason is None:
            images[file] = dataset
        else:
            skipped[file] = reason
    return images, skipped


def _why_no_slice(dataset: Dataset) -> Reason | None:
    """None for one CT slice with a place in space; else why the image is left out."""
    sop_class, declared = text(dataset, "SOPClassUID"), dataset.file_meta.get("MediaStorageSOPClassUID")
    if declared == MediaStorageDirectoryStorage:
        return Reason.NOT_IMAGE
    says_nothing = "Modality" not in dataset and "SOPClassUID" not in dataset
    if says_nothing or (CTImageStorage in (sop_class, declared) and "Rows" not in dataset):
        return Reason.TRUNCATED  # the header ends before it has said what it must
    if dataset.get("Modality") != "CT":
        return Reason.NOT_CT if "Rows" in dataset else Reason.NOT_IMAGE
    if "Rows" not in dataset or "Columns" not in dataset:
        return Reason.NOT_IMAGE
    if sop_class in MULTIFRAME_CLASSES or int(dataset.get("NumberOfFrames") or 1) != 1:
        return Reason.UNSUPPORTED_MULTIFRAME
    if "LOCALIZER" in texts(dataset, "ImageType"):
        return Reason.LOCALIZER
    grey = int(dataset.get("SamplesPerPixel") or 1) == 1 and dataset.get("PhotometricInterpretation") == "MONOCHROME2"
    if sop_class.startswith(SECONDARY_CAPTURE) or not grey or int(dataset.get("BitsAllocated") or 0) != 16:
        return Reason.NOT_CT
    if text(dataset, "BurnedInAnnotation").upper() == "YES":
        return Reason.BURNED_IN
    if not (dataset.get("ImagePositionPatient") and dataset.get("ImageOrientationPatient")):
        return Reason.BAD_AFFINE
    return None


def _refuse_without_images(skipped: dict[Path, Reason]) -> None:
    """BadStudy with the commonest reason among the DICOM images; a study of reports alone is NOT_IMAGE."""
    counts = Counter(skipped.values())
    for others in ((Reason.NOT_DICOM, Reason.NOT_IMAGE), (Reason.NOT_DICOM,), ()):
        left = {reason: count for reason, count in counts.items() if reason not in others}
        if left:
            reason = max(sorted(left), key=left.get)
            raise BadStudy(reason, f"no slice of a CT series among {len(skipped)} files{REMEDIES.get(reason, '')}")
    raise BadStudy(Reason.NOT_DICOM, "an empty folder")


def _choose_series(images: dict[Path, Dataset], path: Path) -> tuple[dict[Path, Dataset], tuple[Flag, ...]]:
    """The series of the file `path`; of a folder: originals before reformats, then the most slices, then the UID.

    It is chosen before it is examined: when it turns out damaged the study is refused, not another series taken.
    """
    series = defaultdict(dict)
    for file, dataset in images.items():
        series[text(dataset, "SeriesInstanceUID")][file] = dataset
    if path.is_file():
        chosen, flags = series[text(images[path], "SeriesInstanceUID")], ()
    else:
        if len({text(dataset, "PatientID") for dataset in images.values()}) > 1:
            raise BadStudy(Reason.IDENTITY_CONFLICT, "images of two patients in one folder")
        chosen = series[max(series, key=lambda uid: (*_rank(list(series[uid].values())), uid))]
        flags = (Flag.OTHER_SERIES,) if len(series) > 1 else ()
    for keyword in ("PatientID", "StudyInstanceUID"):
        if len({text(dataset, keyword) for dataset in chosen.values()}) > 1:
            raise BadStudy(Reason.IDENTITY_CONFLICT, f"one series, different values of {keyword}")
    return chosen, flags


def _rank(datasets: list[Dataset]) -> tuple[bool, int]:
    reformats = sum("DERIVED" in texts(dataset, "ImageType") for dataset in datasets)
    return 2 * reformats <= len(datasets), len(datasets)


def _is_lossy(dataset: Dataset) -> bool:
    return dataset.file_meta.TransferSyntaxUID in LOSSY_SYNTAXES or dataset.get("LossyImageCompression") == "01"
