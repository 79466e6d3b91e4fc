"""One series out of a study by a stated rule, and the table's word above it (faults B5, B8, B12, B13)."""

from dataclasses import replace

import numpy as np
import pytest
from pydicom.uid import generate_uid

from ttepretrain.config import load_config
from ttepretrain.errors import BadStudy, ConfigError
from ttepretrain.volume.checks import Flag
from ttepretrain.volume.dicom.choice import Reading, SeriesConfig, Wanted
from ttepretrain.volume.dicom.reader import read_dicom
from ttepretrain.volume.spec import PRESETS, VolumeConfig, VolumeSpec


def uid(series: int) -> str:
    return generate_uid(entropy_srcs=["series", str(series)])


@pytest.fixture
def study(tmp_path, geometry, write_series):
    """Four series of one patient, each constant in HU: 101 thick, 102 thin and sharp, 103 a reformat, 104 a tracker."""

    def write(number, slices, thickness, kernel, kind="ORIGINAL", step=4.0):
        affine = geometry.dicom_affine((slices, 5, 7), (4.0, 2.0, 3.0))

        def edit(d, dataset):
            dataset.SliceThickness, dataset.ConvolutionKernel = thickness, kernel
            dataset.ImageType = [kind, "PRIMARY", "AXIAL"]
            x, y, z = dataset.ImagePositionPatient
            dataset.ImagePositionPatient = [x, y, float(z) + (step - 4.0) * d]

        hu_DHW = np.full((slices, 5, 7), 100 + number, np.int16)
        write_series(tmp_path / f"{number}", hu_DHW, affine, edit=edit, series=number)

    write(1, 6, 5.0, "B30f")
    write(2, 5, 1.0, "B70f")
    write(3, 9, 3.0, "B30f", kind="DERIVED")
    write(4, 12, 10.0, "B30f", step=0.0)
    return tmp_path


def chosen(study, reading=None, wanted=None) -> int:
    image = read_dicom(study, reading or Reading(), wanted or Wanted())
    return int(image.hu_DHW[0, 0, 0]) - 100


@pytest.mark.parametrize(
    ("reading", "series"),
    [
        (Reading(), 1),  # of the originals, the one with the most positions: the tracker has one
        (Reading(prefer=("most_slices",)), 3),
        (Reading(prefer=("thinnest",)), 2),
        (Reading(prefer=("kernel", "thinnest"), kernels=("B30F",)), 3),
        (Reading(prefer=("kernel",), kernels=("B70F", "B30F")), 2),
        (Reading(max_thickness_mm=3.0), 2),
        (Reading(min_thickness_mm=3.0, max_thickness_mm=5.0), 1),
        (Reading(min_slices=7), 3),
    ],
)
def test_the_rule_decides_and_says_that_others_were_there(study, reading, series):
    assert chosen(study, reading) == series
    assert Flag.OTHER_SERIES in read_dicom(study, reading).flags


def test_a_rule_that_nothing_meets_refuses(study):
    with pytest.raises(BadStudy, match=r"NO_SERIES: none of 4 CT series is as volume\.series asks"):
        read_dicom(study, Reading(min_slices=50))


def test_the_tables_series_wins_over_the_rule(study):
    for number in (1, 2, 3):
        assert chosen(study, wanted=Wanted(series_uid=uid(number))) == number
        assert chosen(study, Reading(min_slices=50), Wanted(uid(number))) == number
    with pytest.raises(BadStudy, match=r"NO_SERIES: the table's series_uid"):
        read_dicom(study, wanted=Wanted(series_uid="1.2.3"))


def test_a_file_of_another_series_than_the_tables_is_refused(study):
    file = min((study / "2").iterdir())
    assert chosen(file, wanted=Wanted(uid(2))) == 2
    with pytest.raises(BadStudy, match="NO_SERIES"):
        read_dicom(file, wanted=Wanted(uid(1)))


def test_a_chosen_series_that_is_bad_refuses_the_study(study):
    """It is chosen before it is examined: no other one steps in."""
    with pytest.raises(BadStudy, match="TOO_FEW_SLICES"):
        read_dicom(study, wanted=Wanted(uid(4)))


def test_another_patient_than_the_tables_is_an_identity_conflict(study):
    """B13, a swap; the identifier is in no message. Images without an identifier cannot contradict."""
    assert chosen(study, wanted=Wanted(patient_id="canary-patient ")) == 1
    with pytest.raises(BadStudy, match="IDENTITY_CONFLICT") as refusal:
        read_dicom(study, wanted=Wanted(patient_id="canary-other"))
    assert "canary" not in str(refusal.value)


def test_images_without_a_patient_contradict_no_table(tmp_path, chest, write_series):
    write_series(tmp_path, *chest, edit=lambda _, ds: setattr(ds, "PatientID", ""))
    np.testing.assert_array_equal(read_dicom(tmp_path, wanted=Wanted(patient_id="1")).hu_DHW, chest[0])


def test_with_the_tables_series_a_second_patient_beside_it_does_not_matter(study, chest, write_series):
    write_series(study / "5", *chest, series=5, edit=lambda _, ds: setattr(ds, "PatientID", "another"))
    with pytest.raises(BadStudy, match="IDENTITY_CONFLICT"):
        read_dicom(study)
    assert chosen(study, wanted=Wanted(uid(1))) == 1


def rename(patient_id, name, study_uid="1.2"):
    def edit(_, dataset):
        dataset.PatientID, dataset.PatientName, dataset.StudyInstanceUID = patient_id, name, study_uid

    return edit


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (("", "Canary^Name"), ("", "Other^Name"), False),
        (("", "Canary^Name"), ("", "CANARY^NAME^^ "), True),
        (("", ""), ("", "Canary^Name"), True),  # what is not said contradicts nothing
        (("7", "Canary^Name"), ("7", "Canary^Married"), True),  # the identifier counts
        (("7", ""), ("", "Canary^Name"), True),
        (("7", "Canary^Name"), ("", "canary^name^"), True),
        (("7", "Canary^Name"), ("", ""), True),
        (("7", "Canary^Name"), ("", "Other^Name"), False),
        (("7", "Canary^Name"), ("8", "Canary^Name"), False),
    ],
)
def test_without_a_patient_id_names_tell_patients_apart(tmp_path, chest, write_series, one, other, same):
    """B13, in one series and in a folder of two; no name is in the message."""
    for name, second in (("one", 1), ("two", 2)):
        write_series(tmp_path / name, chest[0][:8], chest[1], edit=rename(*one))
        write_series(tmp_path / name / "more", chest[0][8:], _behind(chest[1], 8), series=second, edit=rename(*other))
        if same:
            assert len(read_dicom(tmp_path / name).hu_DHW) == (12 if second == 1 else 8)
            continue
        with pytest.raises(BadStudy, match="IDENTITY_CONFLICT: images of two patients") as refusal:
            read_dicom(tmp_path / name)
        assert "anary" not in str(refusal.value)


@pytest.mark.parametrize("keyword", ["PatientID", "StudyInstanceUID", "PatientName"])
@pytest.mark.parametrize("silent", [0, 5, 11])
def test_a_slice_that_names_no_patient_or_study_is_not_a_second_one(tmp_path, chest, write_series, keyword, silent):
    """An identifier that one file lost; another than the table's is seen behind it."""
    write_series(tmp_path, *chest, edit=lambda d, ds: d == silent and setattr(ds, keyword, ""))
    np.testing.assert_array_equal(read_dicom(tmp_path).hu_DHW, chest[0])
    with pytest.raises(BadStudy, match="IDENTITY_CONFLICT"):
        read_dicom(tmp_path, wanted=Wanted(patient_id="another"))


def _behind(affine, slices):
    moved = affine.copy()
    moved[:3, 3] += slices * affine[:3, 0]
    return moved


def test_two_studies_in_a_folder_are_refused_unless_the_table_names_the_series(tmp_path, chest, write_series):
    """B13: the larger series of another date would be labelled with this study's."""
    write_series(tmp_path, chest[0][:7], chest[1], series=1, edit=rename("7", "", "1.2"))
    (file, *_) = write_series(tmp_path, *chest, series=2, edit=rename("7", "", "1.3"))
    with pytest.raises(BadStudy, match=r"IDENTITY_CONFLICT: images of two studies .* series_uid"):
        read_dicom(tmp_path)
    for number, slices in ((1, 7), (2, 12)):
        assert len(read_dicom(tmp_path, wanted=Wanted(series_uid=uid(number))).hu_DHW) == slices
    assert len(read_dicom(file).hu_DHW) == 12


def test_the_spec_carries_the_rule_and_old_specs_have_the_default():
    config = VolumeConfig("small", series=SeriesConfig(("kernel", "thinnest"), ("B30f",), 5, 0.5, 3.0), max_gap_mm=6.0)
    spec = config.resolve()
    assert spec.reading == Reading(("kernel", "thinnest"), ("B30F",), 5, 0.5, 3.0, max_gap_mm=6.0)
    assert VolumeSpec.from_json(spec.to_json()) == spec
    other = replace(spec, reading=replace(spec.reading, phase="last"))
    assert list(other.to_json()["reading"]) == [  # the order is part of the names of cached volumes
        "prefer", "kernels", "min_slices", "min_thickness_mm", "max_thickness_mm", "max_gap_mm", "phase",
    ]  # fmt: skip
    default = VolumeConfig("small").resolve()
    assert default == PRESETS["small"]
    assert set(default.to_json()) == {"spacing_mm", "shape_DHW", "hu_range", "windows", "preprocess_version"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("series.prefer=[thickest]", r"volume\.series\.prefer .*did you mean 'thinnest'"),
        ("series.prefer=thinnest", r"a list is needed; write \[thinnest\]"),
        ("series.prefer=[kernel]", r"volume\.series\.kernels"),
        ("series.kernels=[B30f]", r"volume\.series\.kernels"),
        ("series.min_thickness_mm=0", r"volume\.series\.max_thickness_mm"),
        ("max_gap_mm=12", r"volume\.max_gap_mm must lie in"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(VolumeConfig, None, [override])
