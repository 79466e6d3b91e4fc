"""A phenotype file is checked at the border: YAML gives values of any type, and none may pass for another."""

import math

import pytest

from ehr.config import EhrConfig
from ehr.phenotype_file import read_phenotypes
from ttepretrain.errors import ConfigError


@pytest.fixture
def read(tmp_path):
    """Function: YAML text of a file -> phenotypes."""

    def run(text: str):
        (tmp_path / "p.yaml").write_text(text)
        return read_phenotypes(tmp_path / "p.yaml")

    return run


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('after_stay: "yes"', r"p\.after_stay must be true or false, unquoted; got 'yes'"),
        ("after_stay: 1", r"p\.after_stay must be true or false"),
        ("prevalent: true", r"p\.prevalent must be one of keep, exclude; got True"),
        ("kind: 1", r"p\.kind must be one of prognosis, diagnosis; got 1"),
        ("kind: null", r"p\.kind must be one of .* got None"),
        ("kind: [diagnosis]", r"p\.kind must be one of"),
        ("death_before_horizon: true", r"p\.death_before_horizon must be one of negative, censored; got True"),
        ("horizons_days: [true]", r"p\.horizons_days must be numbers of days, unquoted; got True"),
        ('horizons_days: ["30"]', r"p\.horizons_days must be numbers of days, unquoted; got '30'"),
        ("horizons_days: [.nan]", r"p\.horizons_days must be at most 1,000,000 days; got nan"),
        ("horizons_days: [30, .inf]", r"p\.horizons_days must be at most 1,000,000 days; got inf"),
        ("horizons_days: 30", r"p\.horizons_days must be a list; write \[\.\.\.\]; got 30"),
        ("start_days: .nan", r"p\.start_days must be at most"),
        ("start_days: false", r"p\.start_days must be numbers"),
        ("window_days: [-.inf, 1]", r"p\.window_days must be at most 1,000,000 days; got -inf"),
        ("twins: [7]", r"p\.twins must be texts; put codes such as 250 or no in quotes; got 7"),
        ("codes: [250]", r"p\.codes must be texts; .* got 250"),
        ("codes: [no]", r"p\.codes must be texts; .* got False"),
        ("codes: [null]", r"p\.codes must be texts; .* got None"),
        ("codes: [' V/1']", r"p\.codes must be codes, without blanks around them"),
        ("codes: ['*']", r"p\.codes must be codes"),
        ("codes: V/1", r"p\.codes must be a list"),
        ("codes: []", r"p\.codes must hold a code"),
        ("kind: diagnosis\n    kind: prognosis", "duplicate key kind"),
    ],
)
def test_a_value_of_another_type_is_refused_by_key_and_value(read, line, message):
    codes = "" if line.startswith("codes") else "    codes: [V/1]\n"
    with pytest.raises(ConfigError, match=message):
        read(f"phenotypes:\n  p:\n{codes}    {line}\n")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("1", "the name must be text; got 1, put it in quotes"),
        ("no", "the name must be text; got False"),
        ("null", "write keys as text"),
        ("a/b", "names a folder"),
    ],
)
def test_a_name_is_text_that_can_be_a_folder(read, name, message):
    with pytest.raises(ConfigError, match=message):
        read(f"phenotypes:\n  {name}: {{codes: [V/1]}}\n")


def test_one_name_stands_once(read):
    with pytest.raises(ConfigError, match="duplicate key p"):
        read("phenotypes:\n  p: {codes: [V/1]}\n  p: {codes: [V/2]}\n")
    with pytest.raises(ConfigError, match="Conflicting integer and string keys"):
        read("phenotypes:\n  1: {codes: [V/1]}\n  '1': {codes: [V/2]}\n")


def test_whole_and_decimal_days_and_codes_in_quotes_are_taken(read):
    found = read(
        "phenotypes:\n  '1': {codes: ['250', 'no', X*], horizons_days: [30, 0.5], window_days: [-9e5, 0.0]}\n"
    )["1"]
    assert (found.codes, found.horizons_days) == (["250", "no", "X*"], [30, 0.5])
    assert math.isclose(found.window_days[0], -900_000)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"label_tables": [["x.csv"]]}, r"ehr\.label_tables must be paths of tables; got \[\['x\.csv'\]\]"),
        ({"label_tables": [""]}, r"ehr\.label_tables must be paths"),
        ({"exclude": ["*"]}, r"ehr\.exclude must be codes"),
        ({"exclude": [" V/1"]}, r"ehr\.exclude must be codes"),
        ({"exclude": [None]}, r"ehr\.exclude must be codes"),
        ({"tasks": ""}, r"ehr\.tasks must be the path of a file"),
        ({"blackout_days": 1e9}, r"ehr\.blackout_days must be at most 36,525 days"),
    ],
)
def test_values_of_the_run_that_cannot_be_meant_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        EhrConfig(**values)
