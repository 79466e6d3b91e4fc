"""`ttepretrain doctor`: every scan is counted once with its reason or its measures, and nothing names a patient."""

import gzip
import json
import shutil

import numpy as np
import pytest

from data.testing import chest, write_dicom, write_nifti
from ttepretrain.commands import doctor
from ttepretrain.commands.main import run
from ttepretrain.commands.montage import Montage
from ttepretrain.errors import BadDataError, ConfigError, ExitCode
from ttepretrain.volume import preprocess
from ttepretrain.volume.preprocess import preprocess_ct
from ttepretrain.volume.spec import PRESETS

CANARY = "CANARY7731"
SPACING_MM = (9.5, 9.0, 8.5)
SMALL = PRESETS["small"]


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """In sorted order: 0 good NIfTI, 1 cut short, 2 the first again, uncompressed, 3 no scan at all, 4 a DICOM series
    of a named patient, 5 the same with a hole."""
    folder = tmp_path_factory.mktemp(CANARY)
    write_nifti(folder / "a.nii.gz", chest(1), SPACING_MM)
    (folder / f"b{CANARY}.nii.gz").write_bytes((folder / "a.nii.gz").read_bytes()[:-20])
    (folder / "c.nii").write_bytes(gzip.decompress((folder / "a.nii.gz").read_bytes()))
    (folder / "d.nii.gz").write_text(CANARY)
    for name in ("e", f"f{CANARY}"):
        write_dicom(folder / name, chest(5), SPACING_MM, patient=CANARY)
    (folder / f"f{CANARY}" / "006.dcm").unlink()
    return folder


@pytest.fixture(scope="module")
def told(archive, tmp_path_factory):
    """Standard output, JSON document and folder of one pass."""
    out = tmp_path_factory.mktemp("out")
    capture = pytest.MonkeyPatch()
    lines = []
    capture.setattr("builtins.print", lambda *words, **_: lines.append(" ".join(map(str, words))))
    run(["doctor", str(archive), "--preset", "small", "--json", f"{out}/d.json", "--montage", f"{out}/m.png"])
    capture.undo()
    return "\n".join(lines), json.loads((out / "d.json").read_text()), out


def test_reasons_and_flags_are_counted_and_placed(told):
    text, document, _ = told
    assert (document["scans"], document["usable"]) == (6, 3)
    assert sum(document["reasons"].values()) == 3
    assert document["reasons"]["MISSING_SLICE"] == 1
    assert document["flags"] == {"DUPLICATE_CONTENT": 2}
    findings = document["findings"]
    assert [finding["position"] for finding in findings] == list(range(6))
    assert [finding["code"] is None for finding in findings] == [True, False, True, False, True, False]
    assert [n for n in range(6) if "DUPLICATE_CONTENT" in findings[n]["flags"]] == [0, 2]
    assert document["without_checksum"] == 1
    for part in ("6 scans, 3 of them usable", "1  MISSING_SLICE", "2  DUPLICATE_CONTENT", "1 scans are uncompressed"):
        assert part in text


def test_geometry_is_the_scans_own_and_hu_that_of_the_network(told, archive):
    quantities = told[1]["findings"][0]["quantities"]
    assert [quantities[f"spacing_{axis}_mm"] for axis in "DHW"] == list(SPACING_MM)
    assert [quantities[f"size_{axis}"] for axis in "DHW"] == [14, 30, 36]
    assert quantities["extent_D_mm"] == 14 * 9.5
    hu_DHW = preprocess_ct(archive / "a.nii.gz", SMALL).hu_DHW
    assert quantities["hu_p50"] == np.median(hu_DHW[::2, ::2, ::2])
    assert told[1]["summary"]["size_W"] == {"lowest": 36.0, "median": 36.0, "highest": 36.0}
    assert told[1]["acquisition"]["kvp"] == {"None": 2, "120.0": 1}


def test_nothing_that_is_written_or_printed_names_a_patient_or_a_file(told):
    text, _, out = told
    for written in (text.encode(), *(path.read_bytes() for path in out.iterdir())):
        assert CANARY.encode() not in written
        assert b".nii" not in written


def test_the_montage_is_a_picture_of_the_usable_scans(told):
    from matplotlib.image import imread

    assert "3 scans are in m.png" in told[0]
    picture = imread(told[2] / "m.png")
    # three rows, each with something bright and something dark in it
    for row in np.array_split(picture[40:, 40:, 0], 3):
        assert row.min() < 0.1
        assert row.max() > 0.9


def body(spec, width_mm) -> np.ndarray:
    """Soft tissue 150 mm deep, of this width, in air."""
    hu_DHW = np.full(spec.shape_DHW, -1000, np.int16)
    half = round(width_mm / spec.spacing_mm[2] / 2)
    middle = spec.shape_DHW[2] // 2
    hu_DHW[:, 15:40, middle - half : middle + half] = 40
    return hu_DHW


def test_planes_are_shown_head_up_and_the_patients_right_on_the_left():
    hu_DHW = body(SMALL, 300)
    d, h, w = (size // 2 for size in SMALL.shape_DHW)
    hu_DHW[d, -1, -1] = 3000  # front, right
    hu_DHW[-1, h, -1] = 2000  # head, right
    hu_DHW[-1, -1, w] = 1000  # head, front
    montage = Montage(SMALL, num_scans=1, shown=1)
    montage.add(0, hu_DHW)
    axial, coronal, sagittal = montage.planes[0]
    assert (axial[0, 0], coronal[0, 0], sagittal[0, 0]) == (3000, 2000, 1000)


def test_a_body_no_wider_than_a_head_is_not_pictured(tmp_path):
    montage = Montage(SMALL, num_scans=1, shown=1)
    montage.add(0, body(SMALL, 180))
    assert montage.save(tmp_path / "m.png") == "no montage: no scan to show; 1 no wider than a head left out"
    assert not list(tmp_path.iterdir())


def test_scans_are_spread_evenly_and_a_refused_ones_turn_passes_on():
    montage = Montage(SMALL, num_scans=10, shown=3)  # due at 0, 3, 6
    for position in (0, 1, 2, 5, 6, 7):  # 3, 4, 8 and 9 are refused
        montage.add(position, body(SMALL, 300))
    assert list(montage.planes) == [0, 5, 6]


def test_more_bad_scans_than_prepare_would_accept_end_with_3_after_everything_is_written(archive, tmp_path):
    for name in ("b.nii.gz", "c.nii.gz"):
        (tmp_path / name).write_bytes(b"no scan")
    shutil.copy(archive / "a.nii.gz", tmp_path)
    with pytest.raises(BadDataError, match=r"2 of 3 scans cannot be used; jobs\.prepare would accept 1\.5") as raised:
        run(["doctor", str(tmp_path), "--preset", "small", "--json", f"{tmp_path}/d.json"])
    assert raised.value.exit_code == ExitCode.BAD_DATA
    assert json.loads((tmp_path / "d.json").read_text())["reasons"] == {"NOT_NIFTI": 2}


def test_an_exception_nobody_foresaw_costs_one_scan_and_tells_no_message(archive, monkeypatch):
    good = preprocess_ct(archive / "a.nii.gz", SMALL)

    def read(path, _):
        if path.name == "a.nii.gz":
            raise ZeroDivisionError(f"{CANARY} in {path}")
        if path.name == "c.nii":
            raise OSError(5, "Input/output error", CANARY)
        return good

    monkeypatch.setattr(preprocess, "preprocess_ct", read)
    scans = doctor.find_scans([archive])
    first, *_ = findings = doctor.examine(scans, SMALL)
    assert (first.code, first.detail.split(":")[0]) == ("UNEXPECTED", "ZeroDivisionError in test_doctor.py")
    assert (findings[2].code, findings[2].detail) == ("UNREADABLE", "Input/output error")
    assert sum(finding.code is None for finding in findings) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--preset", "smal"], "volume.preset must be one of .*; did you mean 'small'"),
        (["--json", "/nowhere/d.json"], "--json: the folder /nowhere does not exist"),
        (["--montage", "/nowhere/m.png"], "--montage: the folder /nowhere does not exist"),
        (["--preset", "reference", "--montage", "m.png"], "--montage: a preset that stretches scans"),
        (["--montage-scans", "0"], "--montage-scans must be at least 1; got 0"),
    ],
)
def test_a_wrong_option_is_answered_before_any_scan_is_read(archive, options, message):
    with pytest.raises(ConfigError, match=message):
        run(["doctor", str(archive), *options])
