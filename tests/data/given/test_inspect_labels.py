"""INSPECT's labels: their units are verified, other texts and contradictions refused by column."""

import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from data.given.label_tables import read_label_tables
from data.testing import load_module
from ehr.phenotype_file import read_phenotypes
from ttepretrain.errors import ConfigError

SHIPPED = Path(__file__).parents[3] / "configs" / "phenotypes" / "inspect.yaml"
KINDS = {name: phenotype.kind for name, phenotype in read_phenotypes(SHIPPED).items()}

release = load_module(Path(__file__).parents[1] / "inspect_release.py")
LABELS, write_inspect = release.LABELS, release.write_inspect
table, save, change, at = release.table, release.save, release.change, release.at
NUM = release.NUM_STUDIES


def labels(folder):
    return read_label_tables([folder / LABELS], KINDS)


@pytest.mark.parametrize("unit", ["seconds", "minutes", "days"])
def test_times_are_read_in_the_unit_that_the_answers_tell(tmp_path, unit, caplog):
    truth = write_inspect(tmp_path, NUM, unit=unit)
    rows = labels(tmp_path)
    assert f"times are in {unit} (tte_mortality, tte_readmission, tte_PH, tte_Atelectasis" in caplog.text
    for column, phenotype in (("mortality", "mortality"), ("Edema", "edema"), ("PH", "pulmonary_hypertension_icd")):
        timed = rows.filter(pl.col("phenotype") == phenotype, pl.col("time_days").is_not_null()).sort("study_id")
        days, event = truth[column]
        assert timed["event"].to_list() == list(event)
        np.testing.assert_allclose(timed["time_days"], days)


def test_answers_at_horizons_are_true_false_or_unknown(inspect):
    rows = labels(inspect).filter(phenotype="mortality", horizon_days=180.0).sort("study_id")
    words = table(inspect, LABELS).sort("impression_id")["6_month_mortality"]
    assert set(words) == {"TRUE", "FALSE", "Censored"}
    assert rows["label"].to_list() == [{"TRUE": True, "FALSE": False, "Censored": None}[word] for word in words]
    embolism = labels(inspect).filter(phenotype="pulmonary_embolism")
    assert embolism["kind"].unique().to_list() == ["diagnosis"]
    assert embolism["label"].null_count() == 0
    assert embolism["label"].any()
    assert not embolism["label"].all()


def test_pandas_false_is_false_and_another_word_is_refused_with_its_column(inspect):
    change(inspect, LABELS, **{"12_month_PH": pl.col("12_month_PH").str.to_titlecase()})
    assert False in labels(inspect).filter(phenotype="pulmonary_hypertension_icd")["label"].to_list()
    change(inspect, LABELS, **{"12_month_PH": at(5, "no", "12_month_PH")})
    with pytest.raises(ConfigError, match=rf"{LABELS}: column 12_month_PH: 1 values are .* empty; among them no$"):
        labels(inspect)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        # 7 is no unit
        ({"tte_mortality": (pl.col("tte_mortality").cast(pl.Float64) * 7).cast(pl.String)},
         r"column tte_mortality: its unit is not known: 0 of seconds, minutes and days agree with \*_month_mortality"),
        # the flag upside down, as in the reference
        ({"is_censored_mortality": pl.when(pl.col("is_censored_mortality") == "True").then(pl.lit("False"))
          .otherwise(pl.lit("True"))}, r"column tte_mortality: its unit is not known: 0 of"),
        # nobody dies: several units agree
        ({f"{n}_month_mortality": pl.lit("Censored") for n in (1, 6, 12)}, r"column tte_mortality: .*: 0 of seconds"),
        # seconds beside columns in minutes
        ({"tte_Edema": (pl.col("tte_Edema").cast(pl.Float64) * 60).cast(pl.String)},
         r"column tte_Edema: its longest time is [\d.]+ times that of the columns whose unit is known"),
        ({"tte_Edema": pl.lit("-4")}, r"column tte_Edema: 200 times lie before the study"),
        ({"is_censored_Edema": None}, r"no column is_censored_Edema beside its twin"),
        ({f"tte_{n}": None for n in ("mortality", "readmission", "PH")}
         | {f"is_censored_{n}": None for n in ("mortality", "readmission", "PH")},
         r"column tte_Atelectasis has no yes-or-no column, and the other tte columns have none either"),
        ({"tte_mortality": (pl.col("tte_mortality").cast(pl.Float64) * 60).cast(pl.String)},
         r"column tte_Atelectasis has no yes-or-no column, and the other tte columns have several units"),
    ],
)  # fmt: skip
def test_times_whose_unit_is_not_known_are_refused_with_column_and_check(inspect, columns, message):
    change(inspect, LABELS, **columns)
    with pytest.raises(ConfigError, match=rf"ehr\.label_tables: {LABELS}: .*{message}"):
        labels(inspect)


def test_where_several_units_agree_none_is_taken(inspect):
    """All answers yes at once: a time of 1 is before every horizon in any unit."""
    yes = {f"{n}_month_mortality": pl.lit("TRUE") for n in (1, 6, 12)}
    change(inspect, LABELS, **yes, tte_mortality=pl.lit("1"), is_censored_mortality=pl.lit("False"))
    with pytest.raises(ConfigError, match=r"column tte_mortality: .* 3 of seconds, minutes and days agree"):
        labels(inspect)


def test_answers_without_times_need_no_unit(inspect):
    times = [name for name in table(inspect, LABELS).columns if name.startswith(("tte_", "is_censored_"))]
    change(inspect, LABELS, **dict.fromkeys(times))
    rows = labels(inspect)
    assert rows["time_days"].null_count() == len(rows)
    assert set(rows["phenotype"]) == {"mortality", "readmission", "pulmonary_hypertension_icd", "pulmonary_embolism"}


def test_repeated_label_rows_count_once_and_rows_that_differ_not_at_all(inspect, caplog):
    rows = table(inspect, LABELS)
    other = rows[30:31].with_columns(pl.lit("Censored").alias("1_month_mortality"))
    save(inspect, LABELS, pl.concat([rows, rows[20:21], other]))
    read = labels(inspect)
    assert "imp0030" not in read["study_id"]
    assert len(read.filter(study_id="imp0020", phenotype="mortality")) == 4
    assert "repeated rows 1, rows that differ under one impression_id 2" in caplog.text


def test_a_few_contradictions_are_left_out_and_many_are_refused(tmp_path, caplog):
    write_inspect(tmp_path, 600)
    within, beyond = at(0, "TRUE", "1_month_readmission"), at(0, "FALSE", "6_month_readmission")
    rows = table(tmp_path, LABELS).with_columns(within, beyond)
    save(tmp_path, LABELS, rows)
    read = labels(tmp_path)
    assert not len(read.filter(study_id="imp0000", phenotype="readmission"))
    assert len(read.filter(study_id="imp0000", phenotype="mortality"))
    assert "1 studies' answers about a phenotype contradict each other" in caplog.text
    save(tmp_path, LABELS, rows.drop("tte_readmission", "is_censored_readmission").with_columns(
        pl.lit("TRUE").alias("1_month_readmission"), pl.lit("FALSE").alias("6_month_readmission")))  # fmt: skip
    with pytest.raises(ConfigError, match="studies of readmission have answers that contradict each other"):
        labels(tmp_path)


def test_labels_name_phenotypes_that_the_shipped_file_declares(inspect, caplog):
    labels(inspect)
    assert "no codes are declared" not in caplog.text
    assert set(labels(inspect)["phenotype"]) == set(KINDS) - {"pulmonary_hypertension"}


def test_another_tsv_is_told_what_inspects_has(tmp_path):
    (tmp_path / "labels.tsv").write_text("study\tlabel\n1\tTRUE\n")
    with pytest.raises(ConfigError, match=re.escape("labels.tsv: no column impression_id, as INSPECT's has")):
        read_label_tables([tmp_path / "labels.tsv"], KINDS)
    (tmp_path / "labels.tsv").write_text("impression_id\tlabel\n1\tTRUE\n")
    with pytest.raises(ConfigError, match="none of INSPECT's label columns"):
        read_label_tables([tmp_path / "labels.tsv"], KINDS)
    with pytest.raises(ConfigError, match=r"gone\.tsv is not a file"):
        read_label_tables([tmp_path / "gone.tsv"], KINDS)
