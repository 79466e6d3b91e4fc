"""Compressed pixels are decoded by a child that may crash, hang or swell without harm to us (faults B2, B3, B17)."""

import os
import signal
import subprocess
import sys
import time
import zlib

import numpy as np
import pydicom
import pytest
from pydicom.dataelem import RawDataElement
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, RLELossless

from ttepretrain.errors import BadStudy
from ttepretrain.volume.checks import Reason
from ttepretrain.volume.dicom.coding import decoder
from ttepretrain.volume.dicom.coding.decoder_child import CodedFile
from ttepretrain.volume.dicom.reader import read_dicom

# What a hostile file makes of a decoder, put in the decoder's place in the child.
CHILD = "ttepretrain.volume.dicom.coding.decoder_child"
BROKEN = f"import {CHILD} as decode, itertools, os, time, ctypes; sound = decode._decoded; "
FAULTS = {
    "segfault": "decode._decoded = lambda handle, coded: ctypes.string_at(0)",
    "abort": "decode._decoded = lambda handle, coded: os.abort()",
    "loop": "decode.CPU_SECONDS_PER_PICTURE = .3; decode._decoded = lambda handle, coded: any(itertools.repeat(0))",
    "impatient": "decode.SECONDS_PER_PICTURE = .5",
    "hang": "decode.SECONDS_PER_PICTURE = .3; decode._decoded = lambda handle, coded: time.sleep(1000)",
    "slow": "decode.CPU_SECONDS_PER_PICTURE = .3; decode._decoded = lambda h, c: (time.sleep(.4), sound(h, c))[1]",
    "memory": "decode._decoded = lambda handle, coded: bytearray(3 << 30)",
    "no codecs": "decode.DECODERS = dict.fromkeys(decode.DECODERS, ())",
}


@pytest.fixture
def rle(tmp_path, chest, write_series):
    for file in write_series(tmp_path / "scan", *chest):
        dataset = pydicom.dcmread(file)
        dataset.compress(RLELossless, generate_instance_uid=False)
        dataset.save_as(file)
    return tmp_path / "scan"


@pytest.fixture
def broken(monkeypatch):
    """Children started from now on have the named fault; those of other tests are kept for later."""
    monkeypatch.setattr(decoder, "_idle", {})

    def start(name):
        start = decoder.START.replace("serve()", "")
        monkeypatch.setattr(decoder, "START", start + BROKEN + FAULTS[name] + "\nserve()")

    yield start
    decoder._stop_idle()


def children() -> list[int]:
    return [child.pid for child in decoder._idle.get(os.getpid(), [])]


def reason_of(path) -> Reason:
    with pytest.raises(BadStudy) as refusal:
        read_dicom(path)
    return refusal.value.code


def test_one_child_serves_study_after_study(rle, chest):
    np.testing.assert_array_equal(read_dicom(rle).hu_DHW, chest[0])
    first = children()
    for _ in range(3):
        np.testing.assert_array_equal(read_dicom(rle).hu_DHW, chest[0])
    assert children() == first
    assert len(first) == 1


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("segfault", "died of it (status -11), 3 times"),
        ("abort", "died of it (status -6), 3 times"),
        ("loop", "a picture took more than 30 s of the processor to decode"),  # not tried again
        ("hang", "a picture took more than 300 s to decode"),
        ("memory", "takes more than 1024 MB"),
    ],
)
def test_a_decoder_that_goes_wrong_refuses_the_study_and_no_other(rle, chest, broken, monkeypatch, capfd, fault, cause):
    """B3: the parent continues, with another child for another study."""
    working = decoder.START
    broken(fault)
    start = time.monotonic()
    with pytest.raises(BadStudy) as refusal:
        read_dicom(rle)
    assert (refusal.value.code, refusal.value.detail[-len(cause) :]) == (Reason.DECODER, cause)
    assert time.monotonic() - start < 120
    monkeypatch.setattr(decoder, "START", working)
    decoder._stop_idle()
    np.testing.assert_array_equal(read_dicom(rle).hu_DHW, chest[0])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("deaths", [2, 3])
def test_a_study_is_refused_after_three_deaths_and_not_before(rle, chest, broken, monkeypatch, tmp_path, deaths):
    """B3. Each death is after another picture: those that came before it are not given twice."""
    tally = tmp_path / "deaths"
    tally.mkdir()
    fatal = (
        "def fatal(handle, coded):\n"
        f"  n = len(os.listdir({str(tally)!r}))\n"
        f"  if n < {deaths} and coded.file.endswith(f'{{2 * n + 1:03}}.dcm'):\n"
        f"    os.mkdir({str(tally)!r} + f'/{{n}}'); os.abort()\n"
        "  return sound(handle, coded)\n"
    )
    monkeypatch.setitem(FAULTS, "fatal", f"exec({fatal!r}); decode._decoded = fatal")
    broken("fatal")
    if deaths == decoder.MAX_DEATHS:
        assert reason_of(rle) == Reason.DECODER
    else:
        np.testing.assert_array_equal(read_dicom(rle).hu_DHW, chest[0])
    assert len(list(tally.iterdir())) == deaths


@pytest.mark.parametrize("fault", ["loop", "hang"])
def test_a_decoder_that_takes_too_long_is_not_asked_again(rle, broken, monkeypatch, tmp_path, fault):
    """Another child would take as long: 300 s for what hangs."""
    monkeypatch.setitem(FAULTS, fault, f"open({str(tmp_path / 'started')!r}, 'a').write('x'); {FAULTS[fault]}")
    broken(fault)
    assert reason_of(rle) == Reason.DECODER
    assert (tmp_path / "started").read_text() == "x"


def test_a_sound_picture_that_waits_for_the_processor_is_read(rle, chest, broken):
    """An overloaded machine: each picture takes longer than its limit on the wall's clock, hardly any of the CPU."""
    for file in sorted(rle.iterdir())[4:]:
        file.unlink()
    broken("slow")
    start = time.monotonic()
    np.testing.assert_array_equal(read_dicom(rle).hu_DHW, chest[0][:4])
    assert time.monotonic() - start > 4 * 0.4


def test_without_its_decoder_the_extra_is_named(rle, broken):
    broken("no codecs")
    with pytest.raises(BadStudy, match=r"UNSUPPORTED_SYNTAX.*ttepretrain\[codecs\]"):
        read_dicom(rle)


def test_names_of_any_bytes_reach_the_child(rle, chest):
    """A16: 255 bytes, of no encoding, with a newline and a leading dash."""
    odd = rle.with_name(os.fsdecode(b"-\xff\n$HOME \xe9 " + b"x" * 200))
    rle.rename(odd)
    file = min(odd.iterdir())
    file.rename(file.with_name(os.fsdecode(b"-rf \xfe" + b"y" * 250)))
    np.testing.assert_array_equal(read_dicom(odd).hu_DHW, chest[0])


def test_a_child_that_was_killed_is_replaced(rle, chest):
    read_dicom(rle)
    (pid,) = children()
    os.kill(pid, 9)
    np.testing.assert_array_equal(read_dicom(rle).hu_DHW, chest[0])
    assert children() != [pid]


def test_a_damaged_slice_ends_neither_the_child_nor_its_order(rle, chest):
    read_dicom(rle)
    before = children()
    file = sorted(rle.iterdir())[5]
    whole = file.read_bytes()
    file.write_bytes(whole[:-900])
    assert reason_of(rle) in (Reason.UNREADABLE, Reason.TRUNCATED)
    file.write_bytes(whole)
    np.testing.assert_array_equal(read_dicom(rle).hu_DHW, chest[0])
    assert children() == before


def test_a_refusal_stops_the_clock(rle, chest, broken):
    """A child that waits for the next study longer than a picture may take is there when it comes."""
    broken("impatient")
    file = sorted(rle.iterdir())[5]
    whole = file.read_bytes()
    file.write_bytes(whole[:-900])
    assert reason_of(rle) in (Reason.UNREADABLE, Reason.TRUNCATED)
    before = children()
    time.sleep(0.7)
    file.write_bytes(whole)
    np.testing.assert_array_equal(read_dicom(rle).hu_DHW, chest[0])
    assert children() == before


def test_a_failure_of_the_file_system_is_the_parents_own(rle, chest):
    """Not a refusal of the study: it may pass, and trying again is the caller's business."""
    read_dicom(rle)
    before = children()
    gone = CodedFile(
        str(rle / "gone"), RLELossless, at=0, skip=0, frames=1, rows=3, columns=3, bits_stored=16, signed=0
    )
    with pytest.raises(FileNotFoundError):
        list(decoder.decoded([gone]))
    np.testing.assert_array_equal(read_dicom(rle).hu_DHW, chest[0])
    assert children() == before


def test_a_child_outlives_the_signals_of_a_group(rle, chest):
    read_dicom(rle)
    (pid,) = children()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(pid, number)
    np.testing.assert_array_equal(read_dicom(rle).hu_DHW, chest[0])
    assert children() == [pid]


def test_a_study_given_up_midway_leaves_nothing_in_the_pipe(rle, chest):
    """Two pictures at one position are found while frames still come; the next study gets its own."""
    dataset = pydicom.dcmread(sorted(rle.iterdir())[0])
    dataset.ImagePositionPatient = pydicom.dcmread(sorted(rle.iterdir())[1]).ImagePositionPatient
    dataset.save_as(rle / "0_copy")
    assert reason_of(rle) == Reason.DUPLICATE_SLICE
    (rle / "0_copy").unlink()
    np.testing.assert_array_equal(read_dicom(rle).hu_DHW, chest[0])


def test_the_child_ends_with_its_parent(rle, repository):
    """Also when the parent is killed and can say no more."""
    code = (
        "import sys, os, signal; from pathlib import Path; from ttepretrain.volume.dicom import reader;"
        "from ttepretrain.volume.dicom.coding import decoder;"
        "reader.read_dicom(Path(sys.argv[1])); (child,) = decoder._idle[os.getpid()];"
        "print(child.pid, 'torch' in sys.modules, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(rle)], cwd=repository, capture_output=True, text=True, check=False
    )
    pid, torch_imported = run.stdout.split()
    assert torch_imported == "False"
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:  # noqa: PTH110
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{pid}")  # noqa: PTH110


# -- deflated files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signed", [0, 1])
def test_deflated_files_are_read(tmp_path, chest, write_series, signed):
    def store(d, dataset):
        if signed:
            dataset.PixelRepresentation, dataset.RescaleIntercept = 1, 0
            dataset.PixelData = chest[0][d].tobytes()

    write_series(tmp_path / "scan", *chest, edit=store, syntax=DeflatedExplicitVRLittleEndian)
    image = read_dicom(tmp_path / "scan")
    np.testing.assert_array_equal(image.hu_DHW, chest[0])
    np.testing.assert_allclose(image.affine, chest[1], atol=1e-6)


def test_a_cut_deflated_file_is_truncated(tmp_path, chest, write_series):
    files = write_series(tmp_path / "scan", *chest, syntax=DeflatedExplicitVRLittleEndian)
    files[4].write_bytes(files[4].read_bytes()[:-40])
    assert reason_of(tmp_path / "scan") == Reason.TRUNCATED


def test_a_deflated_bomb_takes_no_memory(tmp_path, chest, write_series):
    """200 MB of zeros before the pixels, or behind them, in 200 kB: B2."""
    files = write_series(tmp_path / "scan", *chest)
    plain = files[4].read_bytes()
    group_length = int.from_bytes(plain[140:144], "little")
    at = 144 + group_length
    meta, body = plain[:at].replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99"), plain[at:]
    meta = meta[:140] + (group_length + 2).to_bytes(4, "little") + meta[144:]
    meta = meta.replace(b"UI\x14\x001.2.840.10008.1.2.1.99", b"UI\x16\x001.2.840.10008.1.2.1.99")
    zeros = 200 << 20
    private = b"\x09\x00\x10\x10OB\0\0" + zeros.to_bytes(4, "little")
    identifying = body.index(b"\x10\x00\x10\x00")  # elements ascend: group 9 comes before the patient's name
    deflate = zlib.compressobj(9, wbits=-15)
    before = deflate.compress(body[:identifying] + private)
    for _ in range(200):
        before += deflate.compress(bytes(1 << 20))
    before += deflate.compress(body[identifying:]) + deflate.flush()
    deflate = zlib.compressobj(9, wbits=-15)
    behind = deflate.compress(body)
    for _ in range(200):
        behind += deflate.compress(bytes(1 << 20))
    behind += deflate.flush()

    held = peak_rss()
    files[4].write_bytes(meta + before)
    assert reason_of(tmp_path / "scan") == Reason.TRUNCATED
    files[4].write_bytes(meta + behind)
    np.testing.assert_array_equal(read_dicom(tmp_path / "scan").hu_DHW, chest[0])
    assert peak_rss() - held < 100 << 20


def peak_rss() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def test_an_element_longer_than_any_header_is_not_kept(tmp_path, chest, write_series):
    def long_text(d, dataset):
        if d == 4:
            tag = pydicom.tag.Tag("ConvolutionKernel")
            text = b"x" * (20 << 20)
            dataset._dict[tag] = RawDataElement(tag, "UT", len(text), text, 0, False, True, True)

    write_series(tmp_path / "scan", *chest, edit=long_text, syntax=ExplicitVRLittleEndian)
    assert reason_of(tmp_path / "scan") in (Reason.UNREADABLE, Reason.TRUNCATED)
