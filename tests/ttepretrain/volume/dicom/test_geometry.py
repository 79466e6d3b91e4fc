"""Where voxels lie, against SimpleITK, dcm2niix and closed forms (faults B7, B9, B10, B12)."""

import itertools
import math
import subprocess

import dcm2niix
import numpy as np
import pydicom
import pytest
import SimpleITK

from ttepretrain.errors import BadStudy
from ttepretrain.volume.checks import Flag, Reason
from ttepretrain.volume.dicom.choice import Reading
from ttepretrain.volume.dicom.reader import read_dicom
from ttepretrain.volume.dicom.stack import _even_grid
from ttepretrain.volume.nifti import read_nifti
from ttepretrain.volume.preprocess import preprocess_ct
from ttepretrain.volume.spec import LUNG, VolumeSpec

SHAPE, SPACING = (13, 34, 29), (4.5, 1.7, 2.6)
MARKER = (9, 8, 20)
ANGLES = [(0, 0, 0), (21, -13, 8), (-35, 5, 40), (90, 0, 0), (3, 88, -2)]


def marked(shape=SHAPE, marker=MARKER) -> np.ndarray:
    hu_DHW = np.full(shape, -1000, np.int16)
    hu_DHW[tuple(slice(n // 5, -n // 5) for n in shape)] = 40
    hu_DHW[:, 0, 0] -= np.arange(1, len(hu_DHW) + 1, dtype=np.int16)  # no slice is another, or of one value
    hu_DHW[marker] = 2500
    return hu_DHW


def rotated(geometry, angles, lean=0.0):
    affine = geometry.dicom_affine(SHAPE, SPACING, lean)
    affine[:3] = geometry.rotation(*angles) @ affine[:3]
    affine[:3, 3] += [31.0, -17.5, 208.25]
    return affine


def marker_mm(image) -> np.ndarray:
    index = np.unravel_index(np.argmax(image.hu_DHW), image.hu_DHW.shape)
    return (image.affine @ [*index, 1.0])[:3]


def reason_of(path, reading) -> Reason:
    with pytest.raises(BadStudy) as refusal:
        read_dicom(path, reading)
    return refusal.value.code


@pytest.mark.parametrize("angles", ANGLES)
def test_a_marker_lies_where_simpleitk_and_dcm2niix_see_it(tmp_path, geometry, write_series, angles):
    """Within a tenth of the smallest voxel, for oblique, coronal and sagittal series of unequal axes and spacing."""
    affine = rotated(geometry, angles)
    truth_mm = (affine @ [*MARKER, 1.0])[:3]
    files = write_series(tmp_path / "scan", marked(), affine)
    within = {"atol": 0.1 * min(SPACING), "rtol": 0}
    np.testing.assert_allclose(marker_mm(read_dicom(tmp_path / "scan")), truth_mm, **within)

    theirs = SimpleITK.ReadImage(SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(files[0].parent)))
    brightest = np.unravel_index(np.argmax(SimpleITK.GetArrayFromImage(theirs)), theirs.GetSize()[::-1])
    lps_mm = theirs.TransformIndexToPhysicalPoint([int(i) for i in brightest[::-1]])
    np.testing.assert_allclose(np.array(lps_mm) * [-1, -1, 1], truth_mm, **within)

    command = [dcm2niix.bin, "-f", "converted", "-b", "n", "-z", "n", "-o", str(tmp_path), str(tmp_path / "scan")]
    subprocess.run(command, capture_output=True, check=True)
    converted = read_nifti(tmp_path / "converted.nii")
    np.testing.assert_allclose(marker_mm(converted), truth_mm, **within)


@pytest.mark.parametrize("angles", ANGLES[:3])
@pytest.mark.parametrize("lean", [0.0, math.tan(math.radians(18.5)), -math.tan(math.radians(11))])
def test_a_marker_keeps_its_place_on_the_grid(tmp_path, geometry, write_series, angles, lean):
    """From file to grid, tilted both ways or not: within a tenth of a voxel of the grid, per axis.

    The marker is linear in mm, -200 to 200 HU over the volume, one axis at a time: trilinear interpolation is exact.
    """
    affine = rotated(geometry, angles, lean)
    spec = VolumeSpec((4.0, 2.4, 2.5), (6, 9, 8), (-1024, 3071), (LUNG,))
    mm = geometry.grid_mm(affine, SHAPE)
    centre_mm = affine[:3] @ [*((np.array(SHAPE) - 1) / 2), 1.0]
    for axis in range(3):
        ramp = 4.0 * (mm[..., axis] - centre_mm[axis])
        hu_DHW = np.round(ramp).astype(np.int16)
        hu_DHW[:, 0], hu_DHW[:, :, 0] = -1000, -1000  # some air, or it is no CT
        folder = tmp_path / f"{axis}"
        write_series(folder, hu_DHW, affine)
        volume = preprocess_ct(folder, spec)
        seen_mm = volume.hu_DHW / 4.0 + centre_mm[axis]
        expected_mm = geometry.grid_mm(volume.affine, spec.shape_DHW)[..., axis]
        off_mm = np.abs(seen_mm - expected_mm)
        assert off_mm.max() < 0.1 * min(spec.spacing_mm) + 0.25, (axis, off_mm.max())  # HU are rounded twice: .25 mm
        assert abs((seen_mm - expected_mm).mean()) < 0.1 * min(spec.spacing_mm)


@pytest.mark.parametrize(
    ("lean_degrees", "tag", "flags"),
    [
        (18.5, None, (Flag.GANTRY_TILT,)),  # only in the positions
        (-18.5, None, (Flag.GANTRY_TILT,)),
        (18.5, 18.5, (Flag.GANTRY_TILT,)),
        (-18.5, 18.5, (Flag.GANTRY_TILT,)),  # the sign of the tag is the vendor's own; positions count
        (0.0, 18.5, (Flag.TILT_UNCONFIRMED,)),  # only in the tag: noticed, nothing invented
        (0.0, -18.5, (Flag.TILT_UNCONFIRMED,)),
        (0.0, 0.0, ()),
    ],
)
def test_tilt_follows_the_positions_and_is_flagged(tmp_path, geometry, write_series, lean_degrees, tag, flags):
    affine = geometry.dicom_affine(SHAPE, SPACING, math.tan(math.radians(lean_degrees)))

    def name_tilt(_, dataset):
        if tag is not None:
            dataset.GantryDetectorTilt = tag

    write_series(tmp_path, marked(), affine, edit=name_tilt)
    image = read_dicom(tmp_path)
    assert image.flags == flags
    np.testing.assert_allclose(image.affine, affine, atol=1e-5)


def test_runs_of_108_40_and_70_mm_become_even(tmp_path, geometry, write_series):
    """The steps of a real head scan, of a volume that is linear along the slices: interpolation is exact."""
    z_mm = np.cumsum([0.0, *[1.08] * 8, *[4.0] * 6, *[7.0] * 5])
    affine = geometry.dicom_affine((len(z_mm), 12, 17), (1.08, 2.0, 1.5))
    hu_DHW = np.broadcast_to(np.round(25 * z_mm)[:, None, None], (len(z_mm), 12, 17)).astype(np.int16)  # 27 a step

    def place(d, dataset):
        x, y, z = dataset.ImagePositionPatient
        dataset.ImagePositionPatient = [x, y, f"{float(z) + z_mm[d] - 1.08 * d:.10g}"]

    write_series(tmp_path, hu_DHW, affine, edit=place)
    image = read_dicom(tmp_path)
    assert image.flags == (Flag.UNEVEN_SPACING,)
    assert image.spacing_mm[0] == pytest.approx(1.08)
    assert len(image.hu_DHW) == int(z_mm[-1] / 1.08) + 1
    np.testing.assert_array_equal(image.hu_DHW[:, 5, 5], 27 * np.arange(len(image.hu_DHW)))
    assert image.hu_DHW.dtype == np.int16


@pytest.mark.parametrize("slope", [1, 0.5])
def test_one_thin_slab_among_wide_steps_grows_the_scan_eightfold_at_most(tmp_path, geometry, write_series, slope):
    """The finest step would give ten slices for each; linear values stay exact on the coarser grid."""
    gaps_mm = [10.0] * 60 + [0.5] * 4 + [10.0] * 60
    z_mm = np.cumsum([0.0, *gaps_mm])
    affine = geometry.dicom_affine((len(z_mm), 4, 5), (2.0, 1.7, 2.6))
    hu_DHW = np.broadcast_to((2 * z_mm)[:, None, None], (len(z_mm), 4, 5)).astype(np.int16)

    def place(d, dataset):
        steps(dataset, d, gaps_mm)
        if slope != 1:
            dataset.RescaleSlope, dataset.RescaleIntercept = slope, -512.0

    write_series(tmp_path, hu_DHW, affine, edit=place)
    image = read_dicom(tmp_path)
    assert image.flags == (Flag.UNEVEN_SPACING,)
    assert len(image.hu_DHW) == 8 * len(z_mm)
    assert image.spacing_mm[0] == pytest.approx(z_mm[-1] / (8 * len(z_mm) - 1))
    assert image.spacing_mm[0] <= 1.25
    expected = 2 * slope * image.spacing_mm[0] * np.arange(len(image.hu_DHW))
    assert image.hu_DHW.dtype == (np.int16 if slope == 1 else np.float32)
    np.testing.assert_allclose(image.hu_DHW[:, 2, 2], expected, atol=0.501 if slope == 1 else 1e-3)


@pytest.mark.parametrize(
    ("count", "thin_mm", "wide_mm", "step_mm"),
    [
        (40, 1.0, 3.0, 1.0),  # as fine as the finest
        (40, 0.2, 2.0, 0.5),  # no finer than half a millimetre
        (200, 0.5, 10.0, 1.0256),  # 1,024 slices
        (1200, 0.5, 1.0, 0.75),  # or as many as the scan has
    ],
)
def test_the_even_grid_is_as_fine_as_its_memory_allows(count, thin_mm, wide_mm, step_mm):
    offsets_mm = np.cumsum([0.0, *[thin_mm] * (count // 2), *[wide_mm] * (count // 2)])
    grid_mm, flags = _even_grid(offsets_mm, 10.0)
    assert flags == (Flag.UNEVEN_SPACING,)
    assert grid_mm[1] == pytest.approx(step_mm, rel=1e-3)
    assert len(grid_mm) <= max(count + 1, min(8 * (count + 1), 1024))
    assert offsets_mm[-1] - grid_mm[-1] < grid_mm[1]


def steps(dataset, d, gaps_mm):
    """Move slice d, written at d x 2 mm, to where the steps put it."""
    x, y, z = dataset.ImagePositionPatient
    dataset.ImagePositionPatient = [x, y, f"{float(z) - 2.0 * d + sum(gaps_mm[:d]):.10g}"]


@pytest.mark.parametrize(
    ("at", "times"),
    [
        *itertools.product([[0], [6], [11], [4, 8], [5, 6]], [1.6, 1.7, 2.0, 2.5, 3.5]),
        *itertools.product([[5, 6, 7], [9, 10, 11]], [1.95, 2.0, 3.0, 3.1]),
    ],
)
def test_few_wide_steps_are_holes(tmp_path, geometry, write_series, at, times):
    """B7: one or two side by side of any width; three of a whole multiple, as missing slices leave them."""
    gaps_mm = [2.0 * (times if i in at else 1) for i in range(12)]
    affine = geometry.dicom_affine(SHAPE, (2.0, 1.7, 2.6))
    write_series(tmp_path, marked(), affine, edit=lambda d, ds: steps(ds, d, gaps_mm))
    assert reason_of(tmp_path, Reading()) == Reason.MISSING_SLICE


@pytest.mark.parametrize("at", [[0, 1, 2], [5, 6, 7], [9, 10, 11]])
@pytest.mark.parametrize("times", [1.52, 1.7, 2.5, 3.5])
def test_three_alike_that_are_no_multiple_are_a_protocol(tmp_path, geometry, write_series, at, times):
    """B9: slices that are missing from even ones leave whole multiples of the step, 7.6 mm among 5 mm is none."""
    gaps_mm = [2.0 * (times if i in at else 1) for i in range(12)]
    affine = geometry.dicom_affine(SHAPE, (2.0, 1.7, 2.6))
    write_series(tmp_path, marked(), affine, edit=lambda d, ds: steps(ds, d, gaps_mm))
    image = read_dicom(tmp_path)
    assert image.flags == (Flag.UNEVEN_SPACING,)
    assert (len(image.hu_DHW) - 1) * image.spacing_mm[0] == pytest.approx(sum(gaps_mm), abs=image.spacing_mm[0])


@pytest.mark.parametrize("step_mm", [0.2, 0.3, 0.5])
@pytest.mark.parametrize("gone", [1, 2, 6, 11])
def test_a_hole_among_tiny_steps_is_seen(tmp_path, geometry, write_series, step_mm, gone):
    """B7: also where the step is no larger than what positions are rounded to elsewhere."""
    affine = geometry.dicom_affine(SHAPE, (step_mm, 1.7, 2.6))
    files = write_series(tmp_path, marked(), affine)
    assert len(read_dicom(tmp_path).hu_DHW) == len(files)
    files[gone].unlink()
    assert reason_of(tmp_path, Reading()) == Reason.MISSING_SLICE


def test_where_two_slabs_meet_a_small_step_is_a_step(tmp_path, geometry, write_series):
    """B9: .4 mm between slices of 9 and of 1.2 mm: by the median of all steps it was one place with two pictures."""
    gaps_mm = [9.0] * 7 + [0.4] + [1.2] * 4
    affine = geometry.dicom_affine(SHAPE, (2.0, 1.7, 2.6))
    write_series(tmp_path, marked(), affine, edit=lambda d, ds: steps(ds, d, gaps_mm))
    image = read_dicom(tmp_path)
    assert image.flags == (Flag.UNEVEN_SPACING,)
    np.testing.assert_array_equal(image.hu_DHW[0], marked()[0])


@pytest.mark.parametrize("times", [1.4, 1.7, 2.0, 2.5, 3.5])
@pytest.mark.parametrize("between", [None, 0.5, 1.4])
def test_four_wide_steps_side_by_side_are_a_protocol(tmp_path, geometry, write_series, times, between):
    """B9; where the runs meet, a step may be narrower than both, or lie between them."""
    gaps_mm = [2.0] * 6 + ([] if between is None else [2.0 * between]) + [2.0 * times] * (5 + (between is None))
    affine = geometry.dicom_affine(SHAPE, (2.0, 1.7, 2.6))
    write_series(tmp_path, marked(), affine, edit=lambda d, ds: steps(ds, d, gaps_mm))
    image = read_dicom(tmp_path)
    assert image.flags == (Flag.UNEVEN_SPACING,)
    assert (len(image.hu_DHW) - 1) * image.spacing_mm[0] == pytest.approx(sum(gaps_mm), abs=image.spacing_mm[0])


@pytest.mark.parametrize("apart_mm", [0.02, 0.09])
def test_slices_nearer_than_a_share_of_the_step_are_one_place_twice(tmp_path, geometry, write_series, apart_mm):
    """B8: within 5 % of the median step; equal pictures are dropped and flagged, others refused."""
    affine = geometry.dicom_affine(SHAPE, (2.0, 1.7, 2.6))
    for name, differ in (("equal", 0), ("other", 1)):
        files = write_series(tmp_path / name, marked(), affine)
        twin = pydicom.dcmread(files[6])
        x, y, z = twin.ImagePositionPatient
        twin.SOPInstanceUID, twin.ImagePositionPatient = pydicom.uid.generate_uid(), [x, y, float(z) + apart_mm]
        twin.PixelData = (twin.pixel_array + np.uint16(differ)).tobytes()
        twin.save_as(tmp_path / name / "twin")
    image = read_dicom(tmp_path / "equal")
    np.testing.assert_array_equal(image.hu_DHW, marked())
    assert image.flags == (Flag.DUPLICATE_DROPPED,)
    assert reason_of(tmp_path / "other", Reading()) == Reason.DUPLICATE_SLICE


def test_the_widest_allowed_step_is_configurable(tmp_path, geometry, write_series):
    """`volume.max_gap_mm` refuses wide even spacing and wide runs alike."""
    write_series(tmp_path / "even", marked(), geometry.dicom_affine(SHAPE, SPACING))
    assert read_dicom(tmp_path / "even", Reading(max_gap_mm=4.5)).flags == ()
    assert reason_of(tmp_path / "even", Reading(max_gap_mm=4.0)) == Reason.BAD_SPACING

    def place(d, dataset):
        x, y, z = dataset.ImagePositionPatient
        dataset.ImagePositionPatient = [x, y, float(z) + 3.0 * max(0, d - 5)]

    write_series(tmp_path / "runs", marked(), geometry.dicom_affine(SHAPE, SPACING), edit=place)
    assert read_dicom(tmp_path / "runs", Reading(max_gap_mm=8.0)).flags == (Flag.UNEVEN_SPACING,)
    assert reason_of(tmp_path / "runs", Reading(max_gap_mm=7.0)) == Reason.MISSING_SLICE


def test_two_slices_missing_at_the_end_are_not_claimed(tmp_path, geometry, write_series):
    """B7: an end cannot be seen to be missing; the volume is shorter and its marker where it was."""
    affine = geometry.dicom_affine(SHAPE, SPACING)
    for file in write_series(tmp_path, marked(), affine)[-2:]:
        file.unlink()
    image = read_dicom(tmp_path)
    assert image.hu_DHW.shape == (11, 34, 29)
    np.testing.assert_allclose(marker_mm(image), (affine @ [*MARKER, 1])[:3], atol=1e-5)


def test_overlapping_reconstruction_is_even(tmp_path, geometry, write_series):
    """Slices of 5 mm every 2 mm: thickness plays no part in spacing."""
    affine = geometry.dicom_affine(SHAPE, (2.0, 1.7, 2.6))
    write_series(tmp_path, marked(), affine, edit=lambda _, ds: setattr(ds, "SliceThickness", 5.0))
    image = read_dicom(tmp_path)
    assert (image.flags, image.spacing_mm[0]) == ((), pytest.approx(2.0))


def test_two_frames_of_reference_in_a_series_are_refused(tmp_path, geometry, write_series):
    """B12: their positions cannot be compared."""
    write_series(
        tmp_path, marked(), geometry.dicom_affine(SHAPE, SPACING),
        edit=lambda d, ds: setattr(ds, "FrameOfReferenceUID", f"1.2.{d // 7}"),
    )  # fmt: skip
    assert reason_of(tmp_path, Reading()) == Reason.MIXED_GEOMETRY


@pytest.mark.parametrize("step_mm", [0.6, 0.625, 0.7, 0.75, 0.8])
@pytest.mark.parametrize("first_mm", [0.0, 0.2, -103.3])
def test_steps_written_in_half_millimetres_are_even(tmp_path, chest, write_series, geometry, step_mm, first_mm):
    def halves(d, dataset):
        x, y, _ = dataset.ImagePositionPatient
        dataset.ImagePositionPatient = [x, y, np.floor(2 * (first_mm + step_mm * d) + 0.5) / 2]

    affine = geometry.dicom_affine((24, 30, 40), (step_mm, 5.5, 5.0))
    twice_DHW = np.concatenate([chest[0], chest[0] + np.int16(1)])
    write_series(tmp_path, twice_DHW, affine, edit=halves)
    image = read_dicom(tmp_path)
    np.testing.assert_array_equal(image.hu_DHW, twice_DHW)
    assert image.flags == ()
    assert image.spacing_mm[0] == pytest.approx(step_mm, abs=0.025)  # half a millimetre in 23 steps


@pytest.mark.parametrize("gone", [{11}, {5, 6}, {4, 11}, {3, 9, 16}, {3, 5, 7}])
def test_missing_slices_of_half_a_millimetre_are_missing(tmp_path, chest, write_series, geometry, gone):
    twice_DHW = np.concatenate([chest[0], chest[0] + np.int16(1)])
    files = write_series(tmp_path, twice_DHW, geometry.dicom_affine((24, 30, 40), (0.5, 5.5, 5.0)))
    for d in gone:
        files[d].unlink()
    with pytest.raises(BadStudy, match="MISSING_SLICE"):
        read_dicom(tmp_path)
