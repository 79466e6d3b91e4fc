"""The HU check on drawn bodies: no sound one is refused, and what was done to the others is named."""

import re

import numpy as np
import pytest

from benchmarks.bodies import abdomen, chest, head, masked, phantoms, ringed
from benchmarks.hu_check import real_scans, spoils, verdict

pytestmark = pytest.mark.source  # benchmarks are not installed

DOUBTFUL = {
    "abdomen, cropped to the body, no gas",  # fat and muscle alone say that these are HU
    "a lung alone, expiration, -600",  # as air would be at half the scale
    "a finger, of dense bone",  # a third of it lies near 1,200; air and soft tissue lie where they belong
}

# What was done: (verdict, part of the detail) for the chest. None: nothing in the values tells.
CHEST = {
    "1,024 added": "1,000 or 1,024 was added; write HU",
    "1,024 added, ring of -2,000": "1,000 or 1,024 was added; write HU",
    "1,024 added, ring of -1,024": "1,000 or 1,024 was added; write HU",
    "1,000 added, ring of -3,024": "1,000 or 1,024 was added; write HU",
    "1,024 added to half of the slices": "hu_doubtful",
    "intercept applied twice": "the intercept was applied twice; write HU",
    "intercept of -1,000 applied twice": "the intercept was applied twice; write HU",
    "sign lost": "the sign was lost; write HU",
    "sign turned": "the sign was turned: air is near 1,000; write HU",
    "inverted, 3,071 - HU": "it is inverted: air is brightest; write HU",
    "negative values as unsigned": "negative values were stored without their sign, as 65,536 and less; write HU",
    "modulo 256": "values run from 0 to 255: 8 bits, as on a screen; write HU",
    "modulo 4,096": "negative values were wrapped by 4,096; write HU",
    "ten times": "the slope is 10 times too large; write HU",
    "doubled": "the slope is 2 times too large; write HU",
    "slope 2 for 1, intercept -1,024": "the slope is too large; write HU",
    "halved": "hu_doubtful",
    "slope 0.5 for 1, intercept -1,024": "the slope is too small; write HU",
    "divided by 1,000": "divided by 1,000; write HU",
    "scaled to 0..1": "scaled to 1; write HU",
    "scaled to -1..1": "values run from -1 to 0.462: divided by 1,000; write HU",
    "scaled to 0..255": "values run from 0 to 255: 8 bits, as on a screen; write HU",
    "standardised": "standardised to mean 0 and spread 1; write HU",
    "attenuation, 1/mm": ": attenuation; write HU",
    "equalised": "0.0% of voxels are below -300 HU",
    "clipped to -160..240": "air was cut off at -160, as a window does; write HU",
    "clipped to -200..300": "air was cut off at -200, as a window does; write HU",
    "clipped to -1,000..1,000": "sound",  # nothing in this chest is above
    "clipped to -1,000..400": "hu_clipped",
    "clipped to -1,350..150": "hu_clipped",
    "clipped to -500..1,300": "hu_clipped",
    "256 grey levels": "hu_doubtful",
    "iodine or perfusion map": "of the body is exactly 0, and nothing air, fat or bone",
    "water map, mg/ml": "1,000 or 1,024 was added; write HU",
    "MR-like": "0.0% of voxels are below -300 HU",
    "labels": "values run from 0 to 3: labels or a mask; write HU",
}


@pytest.fixture(scope="module")
def sound() -> dict[str, np.ndarray]:
    return dict(phantoms())


def test_no_sound_body_is_refused_or_flagged(sound):
    said = {name: verdict(hu_DHW) for name, hu_DHW in sound.items()}
    assert len(said) > 40
    assert {name: what for name, what in said.items() if what[0] != "sound"} == dict.fromkeys(
        DOUBTFUL, ("hu_doubtful", "")
    )


def test_no_real_scan_is_refused_or_flagged(fixtures):
    said = {name: verdict(hu_DHW) for name, hu_DHW in real_scans(fixtures)}
    assert len(said) >= 8
    assert set(said.values()) == {("sound", "")}


@pytest.mark.parametrize("name", spoils())
def test_what_was_done_to_a_chest_is_named(sound, name):
    what, detail = verdict(spoils()[name](sound["chest"]))
    assert CHEST[name] in (f"{what} {detail}" if what == "refused" else what)


@pytest.mark.parametrize("added", [1000, 1024])
@pytest.mark.parametrize(
    "name",
    ["child", "newborn in a field of 430 mm", "obese", "emphysema", "no lung aerated", "abdomen", "head", "noise 150"],
)
def test_an_offset_with_a_ring_is_refused_in_every_body(sound, name, added):
    hu_DHW = sound["chest, noise 150" if name == "noise 150" else name]
    for ring in (-1024, -2000, -3024):
        assert verdict(ringed(hu_DHW + added, ring))[0] == "refused"


def test_floats_and_whole_numbers_are_judged_alike(sound):
    for name in ("chest", "head", "newborn in a field of 430 mm"):
        assert verdict(sound[name].astype(np.float32) + 0.25) == ("sound", "")
    assert verdict(ringed(sound["chest"].astype(np.float32) + 1024.25))[0] == "refused"


def test_padding_after_resampling_is_still_padding(sound):
    """Interpolation leaves values between -2,000 and air at the ring: no air at -2,000."""
    x = ringed(sound["chest"]).astype(np.float32)
    assert verdict((x + np.roll(x, 1, 2)) / 2) == ("sound", "")


def test_a_brain_without_its_skull_is_doubtful():
    x = head().scanned(noise=5)
    brain = (x > 0) & (x < 70)
    assert verdict(np.where(brain, x, np.int16(-1024)))[0] == "hu_doubtful"


def test_the_places_of_tissue_and_air_are_named(sound):
    """Fat is the most frequent tissue of this chest, brain of the head: -95 and 37 HU."""
    for hu_DHW, tissue in ((sound["chest"] + 1024, 929), (ringed(sound["head"] + 1024), 1061)):
        found = re.search(r"; tissue lies near ([\d,]+), air near (\d+): 1,000 or 1,024", verdict(hu_DHW)[1])
        assert [int(n.replace(",", "")) for n in found.groups()] == pytest.approx([tissue, 25], abs=6)


def test_a_calibration_that_is_off_by_300_is_doubtful():
    assert verdict(chest().scanned(offset=300))[0] == "hu_doubtful"


def test_a_map_of_perfusion_is_refused_and_an_organ_cut_out_of_a_scan_is_not():
    rng = np.random.default_rng(0)
    body = masked(abdomen().scanned()) > -1024
    flow = np.maximum(0, rng.normal(20, 30, body.shape))
    what, detail = verdict(np.where(body, flow, -1024).round().astype(np.int16))
    assert (what, "exactly 0" in detail) == ("refused", True)
    assert verdict(masked(abdomen().scanned())) == ("sound", "")
