"""Every subject gets one split: the table's, else that of a given table or the EHR, else a hash of the subject."""

import polars as pl
import pytest

from data.subjects.splits import assign_splits, hash_split, read_splits
from ttepretrain.errors import ConfigError, LeakageError


def studies(**splits):
    """One study per subject and split given as s<subject>=split."""
    rows = [(f"{name}.{n}", int(name[1:]), split) for name, given in splits.items() for n, split in enumerate(given)]
    return pl.DataFrame(rows, schema=["study_id", "subject_id", "split"], orient="row").cast({"split": pl.String})


def splits(**given):
    rows = [(int(name[1:]), split) for name, split in given.items()]
    return pl.DataFrame(rows, schema={"subject_id": pl.Int64, "split": pl.String}, orient="row")


def assigned(table, given=None, ehr=None, seed=0):
    frame, counts = assign_splits(table, given, ehr, seed)
    return dict(frame.select("subject_id", "split").iter_rows()), counts


def test_the_table_decides_then_the_ehr_then_the_hash():
    table = studies(s1=["valid", None], s2=[None], s3=[None])
    by_subject, counts = assigned(table, ehr=splits(s1="tuning", s2="test", s9="train"))
    assert by_subject == {1: "tuning", 2: "held_out", 3: hash_split(3, 0)}
    assert counts == {"table": 1, "input.splits": 0, "ehr": 1, "hash": 1}


def test_given_splits_replace_those_of_the_ehr():
    by_subject, counts = assigned(studies(s1=[None]), given=splits(s1="train"), ehr=splits(s1="held_out"))
    assert by_subject == {1: "train"}
    assert counts["input.splits"] == 1


def test_a_given_table_that_is_about_none_of_the_subjects_is_refused():
    """A hash decided for all of them, and held-out subjects were trained on."""
    with pytest.raises(
        ConfigError, match=r"none of its 1 subjects is among the 2 of input\.studies.*4 digits, here 1 d"
    ):
        assigned(studies(s1=[None], s2=[None], s3=["train"]), given=splits(s1001="test"))
    assigned(studies(s3=["train"]), given=splits(s1001="test"))  # nobody asks it


def test_subjects_that_a_given_table_lacks_are_told_of(caplog):
    by_subject, _ = assigned(studies(s1=[None], s2=[None], s3=["train"]), given=splits(s1="test"))
    assert by_subject[2] == hash_split(2, 0)
    assert "1 of 2 subjects of input.studies are not in input.splits: a hash decides; add them" in caplog.text
    caplog.clear()
    assigned(studies(s1=[None]), given=splits(s1="test", s2="train"))
    assert not caplog.text


@pytest.mark.parametrize(
    "arguments",
    [
        {"table": studies(s1=["train", "held_out"])},
        {"table": studies(s1=["train"]), "ehr": splits(s1="held_out")},
        {"table": studies(s1=["train"]), "given": splits(s1="tuning")},
        {"table": studies(s1=[None]), "ehr": pl.concat([splits(s1="train"), splits(s1="test")])},
    ],
)
def test_a_subject_in_two_splits_stops_the_run_without_naming_it(arguments):
    with pytest.raises(LeakageError, match=r"^1 subjects are in two splits"):
        assigned(**arguments)


def test_valid_and_tuning_are_the_same_split():
    assert assigned(studies(s1=["valid", "tuning"]))[0] == {1: "tuning"}


def test_an_unknown_split_name_is_a_configuration_error():
    with pytest.raises(
        ConfigError, match=r"input\.studies: column split has .* 'dev' \(1 subjects\); write one of train"
    ):
        assigned(studies(s1=["dev"]))
    with pytest.raises(
        ConfigError, match=r"^input\.splits: column split has .*'training' \(train\?\), 'val' \(valid\?\)"
    ):
        assigned(studies(s1=[None], s2=[None]), given=splits(s1="training", s2="val"))
    with pytest.raises(ConfigError, match=r"^input\.ehr: metadata/subject_splits\.parquet: column split"):
        assigned(studies(s1=[None]), ehr=splits(s1="Train"))


def test_the_values_of_a_column_that_holds_no_splits_are_not_shown():
    """They may be ids."""
    table = studies(**{f"s{n}": [f"MRN{n}"] for n in range(9)})
    with pytest.raises(ConfigError, match="column split has 9 values that are no split") as raised:
        assigned(table)
    assert "MRN" not in str(raised.value)


def test_hashed_splits_depend_on_the_subject_alone_and_have_the_stated_shares():
    alone = {subject: hash_split(subject, seed=3) for subject in range(20_000)}
    together, _ = assigned(studies(**{f"s{n}": [None] for n in range(100)}), seed=3)
    assert together == {n: alone[n] for n in range(100)}
    counts = pl.Series(list(alone.values())).value_counts()
    shares = {split: count / 20_000 for split, count in counts.iter_rows()}
    assert shares == pytest.approx({"train": 0.7, "tuning": 0.1, "held_out": 0.2}, abs=0.01)
    assert alone != {subject: hash_split(subject, seed=4) for subject in range(20_000)}


def test_a_splits_table_needs_its_two_columns(tmp_path):
    pl.DataFrame({"subject_id": [1], "fold": [1]}).write_csv(tmp_path / "splits.csv")
    with pytest.raises(ConfigError, match=r"input\.splits: columns subject_id and split"):
        read_splits(tmp_path / "splits.csv", "input.splits")
    pl.DataFrame({"subject_id": [1, 1], "split": ["train", "train"]}).write_csv(tmp_path / "splits.csv")
    assert read_splits(tmp_path / "splits.csv", "input.splits").rows() == [(1, "train")]
