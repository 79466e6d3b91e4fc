"""Are the values HU? Judged as a radiologist would: where are air, fat and muscle, and what lies between them.

    share        air -1000       lung            fat -100  muscle 50      bone       peaks of air and of soft
      |            #                                  #  ##                          tissue, 1,000 apart, and a
      |___________###______..oooooo..................#######......____________ HU    continuum between them

A NIfTI file does not state its unit, and a DICOM file may state a wrong one. Measured by `benchmarks.hu_check`: false
alarms on sound scans, and what is noticed of the ways in which converters spoil HU. No torch here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ttepretrain.errors import BadStudy
from ttepretrain.volume.checks import PADDING_HU, Flag, Reason

SAMPLE = 300_000  # voxels, about: every n-th along each axis
SLABS = 8  # parts of a scan that are also judged alone
LOWEST, HIGHEST = -32768, 65535  # what 16 bits hold, signed or not
LUNG_HU = -300  # lung and air lie below
BEYOND_AIR = -1150  # noise of air reaches it, little else
PEAK, AROUND = 75, 400  # HU on either side: a tissue, and what it must stand out from
STEP = 10  # HU between the places where a peak is looked for
SHARP = 0.4  # Peak.sharpness of a tissue; the skull of a head has 0.25
BACKGROUND = 0.005  # share of the sample: an extreme value as frequent as that is padding, or cut off
FEW = 2000  # natural voxels of tissue; with fewer nothing is flagged

NO_AIR = 0.001  # share of the sample below LUNG_HU
NO_TISSUE = 0.01
LITTLE_AIR = 0.005  # share of what is measured between BEYOND_AIR and LUNG_HU


@dataclass(frozen=True)
class Peak:
    """2 x PEAK HU with many voxels."""

    hu: float
    number: int
    sharpness: float  # share of the voxels within AROUND that lie within PEAK: 0.19 where all are equally frequent


def thinned(hu_DHW: np.ndarray) -> np.ndarray:
    """A view of every n-th voxel along each axis: about SAMPLE of them."""
    step = max(1, math.ceil((hu_DHW.size / SAMPLE) ** (1 / 3)))
    return hu_DHW[tuple(slice(min(step // 2, size - 1), None, step) for size in hu_DHW.shape)]


class Histogram:
    """Voxels of a sample by whole HU. `Natural` ones are left without padding and values that were cut off."""

    def __init__(self, sample_DHW: np.ndarray):
        self.sample_DHW, self.size = sample_DHW, sample_DHW.size
        whole = _whole(sample_DHW).astype(np.int32).ravel()
        self.bottom, self.top = int(whole.min()), int(whole.max())
        self.counts = np.bincount(whole - LOWEST, minlength=HIGHEST - LOWEST + 1)
        natural, rare = self.counts.copy(), BACKGROUND * self.size
        natural[np.flatnonzero(self.counts[: BEYOND_AIR - LOWEST] > rare)] = 0  # -2000, -3024
        for hu in (self.bottom, PADDING_HU):
            if hu < LUNG_HU and self.at(hu) > rare:
                natural[hu - LOWEST] = 0
        if self.top > 300 and self.at(self.top) > 0.1 * rare:
            natural[self.top - LOWEST] = 0
        self._set_natural(natural)
        ring = self.peak(-4000, BEYOND_AIR - 2 * PEAK)
        if ring.sharpness > 0.93 and self.number(ring.hu + PEAK, BEYOND_AIR) < 0.01 * self.number():
            natural[: int(ring.hu) + PEAK - LOWEST] = 0  # padding that lossy compression made uneven
            self._set_natural(natural)
        low = LUNG_HU - LOWEST
        self.background = float(self.counts[:low].sum() - natural[:low].sum()) / self.size  # share that is padding

    def _set_natural(self, natural: np.ndarray) -> None:
        self.natural, self._below = natural, np.concatenate([[0], natural.cumsum()])

    def at(self, hu: int) -> int:
        return int(self.counts[hu - LOWEST])

    def share(self, low: int, high: int) -> float:
        """Of all voxels, those with low <= HU < high."""
        return float(self.counts[low - LOWEST : high - LOWEST].sum()) / self.size

    def number(self, low: float = LOWEST, high: float = HIGHEST + 1) -> int:
        """Natural voxels with low <= HU < high."""
        first, last = (int(np.clip(hu - LOWEST, 0, len(self._below) - 1)) for hu in (low, high))
        return int(self._below[last] - self._below[first])

    def beyond_air(self) -> int:
        """Natural voxels of less than air. -3,024 is padding in every archive; lossy compression makes it uneven."""
        return self.number(-2800, BEYOND_AIR) + self.number(high=-4000)

    def peaks(self, low: float, high: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Centres from low to high, natural voxels within PEAK of them, and within AROUND."""
        centres = np.arange(low, high + STEP, STEP, dtype=np.int64)
        at, last = centres - LOWEST, len(self._below) - 1
        held, around = (
            self._below[np.clip(at + half, 0, last)] - self._below[np.clip(at - half, 0, last)]
            for half in (PEAK, AROUND)
        )
        return centres, held, around

    def peak(self, low: float, high: float) -> Peak:
        """The one with most voxels."""
        centres, held, around = self.peaks(low, high)
        best = int(held.argmax())
        return Peak(float(centres[best]), int(held[best]), float(held[best] / max(1, around[best])))

    def tissue(self) -> float | None:
        """HU of the densest tissue that is sharp, at whatever scale: soft tissue in a sound scan."""
        centres, held, around = self.peaks(-4000, 5000)
        above = self._below[-1] - self._below[np.clip(centres - LOWEST - 700, 0, len(self._below) - 1)]
        found = np.flatnonzero((held >= 0.15 * above) & (held >= 0.35 * around) & (held >= 0.01 * self.number()))
        found = found[held[found] > 0]
        if len(found) == 0:
            return None
        near = found[centres[found] > centres[found[-1]] - 2 * PEAK]
        return self.median(float(centres[near[held[near].argmax()]]))

    def median(self, hu: float) -> float:
        """Of the natural voxels within PEAK of `hu`."""
        first = int(hu) - PEAK - LOWEST
        inside = self.natural[first : first + 2 * PEAK].cumsum()
        return float(first + int(np.searchsorted(inside, inside[-1] / 2)) + LOWEST)

    def edges(self) -> tuple[float, bool]:
        """Median of the natural voxels along the twelve edges of the image, else of all, and whether it is natural.

        Air, in a sound scan, or padding.
        """
        x, ends = self.sample_DHW, (0, -1)
        lines = [line for i in ends for j in ends for line in (x[i, j], x[i, :, j], x[:, i, j])]
        sides = np.rint(np.concatenate(lines)).astype(np.int64)
        natural = sides[self.natural[sides - LOWEST] > 0]
        return float(np.median(natural if natural.size else sides)), natural.size > 0


def _whole(hu_DHW: np.ndarray) -> np.ndarray:
    return hu_DHW if hu_DHW.dtype.kind == "i" else np.rint(hu_DHW)  # numpy rounds integers as floats


def check_hu(hu_DHW: np.ndarray) -> tuple[Flag, ...]:
    """Flags of values that are HU, if doubtful or cut off; BadStudy, naming the likely cause, if they are not HU."""
    lowest, highest = _extremes(hu_DHW)
    if lowest == highest:
        raise BadStudy(Reason.CONSTANT, f"every voxel is {lowest:g}")
    if lowest < LOWEST or highest > HIGHEST:
        raise BadStudy(Reason.NOT_HU, f"values from {lowest:g} to {highest:g}")
    seen = Histogram(thinned(hu_DHW))
    doubtful = _refuse_without_air_or_tissue(seen)
    _refuse_tissue_elsewhere(seen)
    enough = seen.number(LUNG_HU) >= FEW
    doubtful |= enough and _is_doubtful(seen)
    return (Flag.HU_DOUBTFUL,) * doubtful + (Flag.HU_CLIPPED,) * (enough and _is_clipped(seen))


def _extremes(hu_DHW: np.ndarray) -> tuple[float, float]:
    """Lowest and highest value; of 16 bits that vary only those of one slice, which is quicker and tells as much."""
    if hu_DHW.dtype == np.int16:
        middle = hu_DHW[hu_DHW.shape[0] // 2]
        if middle.min() != middle.max():
            return float(middle.min()), float(middle.max())
    return float(hu_DHW.min()), float(hu_DHW.max())


def _refuse_without_air_or_tissue(seen: Histogram) -> bool:
    """Whether fat and muscle alone, without any air, say that these are HU."""
    air, tissue = seen.share(LOWEST, LUNG_HU), seen.share(-200, 300)
    if tissue < NO_TISSUE:
        raise _refusal(seen, f"{tissue:.1%} of voxels are soft tissue")
    if air >= NO_AIR:
        return False
    fat, muscle, body = seen.peak(-150, -50), seen.peak(0, 100), seen.number()
    apart = muscle.hu - fat.hu >= 80 and fat.number > 0.03 * body and muscle.number > 0.2 * body
    natural_ends = seen.bottom < -150 and seen.top > 150 and seen.at(seen.bottom) < BACKGROUND * seen.size
    if apart and natural_ends:
        return True
    raise _refusal(seen, f"{air:.1%} of voxels are below {LUNG_HU} HU")


def _refuse_tissue_elsewhere(seen: Histogram) -> None:
    """BadStudy where soft tissue lies elsewhere, or one large value fills what should be air."""
    upper, body = max(1, seen.number(LUNG_HU)), max(1, seen.number())
    if seen.top > 300 and seen.at(seen.top) > 0.1 * seen.size:
        raise _refusal(seen, f"the highest value fills {seen.at(seen.top) / seen.size:.0%} of the image")
    dense = seen.peak(600, 1500)
    much = dense.sharpness >= SHARP and dense.number > 0.25 * upper and not _is_bone(seen, dense)
    if much or _has_tissue_near_1000(seen):
        raise _refusal(seen, f"{dense.number / upper:.0%} of tissue lies near {seen.median(dense.hu):,.0f}")
    tissue = seen.tissue()
    if tissue is not None and tissue < LUNG_HU:
        little = seen.number(-200, 300) < 0.35 * seen.number(tissue - PEAK, tissue + PEAK)
        lowered = seen.number(-1900, BEYOND_AIR) > 0.003 * body or abs(seen.edges()[0] - tissue + 1000) < 100
        # an image within a lung in expiration has tissue at -600 too, but no air
        halved = tissue > -700 and seen.share(LOWEST, -800) > 0.05
        if little and (halved or (lowered and seen.share(LOWEST, BEYOND_AIR) > 0.05)):
            raise _refusal(seen, "too little soft tissue near 0")
    beyond = seen.beyond_air() / body
    if beyond > 0.2:
        raise _refusal(seen, f"{beyond:.0%} of voxels are below air")
    zeros = seen.at(0)
    if _is_map(seen) and zeros > 0.02 * upper and zeros > 5 * (seen.at(-1) + seen.at(1)):
        raise _refusal(seen, f"{zeros / upper:.0%} of the body is exactly 0, and nothing air, fat or bone")


def _has_tissue_near_1000(seen: Histogram, sharp: float = 0.3) -> bool:
    """A sharp tissue at 600 to 1,500 HU, and next to nothing measured where air and lung should be."""
    dense, low = seen.peak(600, 1500), seen.number(BEYOND_AIR, LUNG_HU)
    return dense.sharpness >= sharp and dense.number > 0.01 * seen.number(LUNG_HU) and low < LITTLE_AIR * seen.number()


def _is_bone(seen: Histogram, dense: Peak) -> bool:
    """Denser than soft tissue to which 1,024 was added, beside air and soft tissue in their places: a finger."""
    soft = seen.peak(0, 100)
    in_place = soft.sharpness >= SHARP and soft.number > 0.2 * seen.number(LUNG_HU)
    return dense.hu > 1120 and in_place and seen.share(-1100, -700) > 0.05


def _is_doubtful(seen: Histogram) -> bool:
    """Soft tissue off its place, air off its place, a map or mask rather than a body, or few grey levels."""
    soft, dense = seen.peak(LUNG_HU, 600), seen.peak(600, 1500)
    return (
        not -150 <= soft.hu <= 170
        or (dense.sharpness >= SHARP and dense.number > 0.1 * seen.number(LUNG_HU))
        or seen.beyond_air() > 0.05 * seen.number()
        or _is_halved(seen)
        or _is_coarse(seen)
        or (_is_map(seen) and not _is_noise_free(seen))
        or any(_has_tissue_near_1000(slab, SHARP) for slab in _slabs(seen))
    )


def _slabs(seen: Histogram) -> list[Histogram]:
    """The sample in parts along its first axis: some slices may lack what the others have."""
    parts = np.array_split(seen.sample_DHW, min(SLABS, len(seen.sample_DHW)))
    return [Histogram(part) for part in parts if part.size >= FEW and not _has_air(part)]


def _has_air(sample_DHW: np.ndarray) -> bool:
    """Enough values of air and lung, padding apart, that `_has_tissue_near_1000` is false: a histogram takes 1 ms."""
    whole = _whole(sample_DHW)
    air = (whole >= BEYOND_AIR) & (whole < LUNG_HU) & (whole != whole.min()) & (whole != PADDING_HU)
    return bool(np.count_nonzero(air) >= LITTLE_AIR * whole.size)


def _is_halved(seen: Histogram) -> bool:
    """Air near -500: a sharp peak there, and nothing lower."""
    air = seen.peak(-650, -400)
    lower = seen.number(BEYOND_AIR, -700)
    return air.sharpness >= 0.5 and air.number > 0.01 * seen.number() and lower < 0.002 * seen.number()


def _is_map(seen: Histogram) -> bool:
    """Nothing between background and tissue, no fat and no bone: perfusion, iodine, or a brain without its skull."""
    upper = seen.number(LUNG_HU)
    return (
        seen.background > 0.05
        and seen.number(-1100, LUNG_HU) < 0.002 * seen.number()
        and seen.number(-150, -50) < 0.02 * upper
        and seen.number(300) < 0.01 * upper
    )


def _is_coarse(seen: Histogram) -> bool:
    """Grey levels 8 HU or more apart: 256 of them, stretched."""
    levels = np.flatnonzero(seen.natural[-200 - LOWEST : 300 - LOWEST])
    return len(levels) >= 10 and int(np.diff(levels).min()) >= 8


def _is_clipped(seen: Histogram) -> bool:
    """Cut off below bone or above air: one end repeats far more often than its neighbours."""
    if _is_noise_free(seen):
        return False
    top, bottom = seen.at(seen.top), seen.at(seen.bottom)
    near_top = seen.number(seen.top - 50, seen.top) / 50
    near_bottom = seen.number(seen.bottom + 1, seen.bottom + 51) / 50
    cut_above = seen.top < 2000 and 20 <= top < 0.7 * seen.number(LUNG_HU) and top > 5 * near_top > 0
    cut_below = seen.bottom > -950 and bottom >= 20 and bottom > 5 * near_bottom
    return cut_above or cut_below


def _is_noise_free(seen: Histogram) -> bool:
    """Drawn, not measured: one inner value fills much of the tissue, and another much of the rest."""
    inner = seen.counts[LUNG_HU - LOWEST : seen.top - LOWEST]
    if inner.size < 2:
        return True
    second, first = np.partition(inner, -2)[-2:]
    return bool(first > 0.1 * inner.sum() and second > 0.08 * (inner.sum() - first))


def _refusal(seen: Histogram, found: str) -> BadStudy:
    cause = _cause(seen)
    return BadStudy(Reason.NOT_HU, f"{found}; {cause}; write HU" if cause else found)


def _cause(seen: Histogram) -> str:
    """What was likely done to the values; empty where nothing fits."""
    low, high = float(seen.sample_DHW.min()), float(seen.sample_DHW.max())
    no_air = seen.share(LOWEST, LUNG_HU) < NO_AIR
    if seen.share(60_000, HIGHEST + 1) > NO_AIR:
        return "negative values were stored without their sign, as 65,536 and less"
    if high - low < 400:
        return _cause_of_small_range(seen, low, high)
    if no_air and low < -50 and seen.at(seen.bottom) > BACKGROUND * seen.size:
        return f"air was cut off at {low:g}, as a window does"
    (outside, measured), tissue = seen.edges(), seen.tissue()
    if no_air and 3000 < outside < 3200 and seen.share(-20, 150) > NO_TISSUE:
        return "negative values were wrapped by 4,096"
    if outside > 500 and seen.share(int(outside) + 200, HIGHEST + 1) < 0.15 < seen.share(LOWEST, int(outside) - 400):
        if abs(outside - 1000) > 150:
            return "it is inverted: air is brightest"
        return "the sign was lost" if low >= 0 else "the sign was turned: air is near 1,000"
    if outside < -1500 and (tissue is None or -700 < tissue < 600):
        return f"air lies near {outside:,.0f}: the slope is {-outside / 1000:.0f} times too large"
    if tissue is None:
        return ""
    if measured and abs(outside + 1000) < 150 and not LUNG_HU <= tissue <= 600:
        size = "large" if tissue > 0 else "small"
        return f"air lies near {outside:,.0f}, tissue near {tissue:,.0f}: the slope is too {size}"
    if abs(outside - tissue + 1000) > 300:
        air = seen.peak(tissue - 1250, tissue - 750)
        if air.number < 0.005 * seen.number():
            return f"tissue lies near {tissue:,.0f}"
        outside = seen.median(air.hu)
    return _shift(tissue, outside)


def _shift(tissue: float, air: float) -> str:
    places, by = f"tissue lies near {tissue:,.0f}, air near {air:,.0f}", (air + tissue + 950) / 2
    if 900 <= by <= 1150:
        return f"{places}: 1,000 or 1,024 was added"
    if -1150 <= by <= -900:
        return f"{places}: the intercept was applied twice"
    return f"{places}: about {abs(by):,.0f} was {'added' if by > 0 else 'subtracted'}" if abs(by) > 150 else places


def _cause_of_small_range(seen: Histogram, low: float, high: float) -> str:
    values = seen.sample_DHW.astype(np.float64)
    shown = f"values run from {low:.4g} to {high:.4g}"
    if low >= 0 and (values == np.rint(values)).all() and np.count_nonzero(seen.counts) <= 150:
        return f"{shown}: labels or a mask"
    if abs(values.mean()) < 0.1 and abs(values.std() - 1) < 0.1:
        return f"{shown}: standardised to mean 0 and spread 1"
    if low >= -1 and 0.5 < high <= 1:
        return f"{shown}: scaled to 1"
    if low >= 0 and high <= 0.1:
        return f"{shown}: attenuation"
    if -4 <= low < -0.9 and high <= 33:
        return f"{shown}: divided by 1,000"
    if low >= 0 and high <= 255:
        return f"{shown}: 8 bits, as on a screen"
    return f"{shown}: a window, or not CT"
