"""VolumeSpec: grid, HU range and windows of the volume a network sees. No torch here: readers and workers import it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from ttepretrain.config import check_types, require, require_choice
from ttepretrain.documents import require_keys
from ttepretrain.volume.dicom.choice import DEFAULT_READING, MAX_GAP_MM, Reading, SeriesConfig

# Part of every cache key. Raise it when the same input would give other voxels, other flags or a refusal.
PREPROCESS_VERSION = 7

Window = tuple[float, float]  # centre, width in HU

FITS = ("body", "image", "stretch")
LARGEST_MM = 5_000.0  # of the grid along an axis; a table moves two metres
MOST_VOXELS = 1 << 27  # of the grid: 512 x 512 x 512
MOST_INPUTS = 1 << 29  # voxels times windows: 2 GiB as the network reads them
MOST_WINDOWS = 16

LUNG: Window = (-600.0, 1500.0)
SOFT_TISSUE: Window = (40.0, 400.0)
BONE: Window = (400.0, 1800.0)


@dataclass(frozen=True)
class VolumeSpec:
    """What preprocessing returns: int16 HU with axes D H W.

    Indices increase towards the head along D, the front along H, and the patient's right along W (RAS+ reversed).
    """

    spacing_mm: tuple[float, float, float]  # D H W; nominal if fit is `stretch`
    shape_DHW: tuple[int, int, int]
    hu_range: tuple[int, int]  # stored values are clipped to it; outside the scan they are hu_range[0]
    windows: tuple[Window, ...]  # one input channel each
    # body: the grid is centred on the body; image: on the image; stretch: the image is averaged onto the shape along
    # its own axes, whatever its spacing, and its lowest and highest value become hu_range
    fit: str = "body"
    reading: Reading = DEFAULT_READING

    def __post_init__(self) -> None:
        """The one check of a grid: of a configuration, of an export, of prepared/."""
        check_types(self, "volume")
        require_choice("volume.fit", self.fit, FITS)
        require(
            all(0.1 <= mm <= 20 for mm in self.spacing_mm),
            "volume.spacing_mm", list(self.spacing_mm), "must be three numbers (D H W) between 0.1 and 20",
        )  # fmt: skip
        shape = list(self.shape_DHW)
        require(
            all(4 <= size <= 1024 for size in shape),
            "volume.shape_DHW", shape, "must be three whole numbers (D H W) between 4 and 1024",
        )  # fmt: skip
        require(math.prod(shape) <= MOST_VOXELS, "volume.shape_DHW", shape, f"must be at most {MOST_VOXELS} voxels")
        extent_mm = [size * mm for size, mm in zip(shape, self.spacing_mm)]
        require(
            max(extent_mm) <= LARGEST_MM,
            "volume.shape_DHW", shape, f"times spacing_mm must be at most {LARGEST_MM:g} mm along each axis",
        )  # fmt: skip
        lowest, highest = self.hu_range
        require(
            -32768 <= lowest <= -500 and lowest < highest <= 32767,
            "volume.hu_range", list(self.hu_range),
            "must be two increasing int16, the first at most -500, which is air",
        )  # fmt: skip
        require(
            1 <= len(self.windows) <= MOST_WINDOWS
            and all(-32768 <= centre <= 32767 and 1 <= width <= 131072 for centre, width in self.windows),
            "volume.windows", [list(window) for window in self.windows],
            f"must be [[centre, width], ...], 1 to {MOST_WINDOWS} of them, with centres in int16 and positive widths "
            "from 1 to 131072",
        )  # fmt: skip
        require(
            all(c - w / 2 < highest and c + w / 2 > lowest for c, w in self.windows),
            "volume.windows", [list(window) for window in self.windows],
            f"must each have some of hu_range {list(self.hu_range)}; a channel would be constant",
        )  # fmt: skip
        require(
            math.prod(shape) * len(self.windows) <= MOST_INPUTS,
            "volume.shape_DHW", shape, f"times {len(self.windows)} windows must be at most {MOST_INPUTS}",
        )  # fmt: skip

    @property
    def num_channels(self) -> int:
        return len(self.windows)

    def to_json(self) -> dict:
        return {
            "spacing_mm": list(self.spacing_mm),
            "shape_DHW": list(self.shape_DHW),
            "hu_range": list(self.hu_range),
            "windows": [list(w) for w in self.windows],
            "preprocess_version": PREPROCESS_VERSION,
        } | self.beyond_grid()

    def identity(self) -> dict:
        """The values that decide the weights: all of them."""
        return self.to_json()

    def beyond_grid(self) -> dict:
        """Settings beyond the grid that change stored voxels. Defaults are left out, as in old exports."""
        reading = self.reading.not_default()
        return ({} if self.fit == "body" else {"fit": self.fit}) | ({"reading": reading} if reading else {})

    @classmethod
    def from_json(cls, document: object) -> VolumeSpec:
        """Raises ConfigError naming the key for what is no VolumeSpec of this or an earlier PREPROCESS_VERSION."""
        grid = ("spacing_mm", "shape_DHW", "hu_range", "windows")
        values = require_keys("volume", document, (*grid, "preprocess_version"), ("fit", "reading"))
        version = values["preprocess_version"]
        whole = isinstance(version, int) and not isinstance(version, bool)
        require(whole and 0 <= version < 1 << 31, "volume.preprocess_version", version, "must be a whole number from 0")
        spacing, shape, hu_range, windows = (_as_tuple(values[key]) for key in grid)
        return cls(
            spacing, shape, hu_range, windows, values.get("fit", "body"), Reading.from_json(values.get("reading", {}))
        )


def _as_tuple(value: Any) -> Any:
    """Lists as tuples, at any depth."""
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value


PRESETS = {
    "default": VolumeSpec((3.0, 1.5, 1.5), (160, 224, 224), (-1024, 3071), (LUNG, SOFT_TISSUE, BONE)),
    # For the CPU of a laptop: an adult's chest in 150,000 voxels.
    "small": VolumeSpec((6.0, 6.0, 6.0), (48, 56, 56), (-1024, 3071), (LUNG, SOFT_TISSUE, BONE)),
    # The input published with Merlin. Its window maps to [0, 1], since stored values end at 1000 HU.
    "merlin": VolumeSpec((3.0, 1.5, 1.5), (160, 224, 224), (-1000, 1000), ((-1000.0, 4000.0),), "image"),
    # The input of the paper, for comparison: minimum and maximum of each scan become 0 and 1.
    "reference": VolumeSpec((1.0, 1.0, 1.0), (224, 224, 224), (-32768, 32767), ((-32768.0, 131070.0),), "stretch"),
}


@dataclass
class VolumeConfig:
    preset: str = "default"  # default | small | merlin | reference: values of the next four keys
    spacing_mm: list[float] | None = None  # mm per voxel, D H W; None: as in the preset
    shape_DHW: list[int] | None = None  # voxels, D H W; None: as in the preset
    hu_range: list[int] | None = None  # lowest and highest stored HU; None: as in the preset
    windows: list[list[float]] | None = None  # [[centre, width], ...] in HU, one channel each; None: as in the preset
    series: SeriesConfig = field(default_factory=SeriesConfig)  # which DICOM series is read
    max_gap_mm: float = MAX_GAP_MM  # mm; a wider step between two DICOM slices refuses the study

    def __post_init__(self) -> None:
        require_choice("volume.preset", self.preset, sorted(PRESETS))
        stretched = PRESETS[self.preset].fit == "stretch"
        for key in ("spacing_mm", "hu_range", "windows"):
            value = getattr(self, key)
            require(not stretched or value is None, f"volume.{key}", value, f"has no meaning with {self.preset}")
        self.resolve()  # checks the rest

    def resolve(self) -> VolumeSpec:
        preset = PRESETS[self.preset]
        given = {key: getattr(self, key) for key in ("spacing_mm", "shape_DHW", "hu_range", "windows")}
        grid: dict[str, Any] = {key: _as_tuple(value) for key, value in given.items() if value is not None}
        return replace(preset, **grid, reading=self.series.resolve(self.max_gap_mm))
