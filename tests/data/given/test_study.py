"""An image lies below the folder of the table that names it; studies travel as objects with names."""

import pickle

import pytest

from data.given.study import Study, resolve_image
from ttepretrain.errors import BadStudy


@pytest.mark.parametrize(
    "image",
    ["../x.nii.gz", "a/../../x", "/etc/passwd", "~/x.nii", "~root/x", "$HOME/x", "a/${HOME}/x", "file:///etc/passwd",
     "http://host/x.nii.gz", "a\0b.nii.gz", "", "out/secret.nii.gz", "out"],
)  # fmt: skip
def test_an_image_never_leads_out_of_the_tables_folder(tmp_path, image):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret.nii.gz").touch()
    root = tmp_path / "root"
    root.mkdir()
    (root / "out").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadStudy, match="OUTSIDE_ROOT"):
        resolve_image(root, image)


@pytest.mark.parametrize("image", ["a/x.nii.gz", "inside/x.nii.gz", "-rf.nii", "a b\nc.nii", "x..y.nii", "é" * 100])
def test_an_image_below_the_tables_folder_is_found_whatever_its_name(tmp_path, image):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "link").symlink_to(root)
    (root / "a").mkdir()
    (root / "inside").symlink_to(root / "a")
    for top in (root, tmp_path / "link"):
        assert resolve_image(top, image).parent.samefile((root / image).parent)


def test_a_study_travels_to_workers():
    study = Study("s", "images/s", series_uid="1.2.3", patient_id="p", image_sha256="ab")
    assert pickle.loads(pickle.dumps(study)) == study
