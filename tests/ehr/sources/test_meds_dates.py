"""MEDS times that are dates without a time of day, and dates that stand for none."""

from datetime import datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from ehr.sources.meds import MedsSource
from ehr.timeline import NEVER

SCAN = datetime(2020, 6, 1, 12)
DAY = timedelta(days=1)
LAST_SECOND = [
    datetime.min.time().replace(hour=23, minute=59, second=59, microsecond=us) for us in (0, 999_000, 999_999)
]
ENDS = [datetime.min.time().replace(hour=23, minute=59), *LAST_SECOND]
ENDS_OF_DAYS = pytest.mark.parametrize("end", ENDS, ids=str)


def on(day: datetime, clock) -> datetime:
    return datetime.combine(day.date(), clock)


def rows_with(code: str, time: datetime) -> list[tuple]:
    """Subject 1 has the event; subject 2 makes its code a task; all three are followed for 99 days."""
    return [(1, time, code), (2, SCAN + 50 * DAY, code), *((s, SCAN + 99 * DAY, "X/end") for s in (1, 2, 3))]


@pytest.fixture
def labelled(tmp_path, meds, label):
    """Function: (rows, **config) -> result, with scans of subjects 1 to 3 at noon and no blackout."""

    def run(rows: list[tuple], **config):
        folder = meds.write(tmp_path / f"ehr{len(list(tmp_path.iterdir()))}", [rows])
        studies = meds.studies([(s, SCAN, "train") for s in (1, 2, 3)])
        return label(folder, studies, {"dead": {"codes": ["MEDS_DEATH"]}}, blackout_days=0.0, **config)

    return run


def first_row(result, code: str) -> tuple[dict, list[int], list[str]]:
    """Events by code, history and past codes of the first study."""
    row = result.labels.row(0, named=True)
    events = {result.tasks.codes[k]: days for k, days in zip(row["task_index"], row["event_days"])}
    history = [result.tasks.codes[k] for k in row["history_index"]]
    return {code: events.get(code)}, [c for c in history if c == code], result.covariates["past_codes"][0].to_list()


@ENDS_OF_DAYS
def test_a_date_of_the_scans_own_day_is_no_label(labelled, end):
    """With no blackout it was one, half a day after the scan; it is history, neither a label nor a feature."""
    rows = rows_with("X/A", on(SCAN, end))
    assert first_row(labelled(rows, date_only="day_end"), "X/A") == ({"X/A": None}, ["X/A"], [])
    exact = (on(SCAN, end) - SCAN) / DAY
    assert first_row(labelled(rows), "X/A") == ({"X/A": exact}, [], [])


@ENDS_OF_DAYS
def test_a_date_of_the_next_day_happens_as_the_day_starts(labelled, end):
    result = labelled(rows_with("X/A", on(SCAN + DAY, end)), date_only="day_end")
    assert first_row(result, "X/A") == ({"X/A": 0.5}, [], [])


@ENDS_OF_DAYS
def test_a_date_of_the_day_before_is_a_feature(labelled, end):
    result = labelled(rows_with("X/A", on(SCAN - DAY, end)), date_only="day_end")
    assert first_row(result, "X/A") == ({"X/A": None}, ["X/A"], ["X/A"])


@ENDS_OF_DAYS
def test_a_date_only_death_is_the_end_of_its_day(labelled, end):
    rows = [*rows_with("X/A", SCAN + 3 * DAY), (1, on(SCAN + 4 * DAY, end), "MEDS_DEATH")]
    result = labelled(rows, date_only="day_end")
    assert result.labels["censor_days"].to_list() == [4.5, 99.0, 99.0]
    assert first_row(result, "MEDS_DEATH")[0] == {"MEDS_DEATH": 4.5}


def test_midnight_is_a_date_under_day_end_too_and_other_times_are_moments(labelled):
    for clock, event in (
        ("00:00:00", None),
        ("23:58:59", 11 / 24 + 3539 / 86400),
        ("23:59:30", 11 / 24 + 3570 / 86400),
    ):
        time = on(SCAN, datetime.strptime(clock, "%H:%M:%S").time())
        assert first_row(labelled(rows_with("X/A", time), date_only="day_end"), "X/A")[0] == {
            "X/A": None if event is None else pytest.approx(event, abs=1e-12)
        }


@pytest.mark.parametrize("seed", range(3))
def test_day_end_equals_the_plain_loops(tmp_path, meds, label, same_as_oracle, seed):
    """Random records whose dates lie at the end of their day, in every spelling."""
    rows, studies, parents = meds.random(seed)
    midnight = datetime.min.time()
    rows = [
        (s, on(time, (midnight, *ENDS)[k % 5]) if time is not None and time.time() == midnight else time, code)
        for k, (s, time, code) in enumerate(rows)
    ]
    folder = meds.write(tmp_path / "ehr", [rows], parents)
    result = label(folder, studies, date_only="day_end")
    config = {"min_events": 1, "min_patients": 1, "date_only": "day_end"}
    same_as_oracle(result, folder, studies, meds.phenotypes, **config)


def test_ends_of_days_are_counted(labelled):
    """Moments with a time, and those of them that the other convention would read as dates."""
    rows = rows_with("X/A", on(SCAN, ENDS[0])) + [(3, on(SCAN + k * DAY, ENDS[k]), "X/B") for k in (1, 2, 3)]
    rows += [(3, on(SCAN + 3 * DAY, ENDS[3]), "X/C"), (3, None, "X/S"), (2, SCAN.replace(hour=0), "X/C")]
    events = labelled(rows).counts["events"]
    assert (events["timed_moments"], events["day_end_moments"]) == (9, 4)


PLACES = [datetime(1900, 1, 1), datetime(1970, 1, 1), datetime(2099, 12, 31), datetime(2300, 1, 1)]


@pytest.mark.parametrize("place", PLACES, ids=str)
@pytest.mark.parametrize("end", [datetime.min.time(), *ENDS], ids=str)
def test_a_placeholder_is_one_at_the_end_of_its_day_too(tmp_path, meds, place, end):
    rows = [(1, on(place, end), "X/A"), (1, SCAN, "X/B")]
    folder = meds.write(tmp_path / "ehr", [rows])
    (batch,) = MedsSource(folder).batches("data/0.parquet")
    assert len(batch.code) == 1
    assert batch.counts["placeholder_dates"] == 1
    assert batch.placeholders.to_list() == ["X/A"]


@pytest.mark.parametrize(
    "place", [datetime(1900, 1, 2), datetime(1970, 1, 1, 8), datetime(2099, 12, 31, 0, 0, 1)], ids=str
)
def test_other_times_of_such_days_are_moments(tmp_path, meds, place):
    (batch,) = MedsSource(meds.write(tmp_path / "ehr", [[(1, place, "X/A")]])).batches("data/0.parquet")
    assert len(batch.code) == 1


@pytest.mark.parametrize("place", [*PLACES, datetime(9999, 12, 31), None], ids=str)
def test_a_death_without_a_date_stays_without_one(tmp_path, meds, label, place):
    """It is a static event and counted; the row is not dropped."""
    rows = [(1, place, "MEDS_DEATH"), (1, SCAN, "X/A"), (1, SCAN + 9 * DAY, "X/A"), (2, SCAN + 9 * DAY, "X/B")]
    folder = meds.write(tmp_path / "ehr", [rows])
    (batch,) = MedsSource(folder).batches("data/0.parquet")
    assert batch.codes.gather(batch.code).to_list()[0] == "MEDS_DEATH"
    assert batch.time[0] == NEVER
    events = label(folder, meds.studies([(s, SCAN, "train") for s in (1, 2)])).counts["events"]
    assert (events["undated_deaths"], events["placeholder_dates"]) == (1, 0)


def test_the_epoch_is_a_placeholder_in_any_zone(tmp_path, meds):
    """Stored as UTC and read as Berlin's clock, it is one o'clock in the morning."""
    folder = meds.write(tmp_path / "ehr", [[(1, datetime(1970, 1, 1), "X/A"), (1, SCAN, "X/B")]])
    path = folder / "data" / "0.parquet"
    table = parquet.read_table(path)
    zoned = table["time"].cast(pa.timestamp("us", "UTC"))
    parquet.write_table(table.set_column(1, "time", zoned), path)
    (batch,) = MedsSource(folder, timezone="Europe/Berlin").batches("data/0.parquet")
    assert batch.counts["placeholder_dates"] == 1


def test_sparks_old_timestamps_do_not_wrap(tmp_path, meds):
    """Beyond 2262 nanoseconds wrap: INT96 of 2580 would be a time of 1995, of 9999 one of 1816."""
    folder = meds.write(tmp_path / "ehr", [[(1, SCAN, "X/A")]])
    times = pa.array([SCAN, datetime(2580, 1, 1), datetime(2555, 1, 1)], pa.timestamp("us"))
    table = pa.table({"subject_id": [1, 1, 1], "time": times, "code": ["X/A", "X/B", "X/C"]})
    parquet.write_table(table, folder / "data" / "0.parquet", use_deprecated_int96_timestamps=True)
    (batch,) = MedsSource(folder).batches("data/0.parquet")
    assert batch.codes.gather(batch.code).to_list() == ["X/A"]
    assert batch.counts["placeholder_dates"] == 2
