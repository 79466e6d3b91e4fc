"""What free text of a header means: contrast or none, units, and images that are not HU of a place."""

import pydicom
import pytest

from ttepretrain.errors import BadStudy
from ttepretrain.volume.checks import Flag
from ttepretrain.volume.dicom.contrast import has_contrast
from ttepretrain.volume.dicom.reader import read_dicom
from ttepretrain.volume.dicom.tags import is_derived, is_map

CONTRAST = {
    True: "APPLIED|ISOVUE300/100|OMNIPAQUE 350|Y|YES|1|IV|IV CONTRAST|ORAL|no oral, Omnipaque|100ml Ultravist|Nonionic"
    "|W/ CONTRAST|Novaldex|Sinograf|NON-IONIC|NON IONIC IODINE|Non-ionic contrast|C+|WITH AND WITHOUT"
    "|contrast: Ultravist|oral contrast|IV Contrast 100 ml|ja",
    False: "NO CONTRAST|UNENHANCED|0|NONE|no|N|Non-contrast|without|W/O|W/O CONTRAST|wo contrast|WO"
    "|ohne|ohne KM|kein KM|sans"
    "|SANS INJECTION|nativ|NATIVE|NO IV|no iv contrast|sin contraste|senza mdc|0 ml|NIL|plain|C-|(none)|NO ORAL, NO IV|"
    "not given|PAS DE CONTRASTE|pas d'injection|AUCUN|aucune injection|non injecté|keines|nicht gegeben|Nichts|"
    "KM: nein|KM nein|geen|INGEN|IV: NO|CONTRAST: NONE|IV contrast: none given|Injection: non|Contrast No|"
    "NONCON|NOCON|PRE-CONTRAST|"
    "IV-|CE-|KM-|0.0",
    None: "N/A|-|?|UNKNOWN|n/a|NA|ANONYMIZED|Removed|XXX|not known|unspecified|  |.|N.A.|n/d|- -",
}


@pytest.mark.parametrize(
    ("agent", "meant"), [(said, meant) for meant, all_ in CONTRAST.items() for said in all_.split("|")]
)
def test_contrast_is_named_denied_or_unsaid(agent, meant):
    assert has_contrast({"ContrastBolusAgent": agent}) is meant


@pytest.mark.parametrize(
    ("agent", "codes", "meant"),
    [
        (None, [], None),
        ("", ["Iohexol"], True),
        (None, ["No contrast"], False),
        ("N/A", ["Iopamidol"], True),
        ("NONE", ["Barium sulfate"], True),
        ("OMNIPAQUE", [], True),
    ],
)
def test_contrast_may_be_a_code(agent, codes, meant):
    items = []
    for code in codes:
        item = pydicom.Dataset()
        item.CodeMeaning = code
        items.append(item)
    assert has_contrast({"ContrastBolusAgent": agent, "ContrastBolusAgentSequence": items}) is meant


def test_contrast_of_a_series(tmp_path, chest, write_series):
    write_series(tmp_path, *chest, edit=lambda _, ds: setattr(ds, "ContrastBolusAgent", "NO CONTRAST"))
    assert read_dicom(tmp_path).acquisition["contrast"] is False


def test_two_words_for_no_contrast_are_one_scan(tmp_path, chest, write_series):
    """Alternating between them is not alternating between two scans; nor is a placeholder in some slices."""
    write_series(
        tmp_path, *chest, edit=lambda d, ds: setattr(ds, "ContrastBolusAgent", ("NONE", "UNENHANCED", "N/A", "")[d % 4])
    )
    assert read_dicom(tmp_path).flags == ()


HU_UNITS = (
    "HU|HOUNSFIELD|Hounsfield Units|hounsfield_unit|[HU]|H.U.|HU_MOD|UNSPECIFIED|US||ANONYMIZED|N/A|dummy|PSEUDO123"
)
OTHER_UNITS = "MGML|mg/ml|OD|Z_EFF|ED|EDW|PCT|%|ml/100g/min|BQML|SUV|ms|normalized|1/cm"


@pytest.mark.parametrize("units", HU_UNITS.split("|"))
def test_units_that_are_hu_or_say_nothing(tmp_path, chest, write_series, units):
    write_series(tmp_path, *chest, edit=lambda _, ds: setattr(ds, "RescaleType", units))
    assert read_dicom(tmp_path).flags == ()


@pytest.mark.parametrize("units", OTHER_UNITS.split("|"))
def test_other_units_are_refused(tmp_path, chest, write_series, units):
    write_series(tmp_path, *chest, edit=lambda _, ds: setattr(ds, "RescaleType", units))
    with pytest.raises(BadStudy, match="NOT_HU"):
        read_dicom(tmp_path)


MAPS = [
    ["DERIVED", "SECONDARY", "SUBTRACTION"],
    ["DERIVED", "PRIMARY", "AXIAL", "SUBTRACTION"],
    ["DERIVED", "PRIMARY", "PERFUSION", "RCBF"],
    ["DERIVED", "SECONDARY", "PERFUSION"],
    ["DERIVED", "PRIMARY", "AXIAL", "CT_SOM5 SUB"],
    ["DERIVED", "SECONDARY", "AXIAL", "TTP"],
    ["DERIVED", "PRIMARY", "AXIAL", "IODINE_NO_WATER"],
    ["DERIVED", "PRIMARY", "VOLUME", "EFF_ATOMIC_NUM"],
    ["DERIVED", "SECONDARY", "VRT"],
]
NO_MAPS = [
    ["ORIGINAL", "PRIMARY", "AXIAL", "CT_SOM5 SPI"],
    ["ORIGINAL", "PRIMARY", "PERFUSION", "NONE"],  # the scan that maps are made of
    ["ORIGINAL", "PRIMARY", "AXIAL", "ADD"],
    ["DERIVED", "PRIMARY", "AXIAL", "VNC"],
    ["DERIVED", "PRIMARY", "AXIAL", "CT_SOM5 MON"],
]


@pytest.mark.parametrize("kind", MAPS, ids=str)
def test_maps_are_not_hu(tmp_path, chest, write_series, kind):
    write_series(tmp_path, *chest, edit=lambda _, ds: setattr(ds, "ImageType", kind))
    with pytest.raises(BadStudy, match="NOT_HU"):
        read_dicom(tmp_path)


@pytest.mark.parametrize("kind", NO_MAPS, ids=str)
def test_scans_and_virtual_scans_are_hu(kind):
    assert not is_map({"ImageType": pydicom.multival.MultiValue(str, kind)})


@pytest.mark.parametrize(
    ("said", "refused"),
    [
        ("Subtraction of the unenhanced phase", True),
        ("perfusion map", True),
        ("cerebral blood flow", True),
        ("iodine_map", True),
        ("JPEG 2000 reversible (lossless)", False),
        ("Thick MPR", False),
    ],
)
def test_maps_told_in_words(said, refused):
    assert is_map({"DerivationDescription": said}) is refused


def test_a_map_beside_a_scan_is_skipped(tmp_path, chest, write_series):
    write_series(tmp_path, *chest)
    write_series(tmp_path, *chest, series=2, edit=lambda _, ds: setattr(ds, "ImageType", MAPS[0]))
    assert read_dicom(tmp_path).flags == (Flag.IMAGES_SKIPPED,)


def test_a_map_within_the_series_refuses_it(tmp_path, chest, write_series):
    write_series(tmp_path, *chest, edit=lambda d, ds: d == 11 and setattr(ds, "ImageType", MAPS[1]))
    with pytest.raises(BadStudy, match="NOT_HU"):
        read_dicom(tmp_path)


@pytest.mark.parametrize(
    "kind",
    [["DERIVED", "SECONDARY", "MIP"], ["DERIVED", "PRIMARY", "MPR"], ["DERIVED", "PRIMARY", "AXIAL", "MAXIMUM"]],
    ids=str,
)
def test_what_is_derived_is_flagged(tmp_path, chest, write_series, kind):
    write_series(tmp_path, *chest, edit=lambda _, ds: setattr(ds, "ImageType", kind))
    assert read_dicom(tmp_path).flags == (Flag.DERIVED,)


@pytest.mark.parametrize(
    "kind", [["ORIGINAL", "SECONDARY", "AXIAL", "CT_SOM5 MIP"], ["ORIGINAL", "PRIMARY", "PROJECTION IMAGE"]]
)
def test_projections_are_derived_whatever_the_first_value_says(kind):
    assert is_derived({"ImageType": pydicom.multival.MultiValue(str, kind)})
    assert not is_derived({"ImageType": pydicom.multival.MultiValue(str, ["ORIGINAL", "PRIMARY", "AXIAL", "AVERAGED"])})
