"""Anatomy and biomarkers of the phantom, measured with thresholds and boxes in patient coordinates."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from data.cohort.exam import BIOMARKERS
from data.cohort.paint.canvas import Canvas
from data.cohort.paint.patient import draw_patient
from data.cohort.paint.phantom import render
from data.cohort.paint.scanner import draw_acquisition, expose
from ttepretrain.volume.image import CTImage, to_ras
from ttepretrain.volume.preprocess import to_grid
from ttepretrain.volume.spec import PRESETS

NAMES = [b.name for b in BIOMARKERS]
SHAPE, SPACING = (50, 90, 100), (6.0, 4.2, 3.8)


def plain_patient(**severity: float):
    """Average build; the given severities, and otherwise no disease."""
    values = np.array([severity.get(b.name, 0.0 if b.present < 1 else 0.5) for b in BIOMARKERS])
    patient = draw_patient(np.random.default_rng(1), values, female=False)
    chance = {"fat_mm": 14, "inflation_mm": 0, "lung_hu": -845, "blood_hu": 260, "aorta_hu": 220, "effusion_right": 0.5}
    return replace(patient, size_xyz=np.ones(3), **chance)


class Scan:
    """A rendered volume that is asked for HU in patient millimetres (x right, y anterior, z superior)."""

    def __init__(self, patient, seed: int = 0):
        self.affine = np.eye(4)  # D up, H to the back, W to the left
        self.affine[:3, :3] = [[0, 0, -SPACING[2]], [0, -SPACING[1], 0], [SPACING[0], 0, 0]]
        self.affine[:3, 3] = -self.affine[:3, :3] @ ((np.array(SHAPE) - 1) / 2)
        self.hu_DHW = render(patient, SHAPE, self.affine, np.random.default_rng(seed))

    def box(self, x: tuple, y: tuple, z: tuple) -> np.ndarray:
        index = np.indices(SHAPE).reshape(3, -1)
        mm = self.affine[:3, :3] @ index + self.affine[:3, 3:]
        inside = np.ones(mm.shape[1], bool)
        for axis, (low, high) in zip(mm, (x, y, z)):
            inside &= (axis >= low) & (axis <= high)
        return self.hu_DHW.ravel()[inside]

    def median(self, x: tuple, y: tuple, z: tuple) -> float:
        return float(np.median(self.box(x, y, z)))


@pytest.fixture(scope="module")
def scan() -> Scan:
    return Scan(plain_patient())


@pytest.mark.parametrize(
    ("organ", "box", "low", "high"),
    [
        ("right lung", ((65, 90), (0, 30), (30, 70)), -900, -780),
        ("left lung", ((-90, -65), (0, 30), (30, 70)), -900, -780),
        ("liver, right of the midline", ((50, 90), (-20, 40), (-140, -110)), 20, 90),
        ("stomach's air, left front", ((-66, -50), (42, 52), (-120, -105)), -1000, -800),
        ("left ventricle", ((-48, -36), (10, 22), (-34, -26)), 150, 260),
        ("right atrium", ((20, 32), (14, 22), (-24, -16)), 200, 300),
        ("descending aorta, left of the spine", ((-32, -22), (-50, -42), (0, 20)), 180, 260),
        ("trachea", ((-4, 4), (-20, -14), (80, 110)), -1000, -850),
        ("spinal canal", ((-4, 4), (-82, -76), (-20, 20)), 0, 150),
        ("muscle of the back", ((24, 36), (-100, -90), (-60, 0)), 30, 90),
        ("air outside", ((-180, -170), (100, 140), (-100, 100)), -1000, -990),
    ],
)
def test_organs_are_where_anatomy_has_them(scan, organ, box, low, high):
    assert low <= scan.median(*box) <= high, organ


def test_vertebral_bodies_alternate_with_discs(scan):
    column = scan.box((-6, 6), (-60, -50), (-120, 100))
    assert column.max() - column.min() > 60


def low_and_high(name: str, measure) -> tuple[float, float]:
    return tuple(float(measure(Scan(plain_patient(**{name: s})))) for s in (0.1, 0.9))


@pytest.mark.parametrize(
    ("name", "measure"),
    [
        ("emphysema", lambda s: (s.box((-90, 90), (-60, 40), (40, 100)) < -930).sum()),
        ("calcium", lambda s: (s.box((-90, 60), (-20, 90), (-90, 40)) > 500).sum()),
        ("heart_size", lambda s: (s.box((-110, 70), (-40, 90), (-60, 20)) > 0).sum()),
        ("effusion", lambda s: (np.abs(s.box((60, 115), (-90, -30), (-80, 0)) - 8) < 40).sum()),
        ("liver_fat", lambda s: -s.median((50, 90), (-20, 40), (-140, -110))),
        ("muscle", lambda s: (s.box((130, 160), (-30, 60), (-40, 60)) > 20).sum()),
        ("pulmonary_artery", lambda s: (s.box((-50, 40), (-20, 35), (25, 60)) > 180).sum()),
        ("nodule", lambda s: sum((s.box(x, (-60, 40), (10, 90)) > -200).sum() for x in ((55, 95), (-95, -55)))),
        ("lung_opacity", lambda s: (np.abs(s.box((60, 110), (-60, 20), (-50, 0)) + 350) < 200).sum()),
        ("bone_density", lambda s: np.mean(s.box((-8, 8), (-62, -48), (-100, 80)))),
        ("spleen_size", lambda s: (s.box((-125, -65), (-80, 0), (-150, -80)) > 70).sum()),
    ],
)  # fmt: skip
def test_a_biomarker_shows_where_it_belongs(name, measure):
    low, high = low_and_high(name, measure)
    assert high > low + 0.1 * abs(low)


def test_ventricles_trade_places_in_size():
    """Blood of the two ventricles differs in contrast: the left one's share of the heart falls with the ratio."""
    shares = []
    for severity in (0.1, 0.9):
        heart = Scan(plain_patient(rv_lv=severity)).box((-100, 70), (-30, 90), (-80, 20))
        left, right = (np.abs(heart - 220) < 12).sum(), (np.abs(heart - 260) < 12).sum()
        shares.append(right / left)
    assert shares[1] > 1.5 * shares[0]


def test_breasts_are_painted_by_sex():
    man = plain_patient()
    box = ((-90, -58), (118, 126), (-10, 10))
    assert Scan(man).median(*box) < -900
    assert Scan(replace(man, female=True)).median(*box) > -300


def test_biomarkers_survive_the_training_grid():
    """Rank correlation of one simple measurement with the severity, on the small preset's 6 mm volumes."""
    from scipy.stats import spearmanr

    rng = np.random.default_rng(4)
    severity_NJ = rng.uniform(0, 1, (36, len(BIOMARKERS)))
    volumes = []
    for number, severity_J in enumerate(severity_NJ):
        patient = draw_patient(rng, severity_J, female=bool(number % 2))
        acquisition = draw_acquisition(rng, patient)
        hu_DHW = render(patient, acquisition.shape_DHW, acquisition.to_anatomy, rng)
        image = CTImage(expose(hu_DHW, acquisition, rng), acquisition.affine, (), {})
        volumes.append(to_grid(to_ras(image), PRESETS["small"])[0])
    volumes = np.stack(volumes)
    lungs = (volumes > -1000) & (volumes < -600)
    upper = np.s_[:, 26:38, 14:42, 8:48]
    measures = {
        "emphysema": ((volumes < -920) & (volumes > -1000))[upper].sum((1, 2, 3)) / lungs[upper].sum((1, 2, 3)),
        "calcium": np.clip(volumes[:, 8:32, 24:46, 14:34] - 420, 0, None).sum((1, 2, 3)),
        "heart_size": (volumes[:, 14:24, 26:44, 12:36] > 0).sum((1, 2, 3)),
        "liver_fat": -np.median(volumes[:, 2:6, 24:34, 36:42], axis=(1, 2, 3)),
        "muscle": ((volumes > 10) & (volumes < 110))[:, 14:34].sum((1, 2, 3)),
        "effusion": ((volumes > -40) & (volumes < 50))[:, 10:24, 12:22].sum((1, 2, 3)),
        "bone_density": volumes[:, 14:34, 18:21, 26:30].mean((1, 2, 3)),
    }
    for name, values in measures.items():
        assert spearmanr(values, severity_NJ[:, NAMES.index(name)]).statistic > 0.4, name


@pytest.mark.parametrize("centre", [(500, 0, 0), (-500, 0, 0), (0, 500, 0), (0, 0, -500)])
def test_a_body_off_the_grid_paints_nothing(centre):
    canvas = Canvas((5, 6, 7), np.diag([10.0, 10, 10, 1]))
    canvas.ellipsoid(centre, (20, 30, 40), 100)
    canvas.tube(centre, tuple(1.1 * np.array(centre)), 15, 100)
    assert (canvas.hu_DHW == -1000).all()
