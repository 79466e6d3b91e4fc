"""Small cells: neither shown nor told by what is shown."""

import math

import pytest

from jobs.report.console import short
from jobs.report.tables import COLOUR, HIDDEN, events_text, merge_small, value_html
from ttepretrain.evaluation.table import DEMOGRAPHICS, ORACLE, Metric
from ttepretrain.training.config import ARMS, STARTS


def metric(n, events, value=0.7, baseline=None):
    return Metric("held_out", "tte", baseline, "cox", "edema", "harrell_c", None, value, 0.6, 0.8, n, events, None)


def test_every_arm_has_a_colour_of_its_own():
    assert set(COLOUR) == {*ARMS, *STARTS, DEMOGRAPHICS, ORACLE}
    assert len(set(COLOUR.values())) == len(COLOUR)


def test_counts_below_eleven_and_values_that_rest_on_them_are_hidden():
    assert events_text(metric(300, 11)) == "11"
    assert events_text(metric(300, 10)) == HIDDEN
    assert ".70" in value_html(metric(300, 11))
    assert ".70" not in value_html(metric(300, 10))


def test_the_complement_does_not_tell_a_small_cell():
    assert events_text(metric(300, 289)) == "289"
    assert events_text(metric(300, 295)) == "&gt; 289"


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({"a": 50, "b": 20}, [("a", 50), ("b", 20)]),
        ({"a": 50, "b": 20, "c": 3, "d": 0}, [("a", 50), ("b, c", 23)]),
        ({"a": 50, "b": 6, "c": 7}, [("a", 50), ("c, b", 13)]),
        ({"a": 4}, [("a", 4)]),
        ({"a": 0}, []),
    ],
)
def test_small_parts_of_a_total_stand_together_until_they_are_not_small(parts, expected):
    assert merge_small(parts) == expected


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.714, ".71"), (-0.034, "-.03"), (1.2, "1.20"), (-0.001, ".00"), (0.999, "1.00"), (-1.5, "-1.50")],
)
def test_short_numbers(value, text):
    assert short(value) == text


def test_a_value_that_is_not_there_is_a_dash_with_its_reason():
    assert "no comparable pairs" in value_html(Metric(*("s", "tte", None, "cox", "x", "harrell_c", None), math.nan,
                                                      math.nan, math.nan, 50, 20, "no comparable pairs"))  # fmt: skip
