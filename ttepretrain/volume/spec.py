"""VolumeSpec: grid, HU range and windows of the volume a network sees. No torch here: readers and workers import it."""

from __future__ import annotations

from dataclasses import dataclass, field

from ttepretrain.config import require, require_choice
from ttepretrain.volume.dicom.choice import DEFAULT_READING, MAX_GAP_MM, Reading, SeriesConfig

# Part of every cache key. Raise it when the same input would give other voxels, other flags or a refusal.
PREPROCESS_VERSION = 7

Window = tuple[float, float]  # centre, width in HU

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
    def from_json(cls, document: dict) -> VolumeSpec:
        return cls(
            tuple(document["spacing_mm"]),
            tuple(document["shape_DHW"]),
            tuple(document["hu_range"]),
            tuple((c, w) for c, w in document["windows"]),
            document.get("fit", "body"),
            Reading.from_json(document.get("reading", {})),
        )


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
        self.series.resolve(self.max_gap_mm)  # checks both
        stretched = PRESETS[self.preset].fit == "stretch"
        for key in ("spacing_mm", "hu_range", "windows"):
            value = getattr(self, key)
            require(not stretched or value is None, f"volume.{key}", value, f"has no meaning with {self.preset}")
        if self.spacing_mm is not None:
            require(
                len(self.spacing_mm) == 3 and all(0.1 <= s <= 20 for s in self.spacing_mm),
                "volume.spacing_mm", self.spacing_mm, "must be three numbers (D H W) between 0.1 and 20",
            )  # fmt: skip
        if self.shape_DHW is not None:
            require(
                len(self.shape_DHW) == 3 and all(8 <= s <= 1024 for s in self.shape_DHW),
                "volume.shape_DHW", self.shape_DHW, "must be three whole numbers (D H W) between 8 and 1024",
            )  # fmt: skip
        if self.hu_range is not None:
            low_high = self.hu_range
            require(
                len(low_high) == 2 and -32768 <= low_high[0] <= -500 and low_high[0] < low_high[1] <= 32767,
                "volume.hu_range", low_high, "must be two increasing int16, the first at most -500, which is air",
            )  # fmt: skip
        if self.windows is not None:
            require(
                len(self.windows) > 0 and all(len(w) == 2 and w[1] > 0 for w in self.windows),
                "volume.windows", self.windows, "must be [[centre, width], ...] with positive widths",
            )  # fmt: skip

    def resolve(self) -> VolumeSpec:
        preset = PRESETS[self.preset]
        mm_D, mm_H, mm_W = self.spacing_mm or preset.spacing_mm
        depth, height, width = self.shape_DHW or preset.shape_DHW
        lowest, highest = self.hu_range or preset.hu_range
        return VolumeSpec(
            (mm_D, mm_H, mm_W),
            (depth, height, width),
            (lowest, highest),
            tuple((c, w) for c, w in self.windows) if self.windows else preset.windows,
            preset.fit,
            self.series.resolve(self.max_gap_mm),
        )
