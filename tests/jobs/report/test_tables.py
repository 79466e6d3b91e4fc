"""Small cells: neither shown nor told by what is shown."""

import math
from dataclasses import replace

import numpy as np
import pytest

from jobs.report.console import short
from jobs.report.page import _tasks, flow_of
from jobs.report.tables import COLOUR, events_html, metric_table, value_html
from jobs.small_cells import Cell
from ttepretrain.evaluation.table import DEMOGRAPHICS, ORACLE, Metric
from ttepretrain.testing import random_task_set
from ttepretrain.training.config import ARMS, STARTS


def metric(n, events, value=0.7, baseline=None):
    return Metric("held_out", "tte", baseline, "cox", "edema", "harrell_c", None, value, 0.6, 0.8, n, events, None)


def test_every_arm_has_a_colour_of_its_own():
    assert set(COLOUR) == {*ARMS, *STARTS, DEMOGRAPHICS, ORACLE}
    assert len(set(COLOUR.values())) == len(COLOUR)


def test_counts_below_eleven_and_values_that_rest_on_them_are_hidden():
    assert events_html(metric(300, 11), 11) == "11"
    assert events_html(metric(300, 10), 11) == "&lt; 11"
    assert ".70" in value_html(metric(300, 11), 11)
    assert ".70" not in value_html(metric(300, 10), 11)
    assert ".70" in value_html(metric(300, 10), 5)
    assert "<td class='v'>&lt; 11</td>" in metric_table([metric(10, 4)], "harrell_c", 11)


def test_the_complement_does_not_tell_a_small_cell():
    assert events_html(metric(300, 289), 11) == "289"
    assert events_html(metric(300, 295), 11) == "&gt; 289"


def test_what_became_of_the_studies_is_one_division_without_small_cells():
    summary = {
        "splits": {"ready": {"train": 140, "tuning": 30, "held_out": 70}},
        "labels": {"studies": {"NO_SUBJECT": 3, "OUTSIDE_OBSERVATION": 0, "NO_FOLLOW_UP": 4}},
        "quarantine": {"CRC": 2},
    }
    # 9 are left out or refused: with 30 of tuning
    together = ("used: tuning", "left out: no record in the EHR", "left out: no follow-up after the blackout")
    assert flow_of(summary, 11) == [
        Cell(("used: train",), 140),
        Cell(("used: held-out",), 70),
        Cell((*together, "refused: CRC"), 39),
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.714, ".71"), (-0.034, "-.03"), (1.2, "1.20"), (-0.001, ".00"), (0.999, "1.00"), (-1.5, "-1.50")],
)
def test_short_numbers(value, text):
    assert short(value) == text


def test_a_value_that_is_not_there_is_a_dash_with_its_reason():
    row = replace(metric(50, 20), value=math.nan, lo=math.nan, hi=math.nan, reason="no comparable pairs")
    assert "no comparable pairs" in value_html(row, 11)


def test_texts_of_health_records_are_no_markup_and_turn_no_line(tmp_path):
    tasks = random_task_set(np.random.default_rng(0), 2)
    hostile = replace(tasks.tasks[0], code="A/<img src=x>", description="</td><script>alert(1)</script>\x1b[2J\u202e")
    replace(tasks, tasks=(hostile, tasks.tasks[1])).save(tmp_path / "tasks.json")
    page = _tasks(tmp_path / "tasks.json", 11)
    assert "A/&lt;img src=x&gt;</td><td>&lt;/td&gt;&lt;script&gt;alert(1)&lt;/script&gt;\\x1b[2J\\u202e</td>" in page
    assert "<script" not in page
