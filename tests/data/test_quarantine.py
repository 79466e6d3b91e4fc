"""Bad studies are counted by reason and stop the run beyond the stated limit."""

import pytest

from data.quarantine import Quarantine, Quarantined
from ttepretrain.errors import BadDataError


def bad(count, code="CRC"):
    return [Quarantined(f"s{n:03d}", "volumes", code, "detail") for n in range(count)]


@pytest.mark.parametrize(
    ("num_studies", "fraction", "allowed"),
    [(2000, 0.01, 20), (900, 0.01, 10), (22, 0.01, 10), (20, 0.5, 10), (15, 0.01, 7), (1, 0.01, 0), (100, 0.5, 50)],
)
def test_more_than_ten_the_fraction_or_half_are_too_many(num_studies, fraction, allowed):
    quarantine = Quarantine(num_studies, fraction)
    quarantine.extend(bad(allowed))
    with pytest.raises(BadDataError, match=f"{allowed + 1} of {num_studies} studies are bad.*NOT_HU 1"):
        quarantine.extend(bad(1, "NOT_HU"))


def test_counts_are_by_reason_and_in_the_order_of_their_names():
    quarantine = Quarantine(100, 0.01)
    quarantine.extend([*bad(3), Quarantined(None, "table", "BAD_ROW", "no study_id")])
    assert list(quarantine.counts().items()) == [("BAD_ROW", 1), ("CRC", 3)]


def test_the_limit_says_why_the_studies_are_bad():
    quarantine = Quarantine(13, 0.01)
    rows = ["subject_id is empty or not a whole number"] * 9 + ["study_time is empty"] * 4
    with pytest.raises(BadDataError, match=r"BAD_ROW 13 \(subject_id is empty or not a whole number: 9; study_time"):
        quarantine.extend(Quarantined(None, "table", "BAD_ROW", detail) for detail in rows)
