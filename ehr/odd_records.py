"""Warnings of what no true record can hold, from the counts of a run: a run that uses the labels again says it too."""

from __future__ import annotations

from ehr.losses import WARN_FRACTION
from ttepretrain.log import log

LATE_CUTOFF_DAYS = 31
QUIET_DAYS = 366
DAY_END_FRACTION = 0.01  # of the moments; by chance it is one in 1,440 where clocks show minutes


def warn_of_odd_records(counts: dict) -> None:
    """One line for each kind that there is. counts: `LabelResult.counts`."""
    for message in _messages(counts, counts["subjects"], counts["studies"]):
        log.warning(message)


def _messages(counts: dict, subjects: dict[str, int], studies: dict[str, int]) -> list[str]:
    cutoff_days_after, quiet_days = counts["cutoff_days_after_extract"], counts["quiet_days"]
    found = {
        f"{subjects['after_extract']} subjects have records ten years and more after all others: these records are "
        "left out, and follow-up ends before them": subjects["after_extract"],
        f"follow-up of {studies['capped']} studies goes on after the last day with records, and ends there": (
            studies["capped"] > WARN_FRACTION * studies["given"]
        ),
        f"ehr.cutoff_date lies {cutoff_days_after} days after the last day with records: nothing is known of the time "
        "between, which counts as time without an event": cutoff_days_after > LATE_CUTOFF_DAYS,
        f"ehr.followup=death: between two subjects' last records lie {quiet_days} days, and follow-up of all goes on "
        "until after the later one: is its date right? ehr.followup=last_event does not depend on it": (
            quiet_days > QUIET_DAYS
        ),
        f"{subjects['undated_deaths']} subjects died and no usable date says when: their mortality is unknown, and "
        "follow-up ends with their last record": subjects["undated_deaths"],
        f"{subjects['several_births']} subjects have births more than a year apart: their age is null": (
            subjects["several_births"]
        ),
        f"{studies['impossible_age']} studies have an age below 0 or above 120 years: it is null": (
            studies["impossible_age"]
        ),
        f"{subjects['several_deaths']} subjects have deaths more than 30 days apart: the earliest counts": (
            subjects["several_deaths"]
        ),
        f"{subjects['death_before_birth']} subjects died before they were born: death ends follow-up all the same": (
            subjects["death_before_birth"]
        ),
        f"{subjects['long_after_death']} of {subjects['deaths']} subjects who died have records more than a year after "
        "it: is MEDS_DEATH the day of death?": subjects["long_after_death"] > WARN_FRACTION * subjects["deaths"],
    }
    return [message for message, odd in found.items() if odd]


def warn_of_files_and_clocks(counts: dict, date_only: str) -> None:
    """Of event files that were not read, and of dates that were read as moments. counts: of the label stage."""
    events = counts["events"]
    left = [*events["unread_files"], *counts.get("nested_meds", {}).get("unread_files", [])]
    if left:
        log.warning(
            f"input.ehr: {len(left)} files look like event files and are not read: {', '.join(left[:5])}"
            f"{', ...' if len(left) > 5 else ''}; write them as *.parquet, or take them out of data/"
        )
    ends, moments = events["day_end_moments"], events["timed_moments"]
    if date_only != "day_end" and ends > DAY_END_FRACTION * moments:
        log.warning(
            f"{ends} of {moments} times of the records are 23:59:00 or 23:59:59, where some converters write dates "
            f"without a time; with ehr.date_only={date_only} they are moments, and dates of the scan's own day may "
            "become labels. Set ehr.date_only=day_end if they are dates"
        )
