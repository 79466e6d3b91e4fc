"""How much of an input may be lost to one cause: a run warns beyond a twentieth and stops beyond a limit of its own."""

from __future__ import annotations

from ttepretrain.errors import BadDataError
from ttepretrain.log import log

WARN_FRACTION = 0.05


def judge_loss(what: str, lost: int, of: int, remedy: str, max_lost_fraction: float) -> None:
    """Warn of a large loss, stop at one beyond `max_lost_fraction` (`ehr.max_lost_fraction`).

    what: completes "87 of 100 ..."; remedy: what the user can do, in the imperative. Raises BadDataError.
    """
    if lost > max_lost_fraction * of:
        raise BadDataError(f"{lost} of {of} {what}; {remedy}, or raise ehr.max_lost_fraction to keep the rest")
    if lost > WARN_FRACTION * of:
        log.warning("%d of %d %s; %s", lost, of, what, remedy)
