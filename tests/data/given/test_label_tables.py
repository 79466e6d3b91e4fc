"""Label tables given by the user: read exactly, or refused by table and column."""

import polars as pl
import pytest

from data.given.label_tables import read_label_tables, with_label_tables
from ehr.schema import PHENOTYPES
from ttepretrain.errors import BadDataError, ConfigError

BINARY = "study_id,phenotype,kind,label,horizon_days\n"
SURVIVAL = "study_id,phenotype,kind,event,time_days\n"


@pytest.fixture
def read(tmp_path):
    """Function: (texts of csv tables, declared kinds) -> rows as tuples without kind, in the order of the tables."""

    def run(*texts: str, **declared: str):
        paths = [tmp_path / f"labels{number}.csv" for number in range(len(texts))]
        for path, text in zip(paths, texts):
            path.write_text(text)
        table = read_label_tables(paths, declared)
        assert table.schema == PHENOTYPES
        return table

    return run


def test_text_that_says_false_is_false_and_censored_is_unknown(read):
    """bool("False") would be True."""
    words = ["True", "False", "Censored", "", "FALSE", "1", "0", "1.0", "0.0", " true ", "nan"]
    table = read(
        BINARY + "".join(f"s{n},edema,prognosis,{word},30\n" for n, word in enumerate(words)), edema="prognosis"
    )
    assert table["label"].to_list() == [True, False, None, None, False, True, False, True, False, True, None]
    assert table["horizon_days"].unique().to_list() == [30.0]
    assert table["event"].null_count() == table["time_days"].null_count() == len(words)


def test_a_survival_table_gives_event_and_time_without_a_horizon(read):
    table = read(SURVIVAL + "a,edema,prognosis,true,41.5\nb,edema,prognosis,false,730\n")
    assert table.drop("kind", "phenotype").rows() == [
        ("a", None, True, True, False, 41.5),
        ("b", None, None, False, None, 730.0),  # whether death came first the table does not say
    ]


def test_a_diagnosis_has_a_label_and_no_horizon(read):
    table = read("study_id,phenotype,kind,label\na,embolism,diagnosis,true\nb,embolism,diagnosis,\n")
    assert table.drop("kind", "phenotype").rows() == [
        ("a", None, True, True, False, None), ("b", None, None, None, False, None)
    ]  # fmt: skip


def test_parquet_with_booleans_and_whole_ids_is_the_same(tmp_path, read):
    frame = pl.DataFrame(
        {"study_id": [7, 8], "phenotype": "edema", "kind": "prognosis", "label": [True, None], "horizon_days": [30, 30]}
    )
    frame.write_parquet(tmp_path / "labels.parquet")
    text = read(BINARY + "7,edema,prognosis,true,30\n8,edema,prognosis,,30\n")
    assert read_label_tables([tmp_path / "labels.parquet"], {}).equals(text)


def test_rows_equal_in_every_column_count_once_and_no_table_is_no_row(read):
    assert len(read(BINARY + "a,edema,prognosis,true,30\n" * 3)) == 1
    assert len(read()) == 0


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (
            [BINARY + "a,edema,prognosis,maybe,30\n"],
            r"labels0\.csv: column label: 1 values are none of true, false, 1, 0, censored or empty$",
        ),
        ([BINARY + "a,edema,prognosis,true,soon\n"], r"column horizon_days: 1 values are not finite numbers"),
        ([BINARY + "a,edema,prognosis,true,inf\n"], r"column horizon_days: 1 values are not finite numbers"),
        ([BINARY + "a,edema,prognosis,true,\n"], r"horizon_days must be positive for every prognosis"),
        ([BINARY + "a,edema,prognosis,true,-3\n"], r"horizon_days must be positive"),
        ([BINARY + "a,edema,diagnosis,true,30\n"], r"empty for every diagnosis"),
        ([SURVIVAL + "a,edema,diagnosis,true,30\n"], r"a diagnosis has none"),
        ([SURVIVAL + "a,edema,prognosis,,30\n"], r"event and time_days must be filled"),
        ([SURVIVAL + "a,edema,prognosis,true,\n"], r"event and time_days must be filled"),
        ([BINARY + "a,edema,prognose,true,30\n"], r"column kind must be prognosis or diagnosis"),
        ([BINARY + ",edema,prognosis,true,30\n"], r"column study_id is empty"),
        (["study_id,phenotype,label\na,edema,true\n"], r"columns study_id, phenotype, kind are needed"),
        (["study_id,phenotype,kind\na,edema,prognosis\n"], r"and either label \(with horizon_days\) or event"),
        (["study_id,phenotype,kind,label,event,time_days\na,e,prognosis,true,true,3\n"], r"not both in one file"),
        ([BINARY + "a,../edema,prognosis,true,30\n"], r"names a folder"),
        ([BINARY + "a,e,prognosis,true,30\na,e,prognosis,false,30\nb,e,prognosis,true,30\n"], r"2 rows disagree"),
        ([BINARY + "a,e,prognosis,true,30\n", BINARY + "a,e,prognosis,false,30\n"], r"2 rows disagree"),
        ([SURVIVAL + "a,edema,prognosis,true,-0.5\n"], r"column time_days: 1 values lie before the study"),
        ([BINARY + "a,known,diagnosis,true,\n"], r"known is prognosis in one place and diagnosis in another"),
        ([BINARY + "a,e,diagnosis,true,\nb,e,prognosis,true,30\n"], r"e is prognosis in one place"),
    ],
)
def test_a_mistake_is_named_by_table_and_column(read, texts, message):
    with pytest.raises(ConfigError, match=message):
        read(*texts, known="prognosis")


@pytest.mark.parametrize(
    ("answers", "survival", "agree"),
    [
        (["false,30"], "true,10", False), (["false,10"], "true,10", False), (["false,9"], "true,10", True),
        (["true,30"], "true,40", False), (["true,40"], "true,40", True), (["true,365"], "true,40", True),
        (["true,30"], "false,30", False), (["true,31"], "false,30", True), (["false,365"], "false,30", True),
        (["true,30", "false,365"], None, False), (["true,30", "false,30.5"], None, False),
        (["false,30", "true,365"], None, True), ([",30", "false,365"], "false,700", True),
    ],
)  # fmt: skip
def test_answers_that_cannot_all_be_true_are_refused(read, answers, survival, agree):
    """The happy other study and the other phenotype say nothing of this one."""
    others = "b,edema,prognosis,true,30\na,stroke,prognosis,true,30\n"
    texts = [BINARY + others + "".join(f"a,edema,prognosis,{answer}\n" for answer in answers)]
    texts += [SURVIVAL + f"a,edema,prognosis,{survival}\n"] if survival else []
    if agree:
        assert len(read(*texts)) == 2 + len(answers) + bool(survival)
    else:
        with pytest.raises(ConfigError, match="1 studies of edema have answers that contradict each other"):
            read(*texts)


def test_a_contradiction_is_shown_by_its_own_horizons_and_times_without_the_study(read):
    binary = BINARY + "s77,edema,prognosis,false,30\ns77,edema,prognosis,,365\ns78,edema,prognosis,true,30\n"
    with pytest.raises(ConfigError, match=r"one of edema: false at 30 days, an event on day 12\.5; correct") as raised:
        read(binary, SURVIVAL + "s77,edema,prognosis,true,12.5\n")
    assert "s77" not in str(raised.value)


def test_a_diagnosis_needs_no_labels_and_a_prognosis_does(read):
    given = read(BINARY + "".join(f"{s},pe,diagnosis,true,\n{s},edema,prognosis,true,30\n" for s in "ayz"))
    table, counts = with_label_tables(OWN, given, pl.Series(["a", "y"]), pl.Series(["a"]), 1.0)
    assert table.filter(phenotype="pe")["study_id"].to_list() == ["a", "y"]
    assert table.filter(phenotype="edema")["study_id"].to_list() == ["a"]
    assert (counts["unknown_study"], counts["unlabelled_study"], counts["used"]) == (2, 1, 3)


def test_a_table_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"ehr\.label_tables: .*gone\.csv is not a file"):
        read_label_tables([tmp_path / "gone.csv"], {})


def test_a_phenotype_without_codes_warns_that_its_codes_may_be_tasks(read, caplog):
    read(BINARY + "a,edema,prognosis,true,30\na,report,prognosis,true,30\n", edema="prognosis")
    assert "no codes are declared for report;" in caplog.text
    caplog.clear()
    read(BINARY + "a,edemma,prognosis,true,30\na,x,prognosis,true,30\n", edema="prognosis", stroke="prognosis")
    assert "no codes are declared for edemma (did you mean edema?), x;" in caplog.text


OWN = pl.DataFrame(
    [
        ("a", "edema", "prognosis", 30.0, False, True, False, 40.0),
        ("a", "edema", "prognosis", None, True, True, False, 40.0),
        ("a", "stroke", "prognosis", None, None, False, True, 90.0),
    ],
    schema=PHENOTYPES,
    orient="row",
)


def test_a_named_phenotype_comes_from_the_tables_alone(read):
    """The edema of the codes goes, with its time to event; stroke stays."""
    given = read(BINARY + "a,edema,prognosis,true,365\nb,edema,prognosis,false,365\nz,edema,prognosis,true,365\n")
    table, counts = with_label_tables(OWN, given, pl.Series(["a", "b", "z"]), pl.Series(["a", "b"]), 1.0)
    assert table.select("study_id", "phenotype", "horizon_days", "label").rows() == [
        ("a", "stroke", None, None), ("a", "edema", 365.0, True), ("b", "edema", 365.0, False)
    ]  # fmt: skip
    assert counts == {
        "rows": 3, "unknown_study": 0, "unlabelled_study": 1, "in_blackout": 0, "used": 2, "without_answer": [],
        "instead_of_codes": ["edema"],
    }  # fmt: skip


def test_times_inside_the_blackout_are_left_out_and_counted(read):
    """At the scan, and ending exactly with it."""
    given = read(SURVIVAL + "a,x,prognosis,true,1\nb,x,prognosis,false,0\nc,x,prognosis,true,1.001\n")
    ids = pl.Series(["a", "b", "c"])
    table, counts = with_label_tables(OWN, given, ids, ids, 1.0)
    assert table.filter(phenotype="x")["study_id"].to_list() == ["c"]
    assert (counts["in_blackout"], counts["used"], counts["instead_of_codes"]) == (2, 1, [])


def test_without_tables_nothing_changes():
    table, counts = with_label_tables(OWN, pl.DataFrame(schema=PHENOTYPES), pl.Series(["a"]), pl.Series(["a"]), 1.0)
    assert table.equals(OWN)
    assert counts["rows"] == 0


STUDIES = pl.DataFrame(
    {
        "study_id": [f"CT{n:04d}" for n in range(1, 9)],
        "subject_id": range(101, 109),
        "image": [f"a/CT{n:04d}.nii.gz" for n in range(1, 9)],
    }
)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("ct{:04d}", "the ids differ by letter case"),
        ("CT{}", "by a prefix, or by zeros before the last number"),
        ("{}", "by a prefix, or by zeros before the last number"),
        ("CT-{:04d}", "by blanks, hyphens or other signs inside"),
        (" CT{:04d}", "by blanks around them"),
        ("ct/CT{:04d}.nii.gz", "by folders or file endings"),
        ("a/CT{:04d}.nii.gz", "the ids there are values of column image here"),
        ("10{}", "the ids there are values of column subject_id here"),
        ("7{:07d}", "the ids there are 8 digits, here text of 6 characters"),
    ],
)
def test_a_table_about_no_study_is_refused_and_says_how_the_ids_differ(tmp_path, name, how):
    """It would put its phenotypes in the place of the codes, and answer nothing."""
    rows = "".join(f"{name.format(n)},edema,prognosis,true,30\n" for n in range(1, 9))
    (tmp_path / "labels.csv").write_text(BINARY + rows)
    with pytest.raises(ConfigError, match=r"labels\.csv: none of its 8 study_ids is among the 8 of") as raised:
        read_label_tables([tmp_path / "labels.csv"], {"edema": "prognosis"}, STUDIES, 0.5)
    assert how in str(raised.value)


def test_ids_stored_as_decimals_differ_by_their_ending(tmp_path):
    (tmp_path / "labels.csv").write_text(BINARY + "7.0,edema,prognosis,true,30\n")
    studies = pl.DataFrame({"study_id": ["7", "8"]})
    with pytest.raises(ConfigError, match=r"by a `\.0` at the end of numbers"):
        read_label_tables([tmp_path / "labels.csv"], {}, studies, 0.5)
    (tmp_path / "labels.csv").write_text(BINARY + "007,edema,prognosis,true,30\n")
    with pytest.raises(ConfigError, match="by leading zeros"):
        read_label_tables([tmp_path / "labels.csv"], {}, studies, 0.5)


@pytest.mark.parametrize(
    ("matching", "most_lost", "outcome"), [(3, 0.5, "error"), (3, 0.7, "warns"), (6, 0.5, "warns")]
)
def test_a_table_that_misses_many_studies_warns_or_stops(tmp_path, caplog, matching, most_lost, outcome):
    ids = [f"CT{n:04d}" if n <= matching else f"ct{n:04d}" for n in range(1, 9)]
    (tmp_path / "labels.csv").write_text(BINARY + "".join(f"{i},edema,prognosis,true,30\n" for i in ids))
    paths, text = [tmp_path / "labels.csv"], f"{8 - matching} of 8 study_ids that ehr.label_tables: labels.csv and"
    if outcome == "error":
        with pytest.raises(BadDataError, match=f"{text}.*letter case.*raise ehr.max_lost_fraction"):
            read_label_tables(paths, {}, STUDIES, most_lost)
    else:
        assert len(read_label_tables(paths, {}, STUDIES, most_lost)) == 8
        assert text in caplog.text


def test_a_table_of_the_whole_archive_and_one_of_few_studies_lose_nothing(tmp_path, caplog):
    path = tmp_path / "labels.csv"
    for last in (2, 900):
        rows = "".join(f"CT{n:04d},edema,prognosis,{n % 2},30\n" for n in range(1, last))
        path.write_text(BINARY + rows)
        read_label_tables([path], {"edema": "prognosis"}, STUDIES, 0.0)
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("CT0001,e,prognosis,true,30\nX,f,prognosis,true,30\n", "no row of f is about a study of input.studies"),
        (
            "CT0001,e,prognosis,true,30\nCT0001,f,diagnosis,,\nCT0002,f,diagnosis,censored,\n",
            "every label of f is empty",
        ),
    ],
)
def test_a_phenotype_without_an_answer_is_refused_before_it_replaces_its_codes(tmp_path, rows, message):
    (tmp_path / "labels.csv").write_text(BINARY + rows)
    with pytest.raises(ConfigError, match=message):
        read_label_tables([tmp_path / "labels.csv"], {}, STUDIES, 1.0)


@pytest.mark.parametrize(
    ("rows", "labelled"), [("a,edema,prognosis,true,1\n", "a"), ("b,edema,prognosis,true,9\n", "a")]
)
def test_a_phenotype_that_loses_every_row_is_refused(read, rows, labelled):
    """All in the blackout; all of studies without follow-up. The codes had answered."""
    given = read(SURVIVAL + rows, edema="prognosis")
    with pytest.raises(ConfigError, match="no row of edema can be used"):
        with_label_tables(OWN, given, pl.Series(["a", "b"]), pl.Series([labelled]), 1.0)


def test_a_phenotype_that_is_censored_for_all_labelled_studies_is_named(read):
    given = read(BINARY + "a,edema,prognosis,,30\nb,edema,prognosis,true,30\n", edema="prognosis")
    _, counts = with_label_tables(OWN, given, pl.Series(["a", "b"]), pl.Series(["a"]), 1.0)
    assert (counts["used"], counts["without_answer"]) == (1, ["edema"])


@pytest.mark.parametrize("column", ["subject_id", "patient_id", "image"])
def test_a_table_by_another_key_is_told_to_be_joined_first(read, column):
    with pytest.raises(ConfigError, match=f"A table by {column} does not say which study it means: join it"):
        read(f"{column},phenotype,kind,label,horizon_days\n1,edema,prognosis,true,30\n")


def test_a_table_without_rows_is_refused(read):
    for header in (BINARY, SURVIVAL):
        with pytest.raises(ConfigError, match=r"labels0\.csv: the table has column names and no rows; fill it"):
            read(header)
