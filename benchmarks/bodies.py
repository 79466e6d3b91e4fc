"""Drawn bodies in HU, for the check of values (benchmarks/hu_check.py): ellipsoids, noise, padding, metal, masks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

SHAPE_DHW, SPACING_MM = (40, 96, 96), (6.0, 4.5, 4.5)
AIR, LUNG, FAT, MUSCLE, LIVER, SPONGY, CORTICAL = -1000.0, -850.0, -100.0, 50.0, 60.0, 220.0, 900.0


class Body:
    """Ellipsoids painted over each other, mm about the middle of the image: x right, y front, z head."""

    def __init__(self, seed: int = 0, field_mm: float = 1.0):
        self.rng = np.random.default_rng(seed)
        axes = [(np.arange(n) - (n - 1) / 2) * mm * field_mm for n, mm in zip(SHAPE_DHW, SPACING_MM)]
        self.z, self.y, self.x = np.meshgrid(*axes, indexing="ij", sparse=True)
        self.hu_DHW = np.full(SHAPE_DHW, AIR, np.float32)

    def paint(self, value: float, centre_xyz=(0, 0, 0), radii_xyz=(150, 100, 1000), soft_mm: float = 3.0) -> Body:
        """Its edge is as soft as a voxel's partial volume."""
        (x, y, z), (a, b, c) = centre_xyz, radii_xyz
        r = np.sqrt(((self.x - x) / a) ** 2 + ((self.y - y) / b) ** 2 + ((self.z - z) / c) ** 2)
        cover = np.clip(0.5 + (1 - r) * min(radii_xyz) / (2 * soft_mm), 0, 1)
        self.hu_DHW += (cover * (value - self.hu_DHW)).astype(np.float32)
        return self

    def scanned(self, noise: float = 15.0, low: float = -1024, high: float = 3071, offset: float = 0.0) -> np.ndarray:
        """int16 with texture, noise and the range of the scanner."""
        texture = np.kron(self.rng.normal(0, 8, [-(-n // 4) for n in SHAPE_DHW]), np.ones((4, 4, 4)))
        hu_DHW = self.hu_DHW + texture[tuple(slice(n) for n in SHAPE_DHW)] * (self.hu_DHW > -900)
        hu_DHW = hu_DHW + self.rng.normal(0, noise, SHAPE_DHW) + offset
        return np.rint(np.clip(hu_DHW, low, high)).astype(np.int16)


def chest(seed=0, fat_mm=25.0, scale=1.0, lung=LUNG, blood=45.0, lungs=(1, -1), bone=CORTICAL, field_mm=1.0) -> Body:
    body, s = Body(seed, field_mm), scale
    body.paint(FAT, radii_xyz=((130 + fat_mm) * s, (85 + fat_mm) * s, 1000))
    body.paint(MUSCLE, radii_xyz=(130 * s, 85 * s, 1000)).paint(FAT, radii_xyz=(112 * s, 68 * s, 1000))
    for side in lungs:
        body.paint(lung, (60 * s * side, 5 * s, 20 * s), (48 * s, 60 * s, 110 * s))
    body.paint(LIVER + 0.15 * (blood - 45), (55 * s, 5 * s, -110 * s), (60 * s, 60 * s, 60 * s))
    body.paint(MUSCLE, (-15 * s, 20 * s, 0), (40 * s, 35 * s, 45 * s))
    body.paint(blood, (-15 * s, 20 * s, 0), (28 * s, 25 * s, 35 * s))
    body.paint(blood, (-12 * s, -35 * s, 0), (12 * s, 12 * s, 1000))
    body.paint(bone * 0.6, (0, -60 * s, 0), (20 * s, 20 * s, 1000)).paint(
        SPONGY, (0, -60 * s, 0), (16 * s, 16 * s, 1000)
    )
    for z in range(-120, 121, 30):
        for side in (-1, 1):
            body.paint(bone * 0.5, (118 * s * side, 0, z * s), (6 * s, 50 * s, 6 * s))
    return body


def abdomen(seed=0, oral=None, bladder=None, gas=True, fat_mm=30.0) -> Body:
    body = Body(seed).paint(FAT, radii_xyz=(130 + fat_mm, 85 + fat_mm, 1000)).paint(MUSCLE, radii_xyz=(130, 85, 1000))
    body.paint(FAT, radii_xyz=(115, 72, 1000)).paint(110, (55, 10, 50), (55, 55, 70)).paint(
        120, (-75, -20, 50), (28, 40, 45)
    )
    for side in (-1, 1):
        body.paint(190, (55 * side, -40, 0), (25, 22, 50)).paint(MUSCLE, (35 * side, -50, 0), (20, 20, 1000))
    for i, x in enumerate((-60, -20, 20, 60)):
        body.paint(oral or 25, (x, 30, -40 - 12 * i), (20, 18, 30))
        if gas:
            body.paint(-950, (x, 42, -40 - 12 * i), (14, 9, 20))
    if bladder:
        body.paint(bladder, (0, 10, -110), (40, 35, 28))
    return body.paint(500, (0, -60, 0), (22, 20, 1000)).paint(SPONGY, (0, -60, 0), (18, 16, 1000))


def head(seed: int = 0) -> Body:
    """Skull, brain, ventricle, sinus, jaw and teeth; bone is uneven, as it is in a head (sharpness 0.2, not 0.4)."""
    body = Body(seed, 0.6).paint(20, radii_xyz=(78, 98, 110)).paint(-90, radii_xyz=(76, 96, 107))
    body.paint(1300, radii_xyz=(73, 93, 104)).paint(500, radii_xyz=(70, 90, 101)).paint(1000, radii_xyz=(68, 88, 99))
    uneven = np.kron(body.rng.normal(0, 0.3, [-(-n // 2) for n in SHAPE_DHW]), np.ones((2, 2, 2)))
    body.hu_DHW *= np.where(body.hu_DHW > 300, 1 + uneven[tuple(slice(n) for n in SHAPE_DHW)], 1).astype(np.float32)
    body.paint(28, radii_xyz=(65, 85, 96)).paint(38, radii_xyz=(60, 80, 90)).paint(6, (0, 0, 10), (10, 30, 15))
    body.paint(-950, (0, 78, -60), (20, 14, 20)).paint(800, (0, 60, -80), (45, 30, 18))
    return body.paint(1800, (0, 85, -95), (25, 10, 8))


def finger() -> Body:
    """Half of it is bone, and of one density: no scan has a denser peak near 1,000."""
    body = Body(field_mm=0.07).paint(40, radii_xyz=(9, 9, 1000), soft_mm=0.3)
    return body.paint(1200, radii_xyz=(6, 6, 1000), soft_mm=0.3).paint(200, radii_xyz=(2.5, 2.5, 1000), soft_mm=0.3)


def knee() -> Body:
    body = Body(field_mm=0.4).paint(FAT, radii_xyz=(70, 70, 1000)).paint(MUSCLE, radii_xyz=(60, 60, 1000))
    return body.paint(1300, (0, 8, 0), (28, 28, 1000)).paint(SPONGY, (0, 8, 0), (25, 25, 1000))


def temporal_bone() -> Body:
    """Dense bone, cells of air and brain in a narrow field."""
    body = Body(field_mm=0.15)
    uneven = np.kron(body.rng.normal(0, 1, [-(-n // 4) for n in SHAPE_DHW]), np.ones((4, 4, 4)))
    uneven = uneven[tuple(slice(n) for n in SHAPE_DHW)]
    bone = 900 + 500 * body.rng.normal(0, 0.3, SHAPE_DHW)
    body.hu_DHW = np.where(uneven > 0.9, -950, np.where(uneven < -0.6, 40, bone)).astype(np.float32)
    body.hu_DHW[:, :20] = 35
    return body


def ringed(hu_DHW: np.ndarray, value: int = -2000) -> np.ndarray:
    """Padding outside the circle of reconstruction."""
    _, H, W = hu_DHW.shape
    y, x = np.ogrid[:H, :W]
    outside = ((y - H / 2) / (H / 2)) ** 2 + ((x - W / 2) / (W / 2)) ** 2 > 1
    return np.where(outside, hu_DHW.dtype.type(value), hu_DHW)


def cropped(hu_DHW: np.ndarray, share: float, back: float = 0.0) -> np.ndarray:
    _, H, W = hu_DHW.shape
    h, w, b = round(H * share / 2), round(W * share / 2), round(back * H)
    return hu_DHW[:, H // 2 - h + b : H // 2 + h + b, W // 2 - w : W // 2 + w]


def sharpened(hu_DHW: np.ndarray) -> np.ndarray:
    """A lung or bone kernel: edges overshoot, noise is strong."""
    x = hu_DHW.astype(np.float32)
    around = (np.roll(x, 1, 1) + np.roll(x, -1, 1) + np.roll(x, 1, 2) + np.roll(x, -1, 2)) / 4
    noise = np.random.default_rng(1).normal(0, 40, x.shape)
    return np.rint(np.clip(x + 1.5 * (x - around) + noise, -1024, 3071)).astype(np.int16)


def metal(hu_DHW: np.ndarray, high: int) -> np.ndarray:
    """Streaks from an implant, from the lowest to the highest value the scanner has."""
    rng, x = np.random.default_rng(2), hu_DHW.astype(np.float32)
    for d in range(10, 24):
        for angle in rng.uniform(0, np.pi, 24):
            along = np.arange(-60, 60)
            h = np.clip((48 + along * np.sin(angle)).astype(int), 0, x.shape[1] - 1)
            w = np.clip((60 + along * np.cos(angle)).astype(int), 0, x.shape[2] - 1)
            x[d, h, w] += rng.choice([-1, 1]) * rng.uniform(200, 1200)
        x[d, 45:51, 57:63] = 8000
    return np.clip(x, -1024, high).astype(np.int16)


def masked(hu_DHW: np.ndarray, value: int = -1024) -> np.ndarray:
    """Everything but the body set to one value."""
    body = (hu_DHW > -400) | (
        np.maximum.accumulate(hu_DHW > -300, 2) & np.maximum.accumulate(hu_DHW[..., ::-1] > -300, 2)[..., ::-1]
    )
    return np.where(body, hu_DHW, hu_DHW.dtype.type(value))


def defaced(hu_DHW: np.ndarray, value: int) -> np.ndarray:
    out = hu_DHW.copy()
    out[:20, :40] = value
    return out


def _noise() -> np.ndarray:
    return np.random.default_rng(4).integers(0, 100, SHAPE_DHW).astype(np.int16)


def phantoms() -> Iterator[tuple[str, np.ndarray]]:
    plain = chest().scanned()
    yield "chest", plain
    yield "chest, arterial phase, aorta 400", chest(blood=400).scanned()
    yield "chest, pulmonary angiography, 700", chest(blood=700).scanned()
    yield "chest, virtual 40 keV, aorta 1,000", chest(blood=1000, bone=1900).scanned(noise=30)
    yield "heart, coronary angiography, narrow field", cropped(chest(blood=450, field_mm=0.6).scanned(), 0.7)
    yield "chest, no contrast, noise 80", chest().scanned(noise=80)
    yield "chest, noise 150", chest().scanned(noise=150)
    yield "chest, noise 60 not clipped", chest().scanned(noise=60, low=-2000)
    yield "child", chest(scale=0.55, fat_mm=6, lung=-700).scanned()
    yield "newborn in a field of 430 mm", chest(scale=0.3, fat_mm=8, lung=-600, bone=500).scanned()
    yield "obese", chest(fat_mm=70).scanned()
    yield "obese, beyond the field", cropped(chest(fat_mm=80).scanned(noise=40), 0.6)
    yield "emphysema", chest(lung=-960).scanned()
    yield "one lung", chest(lungs=(1,)).scanned()
    yield "no lung aerated", chest(lungs=()).scanned()
    yield "lung reconstruction without outside air", cropped(plain, 0.5)
    yield "a lung alone, expiration, -600", chest(lung=-600).scanned(noise=25)[8:34, 38:58, 51:71]
    yield "spine reconstruction", cropped(plain, 0.25, back=-0.12)
    yield "abdomen", abdomen().scanned()
    yield "abdomen, cropped to the body, no gas", cropped(abdomen(gas=False).scanned(), 0.42)
    yield "abdomen, masked to the body", masked(abdomen().scanned())
    yield "bowel filled with contrast, 450", abdomen(oral=450).scanned()
    yield "bowel filled with barium, 1,200", abdomen(oral=1200).scanned()
    yield "bladder filled with contrast, 800", abdomen(bladder=800).scanned()
    yield "bladder filled with contrast, 1,050", abdomen(bladder=1050).scanned()
    yield "head", head().scanned(noise=5)
    yield "head, ring of -2,000", ringed(head().scanned(noise=5))
    yield "head, masked", masked(head().scanned(noise=5))
    yield "head, face set to 0", defaced(head().scanned(noise=5), 0)
    yield (
        "head, face filled with noise",
        np.where(defaced(head().scanned(noise=5), 9999) == 9999, _noise(), head().scanned(noise=5)),
    )
    yield "head, face set to -1,024", defaced(head().scanned(noise=5), -1024)
    yield "knee", knee().scanned()
    yield "a finger, of dense bone", finger().scanned()
    yield "temporal bone, narrow field", temporal_bone().scanned(noise=30)
    yield "chest, ring of -2,000", ringed(plain)
    yield "chest, ring of -3,024", ringed(plain, -3024)
    yield "chest, ring of -1,024", ringed(plain, -1024)
    yield "metal, clipped at 3,071", metal(plain, 3071)
    yield "metal, extended scale", metal(plain, 30710)
    yield "sharp kernel", sharpened(plain)
    yield "prone", plain[:, ::-1]
    yield "three slices", plain[18:21]
    yield "masked to the body", masked(plain)
    yield "steps of 2 HU", plain // 2 * 2
    yield "steps of 4 HU", plain // 4 * 4
    yield "air 30 HU too high", chest().scanned(offset=30)
    yield "couch of 100 HU", np.where(np.arange(96)[None, :, None] < 8, np.int16(100), plain)
