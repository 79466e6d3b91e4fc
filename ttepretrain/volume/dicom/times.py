"""What a DICOM header says about time. Dates (DA), times of day (TM) and moments (DT) are parsed here alone.

Older and careless files are read too: 2020.03.01 and 2020-03-01, 10:30:00, a time without its leading zero. The offset
from UTC is dropped: times stay on the scanner's clock.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta

from ttepretrain.volume.dicom.tags import Values, text

HALF_A_DAY = 43_200.0  # seconds

DATE = re.compile(r"(\d{4})([.-]?)(\d\d)\2(\d\d)", re.ASCII)
TIME = re.compile(r"(\d\d)(?::?(\d\d))?(?::?(\d\d))?(\.\d*)?", re.ASCII)
OFFSET = re.compile(r"[+-]\d{4}$", re.ASCII)  # from UTC
DIGITS = re.compile(r"\d+", re.ASCII)

# Where the acquisition of a picture is stated, best first: a DT, or a DA and a TM.
ACQUISITION = (("FrameAcquisitionDateTime",), ("AcquisitionDateTime",), ("AcquisitionDate", "AcquisitionTime"))
# Stands in where that is missing.
SERIES_OR_STUDY = (("SeriesDate", "SeriesTime"), ("StudyDate", "StudyTime"))


@dataclass(frozen=True)
class Moment:
    """A date, a time of day, or both."""

    day: date | None  # None: not stated, or no date
    seconds: float | None  # since midnight; None: not stated


def day_of(said: str) -> date | None:
    """The date of a DA value; None for anything else."""
    match = DATE.fullmatch(said)
    return _date(match) if match else None


def seconds_of(said: str) -> float | None:
    """Seconds since midnight of a TM value; None for anything else."""
    said = OFFSET.sub("", said)
    digits = DIGITS.match(said)
    match = TIME.fullmatch("0" + said if digits and len(digits[0]) in (1, 3, 5) else said)
    if not match:
        return None
    hours, minutes, seconds = (int(part or 0) for part in match.groups()[:3])
    if hours > 23 or minutes > 59 or seconds > 60:  # 60: a leap second
        return None
    return 3600 * hours + 60 * minutes + seconds + float("0" + (match[4] or ".0") + "0")


def moments(values: Values, keywords: tuple[tuple[str, ...], ...]) -> Iterator[Moment]:
    """What the header states under each of the keywords (DT, or DA and TM), in order. A bad time states nothing."""
    for names in keywords:
        if len(names) == 1:
            said = OFFSET.sub("", text(values, names[0]))
            match = DATE.match(said)
            day, clock = (_date(match), said[match.end() :]) if match else (None, "")
        else:
            day, clock = day_of(text(values, names[0])), text(values, names[1])
        seconds = seconds_of(clock)
        if (day or clock) and not (clock and seconds is None):
            yield Moment(day, seconds)


def acquired(values: Values) -> datetime | None:
    """When the picture was acquired; midnight where only a date is stated. None: nothing is."""
    for moment in moments(values, (*ACQUISITION, *SERIES_OR_STUDY)):
        if moment.day is not None:
            return datetime.combine(moment.day, time.min) + timedelta(seconds=moment.seconds or 0.0)
    return None


def acquisition_time(values: Values) -> tuple[date | None, float] | None:
    """Date, where one is stated, and seconds since midnight of the acquisition; None where no time of day is stated."""
    for moment in moments(values, ACQUISITION):
        if moment.seconds is not None:
            return moment.day, moment.seconds
    return None


def acquisition_day(values: Values) -> date | None:
    """Date of the acquisition; None where none is stated."""
    return next((moment.day for moment in moments(values, ACQUISITION) if moment.day is not None), None)


def midnight_between(seconds: Sequence[float]) -> bool:
    """Times of day of one date, or of none, that are more than half a day apart: midnight may lie between them."""
    return len(seconds) > 0 and max(seconds) - min(seconds) > HALF_A_DAY


def _date(match: re.Match[str]) -> date | None:
    try:
        return date(int(match[1]), int(match[3]), int(match[4]))
    except ValueError:
        return None
