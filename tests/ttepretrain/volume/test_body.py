"""The grid lies around the patient, whatever lies beside, below or above."""

import numpy as np
import pytest

from ttepretrain.volume.body import body_cells
from ttepretrain.volume.preprocess import preprocess_ct
from ttepretrain.volume.spec import LUNG, VolumeSpec

SPEC = VolumeSpec((10.0, 8.0, 9.0), (13, 20, 24), (-1024, 3071), (LUNG,))
SHAPE, SPACING = (16, 84, 96), (9.0, 4.0, 4.5)
CELLS = (12, 32, 40)  # of the drawn cells: D H W

COUCH = 25.0  # mm
BACK = -65.0  # of the analytic chest, which is 180 mm wide


@pytest.fixture(scope="module")
def lying(geometry):
    """Function: HU of the chest with 100 HU wherever `where(x, y, z)` in mm is true, and the affine."""
    affine = geometry.centred_affine(SHAPE, SPACING)
    mm = geometry.grid_mm(affine, SHAPE)
    x, y, z = mm[..., 0], mm[..., 1], mm[..., 2]

    def draw(where=lambda x, _y, _z: np.zeros(x.shape, bool)):
        return np.where(where(x, y, z), 100.0, geometry.phantom_hu(mm)).astype(np.float32), affine

    return draw


OBJECTS = {  # where it lies, and how far it may move the centre in mm (before: 13 to 40)
    "couch that touches the back": (lambda x, y, _: (abs(y - BACK + COUCH / 2) < COUCH / 2) & (abs(x) < 205), 6),
    "couch 12 mm below": (lambda x, y, _: (abs(y - BACK + COUCH / 2 + 12) < COUCH / 2) & (abs(x) < 205), 6),
    "couch 40 mm below": (lambda x, y, _: (abs(y - BACK + COUCH / 2 + 40) < COUCH / 2) & (abs(x) < 205), 2),
    "couch under the front, prone": (lambda x, y, _: (abs(y + BACK - COUCH / 2) < COUCH / 2) & (abs(x) < 205), 6),
    "couch and sheet": (lambda x, y, _: (abs(y - BACK + 30) < 20) & (abs(x) < 205) & (abs(y - BACK + 15) > 6), 6),
    "an arm beside the body": (lambda x, y, _: (x - 150) ** 2 + y**2 < 30**2, 2),
    "arms up on both sides": (lambda x, y, z: ((abs(x) - 150) ** 2 + (y - 20) ** 2 < 35**2) & (z > 20), 2),
    "a head rest": (lambda x, y, z: (abs(y - BACK + 45) < 20) & (abs(x) < 90) & (z > 20), 2),
    "a calibration phantom below": (lambda x, y, _: (x**2 / 120**2 + (y - BACK + 45) ** 2 / 20**2) < 1, 2),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_what_lies_beside_the_patient_does_not_move_the_centre(tmp_path, lying, write_nifti, name):
    where, most_mm = OBJECTS[name]
    bare = preprocess_ct(write_nifti(tmp_path / "bare.nii", *lying()), SPEC)
    beside = preprocess_ct(write_nifti(tmp_path / "beside.nii", *lying(where)), SPEC)
    np.testing.assert_allclose(beside.affine[:3, 3], bare.affine[:3, 3], atol=most_mm)


def trunk(lungs: bool = True) -> np.ndarray:
    """Cells of a body 24 wide and 16 deep with two lungs."""
    _, h, w = np.indices(CELLS)
    body = ((w - 19.5) / 12) ** 2 + ((h - 15.5) / 8) ** 2 < 1
    for side in (-1, 1):
        body &= ~((((w - 19.5 - 6 * side) / 4) ** 2 + ((h - 15.5) / 5) ** 2 < 1) & lungs)
    return body


def test_a_body_alone_stays_as_it_is():
    for body in (trunk(), trunk(lungs=False), trunk()[:, 8:24, 10:30], trunk()[:, 10:22, 14:26], trunk()[:, :, 20:]):
        np.testing.assert_array_equal(body_cells(body), body)


def test_a_trunk_cut_into_pieces_by_its_lungs_keeps_them():
    """A narrow field of view: chest walls left and right, the mediastinum between, lungs up to the border."""
    cells = np.zeros(CELLS, bool)
    cells[:, :, :4] = cells[:, :, 16:24] = cells[:, :, 36:] = True
    np.testing.assert_array_equal(body_cells(cells), cells)


def test_a_couch_is_cut_off_and_the_body_above_it_is_not():
    body = trunk()
    for low in (5, 6, 7):  # the body's lowest row is 8
        cells = body.copy()
        cells[:, low - 1 : low + 1] = True
        np.testing.assert_array_equal(body_cells(cells), body)
        np.testing.assert_array_equal(body_cells(cells[:, ::-1])[:, ::-1], body)


def test_nothing_and_everything():
    for cells in (np.zeros(CELLS, bool), np.ones(CELLS, bool), np.ones((1, 1, 1), bool)):
        np.testing.assert_array_equal(body_cells(cells), cells)
