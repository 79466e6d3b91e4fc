"""Which series of a study is read: the one in the study table, else the best by stated rules. No pydicom here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ttepretrain.config import check_types, require, require_choice
from ttepretrain.documents import require_keys
from ttepretrain.errors import BadStudy
from ttepretrain.volume.checks import Flag, Reason
from ttepretrain.volume.dicom.tags import Values, numbers, text, texts

CRITERIA = ("original", "most_slices", "thinnest", "kernel")
PHASES = ("first", "last", "refuse")
MAX_GAP_MM = 10.0
# Keys of a Reading's JSON. Their order is part of the names of cached volumes.
JSON_KEYS = ("prefer", "kernels", "min_slices", "min_thickness_mm", "max_thickness_mm", "max_gap_mm", "phase")


@dataclass(frozen=True)
class SeriesConfig:
    """`volume.series`: which series of a DICOM study is read where the study table names none.

    Series of equal rank are ordered by their UID; the highest is read.
    """

    # which series to read: original | most_slices | thinnest | kernel; the first decides, the next breaks ties
    prefer: tuple[str, ...] = ("original", "most_slices")
    kernels: tuple[str, ...] = ()  # for `kernel`: the best first, e.g. [B30f, STANDARD]
    min_slices: int = 0  # slice positions; series with fewer are left out
    min_thickness_mm: float | None = None  # SliceThickness, mm; where set, series without one are left out too
    max_thickness_mm: float | None = None  # likewise
    phase: str = "first"  # first | last | refuse: of a series that passes its positions several times

    def __post_init__(self) -> None:
        check_types(self, "volume.series")
        require_choice("volume.series.phase", self.phase, PHASES)
        require(
            len(self.prefer) <= len(CRITERIA), "volume.series.prefer", self.prefer, "must name each criterion once",
        )  # fmt: skip
        for criterion in self.prefer:
            require_choice("volume.series.prefer", criterion, CRITERIA)
        require(
            bool(self.kernels) == ("kernel" in self.prefer),
            "volume.series.kernels", self.kernels, "belongs to `kernel` in volume.series.prefer; set both or none",
        )  # fmt: skip
        require(
            0 <= self.min_slices <= 100_000,
            "volume.series.min_slices", self.min_slices, "must not be negative, nor above 100000",
        )  # fmt: skip
        low, high = self.min_thickness_mm, self.max_thickness_mm
        require(
            (low is None or 0 < low <= 100) and (high is None or (low or 0) <= high <= 100),
            "volume.series.max_thickness_mm", [low, high],
            "must not lie below min_thickness_mm, which is positive; both are at most 100",
        )  # fmt: skip

    def resolve(self, max_gap_mm: float) -> Reading:
        """These rules with kernels as headers are compared, in capital letters."""
        rules = asdict(self) | {"kernels": tuple(kernel.upper() for kernel in self.kernels)}
        return Reading(**rules, max_gap_mm=max_gap_mm)


@dataclass(frozen=True)
class Reading(SeriesConfig):
    """How a DICOM study is read: the part of a VolumeSpec that only DICOM needs."""

    max_gap_mm: float = MAX_GAP_MM  # a wider step between slices refuses the study

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.max_gap_mm <= MAX_GAP_MM, "volume.max_gap_mm", self.max_gap_mm, "must lie in (0, 10]")

    def not_default(self) -> dict[str, Any]:
        """JSON of what differs from the defaults."""
        mine, default = asdict(self), asdict(Reading())
        changed = {key: mine[key] for key in JSON_KEYS if mine[key] != default[key]}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in changed.items()}

    @classmethod
    def from_json(cls, document: object) -> Reading:
        given = require_keys("volume.reading", document, (), JSON_KEYS)
        rules: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in given.items()}
        return cls(**rules)


@dataclass(frozen=True)
class Wanted:
    """What the study table says about the image of one study; None where it says nothing."""

    series_uid: str | None = None
    patient_id: str | None = None


DEFAULT_READING, WHATEVER = Reading(), Wanted()


def choose_series(
    series: Mapping[str, Sequence[Values]], reading: Reading, wanted: Wanted
) -> tuple[str, tuple[Flag, ...]]:
    """UID of the series to read. BadStudy if none fits, or if studies are mixed and the table names no series.

    The series is chosen before it is examined. If it turns out damaged, the study is refused: no other series is read.
    """
    if wanted.series_uid is not None:
        if wanted.series_uid not in series:
            raise BadStudy(Reason.NO_SERIES, "the table's series_uid is none of the CT series here")
        return wanted.series_uid, ()
    _check_one_study([values for pictures in series.values() for values in pictures], "folder")
    fitting = [uid for uid, pictures in series.items() if _fits(pictures, reading)]
    if not fitting:
        raise BadStudy(Reason.NO_SERIES, f"none of {len(series)} CT series is as volume.series asks")
    chosen = max(fitting, key=lambda uid: (*(_score(series[uid], c, reading) for c in reading.prefer), uid))
    return chosen, (Flag.OTHER_SERIES,) if len(series) > 1 else ()


def check_identity(pictures: Sequence[Values], wanted: Wanted) -> None:
    """BadStudy unless the series is of one study and one patient: the one in the table, where it names one."""
    _check_one_study(pictures, "series")
    patient = {text(values, "PatientID") for values in pictures} - {""}
    if wanted.patient_id is not None and patient - {wanted.patient_id.strip()}:
        raise BadStudy(Reason.IDENTITY_CONFLICT, "the images name another patient than the table")
    if len({text(values, "FrameOfReferenceUID") for values in pictures} - {""}) > 1:
        raise BadStudy(Reason.MIXED_GEOMETRY, "positions in two frames of reference")


def _check_one_study(pictures: Sequence[Values], where: str) -> None:
    """BadStudy if two pictures contradict each other. A missing value contradicts nothing."""
    ids = {text(values, "PatientID") for values in pictures} - {""}
    with_id, without_id = (
        {_name(values) for values in pictures if bool(text(values, "PatientID")) == said} - {""}
        for said in (True, False)
    )
    # an identifier takes precedence: names change by marriage and by hand
    if len(ids) > 1 or (without_id - with_id if with_id else len(without_id) > 1):
        raise BadStudy(Reason.IDENTITY_CONFLICT, f"images of two patients in one {where}")
    if len({text(values, "StudyInstanceUID") for values in pictures} - {""}) > 1:
        remedy = "; the studies table may name one in series_uid" if where == "folder" else ""
        raise BadStudy(Reason.IDENTITY_CONFLICT, f"images of two studies in one {where}{remedy}")


def _name(values: Values) -> str:
    return text(values, "PatientName").upper().rstrip("^ ")


def _fits(pictures: Sequence[Values], reading: Reading) -> bool:
    if reading.min_slices > 0 and _positions(pictures) < reading.min_slices:
        return False
    low, high = reading.min_thickness_mm, reading.max_thickness_mm
    if low is None and high is None:
        return True
    thickness_mm = _thickness_mm(pictures)
    return thickness_mm is not None and (low or 0) <= thickness_mm <= (high or float("inf"))


def _score(pictures: Sequence[Values], criterion: str, reading: Reading) -> float:
    """Score of a series by one criterion; higher is preferred."""
    if criterion == "original":
        reformats = sum("DERIVED" in texts(values, "ImageType") for values in pictures)
        return float(2 * reformats <= len(pictures))
    if criterion == "most_slices":
        return float(_positions(pictures))
    if criterion == "thinnest":
        return -(_thickness_mm(pictures) or float("inf"))
    kernel = (texts(pictures[0], "ConvolutionKernel") or [""])[0]
    return -float(reading.kernels.index(kernel) if kernel in reading.kernels else len(reading.kernels))


def _positions(pictures: Sequence[Values]) -> int:
    """Number of different positions: a bolus tracker has a hundred pictures at one."""
    return len({str(values.get("ImagePositionPatient")) for values in pictures})


def _thickness_mm(pictures: Sequence[Values]) -> float | None:
    try:
        return numbers(pictures[0], "SliceThickness", 1, Reason.UNREADABLE)[0]
    except BadStudy:
        return None
