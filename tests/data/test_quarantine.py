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


def test_the_table_does_not_depend_on_who_finished_first():
    frames = []
    for records in (bad(3), bad(3)[::-1]):
        quarantine = Quarantine(100, 0.01)
        quarantine.extend([*records, Quarantined(None, "table", "BAD_ROW", "no study_id")])
        frames.append(quarantine.frame())
    assert frames[0].equals(frames[1])
    assert quarantine.counts() == {"BAD_ROW": 1, "CRC": 3}


def test_an_empty_table_has_its_columns():
    assert Quarantine(1, 0).frame().columns == ["study_id", "stage", "code", "detail"]
