"""Losses of an input: silent up to a twentieth, then a warning, beyond the limit an error."""

import pytest

from ehr.losses import judge_loss
from ttepretrain.errors import BadDataError

REMEDY = "put CONCEPT beside the tables"


def judged(lost: int, of: int, limit: float = 0.5) -> None:
    judge_loss("rows of drug_exposure have unknown concepts", lost, of, REMEDY, limit)


def test_a_twentieth_may_be_lost_in_silence(caplog):
    judged(5, 100)
    judged(0, 0)
    assert not caplog.records


def test_more_than_a_twentieth_warns_and_names_the_remedy(caplog):
    judged(6, 100)
    (message,) = caplog.messages
    assert message == f"6 of 100 rows of drug_exposure have unknown concepts; {REMEDY}"


def test_half_is_a_warning_and_more_than_half_an_error(caplog):
    judged(50, 100)
    assert len(caplog.messages) == 1
    with pytest.raises(BadDataError, match=f"^51 of 100 .*; {REMEDY}, or raise ehr.max_lost_fraction"):
        judged(51, 100)


def test_the_limit_permits_the_loss_of_everything(caplog):
    judged(100, 100, limit=1.0)
    assert len(caplog.messages) == 1
