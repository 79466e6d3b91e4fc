"""Size and disorder: ten thousand files, a patient of two million rows, rows in any order. The labels do not notice."""

import json
import random
import re
import resource
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from ehr.build import build_labels
from ehr.config import EhrConfig
from ehr.passes.cells import Cells, code_type
from ehr.passes.scratch import read_stash, write_stash
from ehr.passes.survey import file_groups
from ehr.sources.meds import MedsSource
from ttepretrain.errors import IntegrityError, ResourceError

T0 = datetime(2150, 6, 1, 12)
DAY = timedelta(days=1)
ROWS = [(1, T0 - 9 * DAY, "X/A"), (1, T0 + 10 * DAY, "X/A"), (1, T0 + 40 * DAY, "X/B"), (2, None, "GENDER//F")]
ROWS += [(2, T0 + 20 * DAY, "X/B"), (3, T0 + 30 * DAY, "X/A"), (4, T0 + 12 * DAY, "X/C")]


@pytest.fixture
def studies(meds):
    return meds.studies([(s, T0, "train") for s in (1, 2, 3, 4)])


@pytest.mark.parametrize(
    ("files", "counted"),
    {
        "in order": ([ROWS], (0, 0, 0)),
        "by time alone": ([sorted(ROWS, key=lambda row: row[1] or T0 - 99 * DAY)], (1, 0, 0)),
        "backwards within a subject": ([[ROWS[1], ROWS[0], *ROWS[2:]]], (1, 0, 0)),
        "a subject in two runs": ([[*ROWS[1:], ROWS[0]]], (1, 0, 0)),
        "two subjects in two files": ([ROWS[::2], ROWS[1::2]], (0, 2, 0)),
        "static behind timed": ([[*ROWS[:3], ROWS[4], ROWS[3], *ROWS[5:]]], (1, 0, 0)),
        "rows twice": ([[row for row in ROWS for _ in range(2)]], (0, 0, 7)),
    }.values(),
    ids=["ordered", "by-time", "backwards", "two-runs", "two-files", "static", "twice"],
)
def test_disorder_is_counted_and_changes_nothing(tmp_path, meds, label, studies, files, counted):
    base = label(meds.write(tmp_path / "base", [ROWS]), studies)
    result = label(meds.write(tmp_path / "ehr", files), studies)
    events = result.counts["events"]
    assert (events["unsorted_files"], events["split_subjects"], events["repeated_rows"]) == counted
    assert meds.same(result, base)


def test_order_is_judged_across_the_pieces_of_a_file(tmp_path, meds, label, studies, monkeypatch):
    """Pieces of two rows: a subject that goes on in the next piece is in order, one that comes back is not."""
    monkeypatch.setattr("ehr.sources.meds.BATCH_ROWS", 2)
    base = label(meds.write(tmp_path / "base", [ROWS]), studies)
    assert base.counts["events"]["unsorted_files"] == 0
    result = label(meds.write(tmp_path / "ehr", [[*ROWS[1:], ROWS[0]]]), studies)
    assert result.counts["events"]["unsorted_files"] == 1
    assert meds.same(result, base)


def test_how_a_file_is_cut_into_row_groups_changes_nothing(tmp_path, meds, label):
    """Each row group has its own dictionary of codes."""
    rows, studies, parents = meds.random(7)
    folder = meds.write(tmp_path / "ehr", [rows], parents)
    base, path = label(folder, studies), folder / "data" / "0.parquet"
    for size in (1, 17):
        parquet.write_table(parquet.read_table(path), path, row_group_size=size)
        assert meds.same(label(folder, studies), base)


def test_a_thousand_small_files_need_few_open_files(tmp_path, meds, label):
    """At most 60 more than now may be open; small files are surveyed together, larger ones alone."""
    rows, studies, parents = meds.random(8, num_subjects=40)
    random.Random(0).shuffle(rows)
    base = label(meds.write(tmp_path / "one", [rows], parents), studies)
    folder = meds.write(tmp_path / "many", [rows[i::1000] for i in range(1000)], parents)
    assert len(file_groups(MedsSource(folder))) == 1
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 60, limits[1]))
    try:
        result = label(folder, studies)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert result.counts["shards"] == 1
    assert meds.same(result, base)


@pytest.mark.parametrize(
    ("together", "per_item", "items"),
    [(1 << 20, 1 << 20, [[3]]), (1, 1 << 20, [[1, 1, 1]]), (1, 1, [[1], [1], [1]])],
    ids=["one spool", "a spool each", "a Ray task each"],
)
def test_labels_are_the_same_however_files_are_surveyed(
    tmp_path, meds, label, studies, monkeypatch, together, per_item, items
):
    folder = meds.write(tmp_path / "ehr", [ROWS[i::3] for i in range(3)])
    expected = label(folder, studies)
    monkeypatch.setattr("ehr.passes.survey.BYTES_TOGETHER", together)
    monkeypatch.setattr("ehr.passes.survey.BYTES_PER_ITEM", per_item)
    assert [[len(group) for group in item] for item in file_groups(MedsSource(folder))] == items
    assert meds.same(label(folder, studies), expected)


@pytest.mark.parametrize("most", [0, 3], ids=["from the start", "in the middle of a spool"])
def test_labels_are_the_same_when_there_are_more_codes_than_two_bytes_hold(
    tmp_path, meds, label, studies, monkeypatch, most
):
    folder = meds.write(tmp_path / "ehr", [ROWS[i::3] for i in range(3)])
    expected = label(folder, studies)
    for module in ("ehr.passes.loops", "ehr.passes.scratch"):
        monkeypatch.setattr(f"{module}.code_type", lambda num_codes: np.uint16 if num_codes <= most else np.int32)
    assert meds.same(label(folder, studies), expected)


def test_codes_take_two_bytes_as_long_as_they_fit():
    assert [code_type(num_codes) for num_codes in (0, 65_536, 65_537)] == [np.uint16, np.uint16, np.int32]


@pytest.mark.parametrize("part", ["cell_count", "cell_timed", "cell_code", "cell_state", "cell_days"])
def test_scratch_that_changed_between_the_passes_is_noticed(tmp_path, part):
    counts = np.array([2, 1]), np.array([1, 1])
    cells = Cells(*counts, np.arange(3, dtype=np.uint16), np.full(3, 17, np.uint8), np.ones(2))
    write_stash(tmp_path, 0, cells)
    assert all(map(np.array_equal, read_stash(tmp_path, 0, 3), cells))
    path = tmp_path / f".0.{part}.tmp"
    path.write_bytes(path.read_bytes()[: -cells._asdict()[part.removeprefix("cell_")].itemsize])
    with pytest.raises(IntegrityError, match="scratch files changed"):
        read_stash(tmp_path, 0, 3)


def test_labels_are_the_same_however_many_rows_are_made_together(tmp_path, meds, label, studies, monkeypatch):
    folder = meds.write(tmp_path / "ehr", [ROWS])
    expected = label(folder, studies)
    monkeypatch.setattr("ehr.labels.ROWS_TOGETHER", 1)
    monkeypatch.setattr("ehr.choice.bins.STEP", 1)
    assert meds.same(label(folder, studies), expected)


def test_every_flipped_bit_in_a_page_with_a_checksum_stops_the_run(tmp_path, meds, label, studies):
    folder = meds.write(tmp_path / "ehr", [ROWS * 300])
    path, rng = folder / "data" / "0.parquet", random.Random(1)
    parquet.write_table(parquet.read_table(path), path, write_page_checksum=True, compression="none")
    content = path.read_bytes()
    column = parquet.read_metadata(path).row_group(0).column(2)  # code
    begin = column.dictionary_page_offset + 40  # behind the header of the page
    for _ in range(20):
        spoilt = bytearray(content)
        spoilt[rng.randrange(begin, begin + 12)] ^= 1 << rng.randrange(8)
        path.write_bytes(spoilt)
        with pytest.raises(IntegrityError, match=r"data/0\.parquet"):
            label(folder, studies)


def test_tasks_without_train_events_or_without_contrast_go_and_all_in_one_bin_is_finite(tmp_path, meds, label):
    """X/tuning happens to nobody in train; X/all to everybody, always on day 9; X/half to half of them on day 9."""
    rows = [(s, T0 + 9 * DAY, "X/all") for s in range(1, 9)] + [(s, T0 + 9 * DAY, "X/half") for s in range(1, 5)]
    rows += [(9, T0 + 9 * DAY, "X/tuning")] + [(s, T0 + 90 * DAY, "X/all") for s in range(1, 10)]
    studies = meds.studies([(s, T0, "train") for s in range(1, 9)] + [(9, T0, "tuning")])
    result = label(meds.write(tmp_path / "ehr", [rows]), studies, {"death": {"codes": ["MEDS_DEATH"]}})
    assert result.tasks.codes == ("X/half",)
    assert result.counts["tasks"]["no_information"] == 1
    assert result.tasks.bin_edges_days == (0.0, 9.0, np.inf)
    assert result.tasks.tasks[0].rate_per_day == pytest.approx(4 / (4 * 8 + 4 * 89))


def test_a_full_disk_is_declared_whichever_scratch_file_meets_it(tmp_path, meds, label, studies, full_disk):
    """The files have some hundred bytes to some thousand each; from some size on there is room for all."""
    folder = meds.write(tmp_path / "ehr", [ROWS * 300])
    label(folder, studies)  # writes the phenotypes
    config = EhrConfig(min_events=1, min_patients=1, phenotypes=str(tmp_path / "phenotypes.yaml"))
    size, told = 16, []
    while True:
        full_disk(size)
        try:
            build_labels(folder, None, studies, config, lambda f, xs: [f(x) for x in xs], {"hash": "", "count": 0})
            break
        except ResourceError as error:
            size = size * 4
            told.append(str(error))
    assert len(told) > 2
    message = r"disk full \(\d+ MiB free\) while writing the label stage's scratch files; .*"
    assert all(re.fullmatch(message, text) for text in told)


LARGE = """
import json, sys
from pathlib import Path
import polars as pl
from ehr.build import build_labels
from ehr.passes.cells import Cells, code_type
from ehr.config import EhrConfig
folder, phenotypes = sys.argv[1:]
studies = pl.read_parquet(folder + "/studies.parquet")
# ru_maxrss would hold that of the parent
peak_kib = lambda: int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
before = peak_kib()
config = EhrConfig(min_events=1, min_patients=1, phenotypes=phenotypes)
result = build_labels(folder, None, studies, config, lambda f, xs: [f(x) for x in xs], {"hash": "", "count": 0})
peak_mib = peak_kib() - before >> 10
print(json.dumps({"peak_mib": peak_mib, "labels": len(result.labels), "rows": result.counts["events"]["rows"]}))
"""


def test_a_patient_of_two_million_rows_and_thirteen_scans_fits_into_half_a_gigabyte(tmp_path, repository):
    """26 million pairs of event and scan; no table of them ever exists. Half a gigabyte beyond the libraries.

    Subject 8 has a scan and one event, so that the codes of subject 7 can be tasks.
    """
    rng = np.random.default_rng(0)
    codes = [f"V/{k:05}" for k in range(3000)]
    first, count = np.datetime64(T0, "us"), 2_000_000
    time = np.sort(first + rng.integers(0, 3650 * 86_400_000_000, count))
    code = pa.DictionaryArray.from_arrays(pa.array(rng.integers(0, 3000, count, dtype=np.int32)), codes)
    table = pa.table({"subject_id": np.append(np.full(count - 1, 7), 8), "time": time, "code": code})
    (tmp_path / "ehr" / "data").mkdir(parents=True)
    parquet.write_table(table, tmp_path / "ehr" / "data" / "0.parquet")
    scans = {"study_id": [f"s{k:02}" for k in range(14)], "subject_id": [7] * 13 + [8]}
    pl.DataFrame(scans | {"study_time": [T0 + 200 * (k % 13) * DAY for k in range(14)]}).with_columns(
        date_only=False, split=pl.lit("train"), study_time=pl.col("study_time").cast(pl.Datetime("us"))
    ).write_parquet(tmp_path / "ehr" / "studies.parquet")
    phenotypes = tmp_path / "phenotypes.yaml"
    phenotypes.write_text("phenotypes: {one: {codes: [V/00001]}}\n")
    arguments = [sys.executable, "-c", LARGE, str(tmp_path / "ehr"), str(phenotypes)]
    done = subprocess.run(arguments, cwd=repository, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["labels"], result["rows"]) == (14, count)
    assert result["peak_mib"] < 512
