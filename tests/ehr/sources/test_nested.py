"""Nested MEDS becomes flat MEDS: as a plain loop over the patients says, whatever lists and codes are stored as."""

import contextlib
import json
import random
from datetime import datetime, timedelta

import polars as pl
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from ehr.sources import nested
from ehr.sources.meds import MedsSource
from ehr.sources.nested import convert_nested, is_nested
from ttepretrain.errors import BadDataError, ConfigError, DeclaredError, IntegrityError

START = datetime(2015, 1, 1, 10)
BIRTH, DEATH = "SNOMED/184099003", "SNOMED/419620001"
RENAMED = {BIRTH: "MEDS_BIRTH", DEATH: "MEDS_DEATH"}
CODES = ["V/1", "V/2", "ICD10CM/I27.2", "", None, BIRTH, DEATH]


def plain_map(function, items):
    return [function(item) for item in items]


def measurement_type(text, metadata):
    fields = [("code", text), ("text_value", pa.string()), ("numeric_value", pa.float32())]
    return pa.struct([*fields, ("datetime_value", pa.timestamp("us")), ("metadata", metadata)])


TEXT, TIME, NOTHING = pa.string(), pa.timestamp("us"), pa.null()


def schema(version="0.1", text=TEXT, time=TIME, metadata=NOTHING, large=False):
    list_of = pa.large_list if large else pa.list_
    measurement = measurement_type(text, metadata)
    if version == "0.2":
        return pa.schema([("patient_id", pa.int64()), ("events", list_of(pa.struct([("time", time), *measurement])))])
    event = pa.struct([("time", time), ("measurements", list_of(measurement))])
    return pa.schema(
        [("patient_id", pa.int64()), ("static_measurements", list_of(measurement)), ("events", list_of(event))]
    )


def random_measurement(rng):
    value = rng.choice([None, 1.5, float("nan"), -2.25])
    return {"code": rng.choice(CODES), "numeric_value": value, "text_value": rng.choice([None, "text"])}


def random_list(rng, longest, entry):
    """None, empty, or entries of which some are null."""
    some = [None if rng.random() < 0.1 else entry(rng) for _ in range(rng.randrange(longest))]
    return rng.choice([some, some, some, [], None])


def random_patient(rng, subject, version="0.1"):
    def event(rng):
        time = None if rng.random() < 0.1 else START + timedelta(hours=rng.randrange(2000))
        if version == "0.2":
            return random_measurement(rng) | {"time": time}
        return {"time": time, "measurements": random_list(rng, 4, random_measurement)}

    patient = {"patient_id": subject, "events": random_list(rng, 8, event)}
    if version == "0.1":
        patient["static_measurements"] = random_list(rng, 3, random_measurement)
    return patient


def write(folder, shards, of=None):
    """A nested data set of shards of patients; `of`: its schema."""
    (folder / "data").mkdir(parents=True)
    for number, patients in enumerate(shards):
        table = pa.Table.from_pylist(patients, of or schema())
        parquet.write_table(table, folder / "data" / f"{number}.parquet")
    return folder


def slow_rows(patients):
    """(subject, time, code, value) of every measurement, patient by patient."""
    rows = []
    for patient in patients:
        events = [{"time": None, "measurements": patient.get("static_measurements")}, *(patient["events"] or [])]
        for event in filter(None, events):
            of_event = [event] if "code" in event else event["measurements"] or []
            rows += [
                (patient["patient_id"], event["time"], RENAMED.get(m["code"], m["code"]), m["numeric_value"])
                for m in of_event
                if m is not None
            ]
    return rows


def converted(tmp_path, source):
    destination = tmp_path / "flat"
    destination.mkdir()
    return destination, convert_nested(source, destination, plain_map)


def read(destination):
    names = [destination / name for name in MedsSource(destination).shards()]
    return [pl.read_parquet(name) for name in names]


def as_set(rows):
    """Rows in an order of their own; nan is equal to itself there."""
    return sorted(map(repr, rows))


@pytest.mark.parametrize("version", ["0.1", "0.2"])
@pytest.mark.parametrize("seed", range(6))
def test_every_measurement_arrives_as_a_plain_loop_says(tmp_path, monkeypatch, version, seed):
    rng = random.Random(seed)
    monkeypatch.setattr(nested, "PATIENTS", rng.choice([1, 3, 64]))
    monkeypatch.setattr(nested, "PART_ROWS", rng.choice([1, 20, 1000]))
    subjects = rng.sample(range(-50, 2**53 + 50, 2**47 + 1), 60)
    shards = [[random_patient(rng, s, version) for s in subjects[i::3]] for i in range(3)]
    shards[1].append(random_patient(rng, subjects[0], version))  # in two files
    shape = {"text": rng.choice([pa.string(), pa.large_string()]), "large": rng.random() < 0.5}
    destination, counts = converted(tmp_path, write(tmp_path / "nested", shards, schema(version, **shape)))
    expected = slow_rows([patient for shard in shards for patient in shard])
    tables = read(destination)
    assert as_set(row for table in tables for row in table.iter_rows()) == as_set(expected)
    for table in tables:
        assert table.schema == {
            "subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String, "numeric_value": pl.Float32,
        }  # fmt: skip
        assert table.equals(table.sort("subject_id", "time", nulls_last=False, maintain_order=True))
    assert counts["rows"] == len(expected)
    assert counts["meds_death"] == sum(row[2] == "MEDS_DEATH" for row in expected)
    assert counts["static"] == sum(row[1] is None for row in expected)


def test_what_said_nothing_is_counted(tmp_path):
    measurement = {"code": "V/1"}
    patients = [
        {"patient_id": 1, "events": [{"time": START, "measurements": [measurement, None]}, None]},
        {"patient_id": 2, "events": [{"time": START, "measurements": []}, {"time": START, "measurements": None}]},
        {"patient_id": 3, "events": None, "static_measurements": [None, measurement]},
    ]
    _, counts = converted(tmp_path, write(tmp_path / "nested", [patients, []]))
    expected = {
        "files": 2,
        "junk_files": 0,
        "unread_files": [],
        "patients": 3,
        "events": 3,
        "empty_events": 2,
        "null_entries": 3,
        "rows": 2,
        "static": 1,
    }
    assert counts == expected | {"meds_birth": 0, "meds_death": 0}


def test_kinds_of_death_and_birth_are_death_and_birth(tmp_path):
    codes = ["MEDS_DEATH//hospice", "MEDS_BIRTH//estimated", "SNOMED/419620001", "MEDS_DEATHS"]
    events = [{"time": START, "measurements": [{"code": code} for code in codes]}]
    destination, counts = converted(tmp_path, write(tmp_path / "nested", [[{"patient_id": 1, "events": events}]]))
    (table,) = read(destination)
    assert table["code"].to_list() == ["MEDS_DEATH", "MEDS_BIRTH", "MEDS_DEATH", "MEDS_DEATHS"]
    assert (counts["meds_death"], counts["meds_birth"]) == (2, 1)


@pytest.mark.parametrize("twice", ["patient_id", "events"])
def test_a_column_that_is_there_twice_is_refused(tmp_path, twice):
    folder = write(tmp_path / "nested", [[{"patient_id": 1, "events": []}]])
    table = parquet.read_table(folder / "data" / "0.parquet")
    parquet.write_table(table.append_column(twice, table[twice]), folder / "data" / "0.parquet")
    for check in (lambda: converted(tmp_path, folder), lambda: nested.check_headers(folder, None, "midnight")):
        with pytest.raises(ConfigError, match=f"column {twice} is there 2 times; keep one of them"):
            check()


def test_what_one_moment_holds_keeps_its_order(tmp_path):
    codes = [f"V/{n}" for n in (3, 1, 2)]
    events = [
        {"time": START + timedelta(days=1), "measurements": [{"code": "later"}]},
        {"time": START, "measurements": [{"code": code} for code in codes]},
    ]
    destination, _ = converted(tmp_path, write(tmp_path / "nested", [[{"patient_id": 1, "events": events}]]))
    assert read(destination)[0]["code"].to_list() == [*codes, "later"]


@pytest.mark.parametrize("text", [pa.dictionary(pa.int32(), pa.string()), pa.string_view()])
def test_codes_are_text_however_they_are_stored(tmp_path, text):
    measurement = pa.struct([("code", text)])
    event = pa.struct([("time", pa.timestamp("us")), ("measurements", pa.list_(measurement))])
    of = pa.schema([("patient_id", pa.int64()), ("events", pa.list_(event))])
    patient = {"patient_id": 1, "events": [{"time": START, "measurements": [{"code": "V/1"}, {"code": BIRTH}]}]}
    destination, _ = converted(tmp_path, write(tmp_path / "nested", [[patient]], of))
    assert read(destination)[0].rows() == [(1, START, "V/1", None), (1, START, "MEDS_BIRTH", None)]


def test_metadata_with_a_code_of_its_own_is_no_code(tmp_path):
    of = schema(metadata=pa.struct([("code", pa.string()), ("table", pa.string())]))
    event = {"time": START, "measurements": [{"code": "V/1", "metadata": {"code": "V/2", "table": "visit"}}]}
    destination, _ = converted(tmp_path, write(tmp_path / "nested", [[{"patient_id": 1, "events": [event]}]], of))
    assert read(destination)[0]["code"].to_list() == ["V/1"]


def test_times_and_ids_stay_what_they_are_for_the_reader_of_flat_files_to_judge(tmp_path):
    event = {"time": START, "measurements": [{"code": "V/1"}]}
    source = write(
        tmp_path / "nested", [[{"patient_id": 1, "events": [event]}]], schema(time=pa.timestamp("ns", "UTC"))
    )
    destination, _ = converted(tmp_path, source)
    with pytest.raises(ConfigError, match=r"column time has zone UTC; set ehr\.timezone"):
        list(MedsSource(destination).batches("data/00000-000.parquet"))
    assert len(next(MedsSource(destination, timezone="Europe/Berlin").batches("data/00000-000.parquet")).time) == 1


def test_descriptions_and_parents_of_metadata_json_become_codes_parquet(tmp_path):
    source = write(tmp_path / "nested", [[random_patient(random.Random(1), n) for n in range(20)]])
    listed = {"V/2": {"description": "two", "parent_codes": ["V/1", DEATH]}, DEATH: {"description": "death"}}
    (source / "metadata.json").write_text(json.dumps({"dataset_name": "old", "code_metadata": listed}))
    destination, _ = converted(tmp_path, source)
    assert pl.read_parquet(destination / "metadata" / "codes.parquet").rows() == [
        ("MEDS_DEATH", "death", []), ("V/2", "two", ["V/1", "MEDS_DEATH"]),
    ]  # fmt: skip


def test_a_broken_metadata_json_is_named(tmp_path):
    source = write(tmp_path / "nested", [[random_patient(random.Random(1), n) for n in range(20)]])
    (source / "metadata.json").write_text('{"code_metadata": [1]}')
    with pytest.raises(IntegrityError, match=r"metadata\.json: cannot be read"):
        converted(tmp_path, source)


def test_layouts_are_told_apart_by_their_columns(tmp_path):
    assert is_nested(write(tmp_path / "nested", [[]]))
    flat = tmp_path / "flat" / "data"
    flat.mkdir(parents=True)
    pl.DataFrame({"subject_id": [1], "time": [START], "code": ["V/1"]}).write_parquet(flat / "0.parquet")
    assert not is_nested(flat.parent)


EVENT = pa.struct([("time", pa.timestamp("us")), ("measurements", pa.list_(pa.struct([("value", pa.string())])))])


@pytest.mark.parametrize(
    ("of", "message"),
    [
        (pa.schema([("patient_id", pa.int64()), ("events", pa.string())]), "column events is string"),
        (pa.schema([("patient_id", pa.int64())]), "no column events; it has patient_id"),
        (pa.schema([("patient_id", pa.int64()), ("events", pa.list_(EVENT))]), "events .* has no code"),
        (pa.schema([("subject", pa.int64()), schema().field("events")]), "no column patient_id"),
    ],
)
def test_a_file_of_another_layout_is_named_with_its_column(tmp_path, of, message):
    source = write(tmp_path / "nested", [[]])
    parquet.write_table(of.empty_table(), source / "data" / "1.parquet")
    with pytest.raises(ConfigError, match=rf"data/1\.parquet: .*{message}"):
        converted(tmp_path, source)


def test_a_damaged_file_stops_the_conversion(tmp_path):
    source = write(tmp_path / "nested", [[random_patient(random.Random(n), n) for n in range(200)]])
    path = source / "data" / "0.parquet"
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(IntegrityError, match=r"data/0\.parquet: damaged or incomplete parquet"):
        converted(tmp_path, source)


def test_no_measurement_at_all_is_bad_data(tmp_path):
    with pytest.raises(BadDataError, match="hold no measurement"):
        converted(tmp_path, write(tmp_path / "nested", [[{"patient_id": 1}]]))


@pytest.mark.parametrize("seed", range(30))
def test_a_flipped_bit_never_ends_in_an_undeclared_error(tmp_path, seed):
    rng = random.Random(seed)
    source = write(tmp_path / "nested", [[random_patient(random.Random(n), n) for n in range(40)]])
    path = source / "data" / "0.parquet"
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    with contextlib.suppress(DeclaredError):
        converted(tmp_path, source)
