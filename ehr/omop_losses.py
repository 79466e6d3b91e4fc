"""What the conversion of an OMOP extract lost or had to guess, judged from its counts: warned about, or too much."""

from __future__ import annotations

from ehr.losses import WARN_FRACTION, judge_loss
from ttepretrain.log import log

FEW = 10  # rows: as many never stop a run, so that an optional table of three rows does not


def judge_conversion(counts: dict, max_lost_fraction: float) -> None:
    """Warn of what matters in `labels.omop` of summary.json. BadDataError for a table that lost too much."""
    for name, count in counts["tables"].items():
        _judge_table(name, count, max_lost_fraction)
    _judge_visits(counts)


def _judge_table(name: str, count: dict, max_lost_fraction: float) -> None:
    rows, no_time, unreadable = count["rows"], count.get("no_time", 0), count["unreadable_times"]

    def judge(what: str, lost: int, of: int, remedy: str, stops: bool = True) -> None:
        limit = max_lost_fraction if stops and lost > FEW else 1.0
        judge_loss(f"rows of {name} {what}", lost, of, remedy, limit)

    read = "write times as YYYY-MM-DD[ HH:MM:SS]"
    what = f"are left out: no usable time ({unreadable} hold text that is no time, {count['placeholder_dates']} a"
    judge(f"{what} placeholder such as 1900-01-01)", no_time, rows, read, stops=name != "visit_detail")
    if unreadable > no_time:
        judge("hold a time that cannot be read", unreadable, rows, read, stops=False)
    judge(
        "have a datetime and a date that disagree", count["time_disagrees"], rows,
        "correct one of the two columns" + ("" if name == "person" else "; the date counts"),
    )  # fmt: skip
    judge(
        "are left out: their person is not in table person", count["no_person"], rows,
        "give the table person of the same extract",
    )  # fmt: skip
    unmapped, unknown = count.get("no_concept", 0), count.get("unknown_concept", 0)
    if name != "person":  # its race or ethnicity is often not recorded
        cure = "put the whole CONCEPT beside the tables, or set input.ontology to an Athena export"
        judge(
            f"are left out: no code ({unknown} have a concept that CONCEPT lacks, {unmapped} have concept 0 or none, "
            "and no source concept)",
            unmapped + unknown, rows - no_time - count["no_person"] - count["repeated_rows"],
            cure if unknown >= unmapped else "map them to concepts",
        )  # fmt: skip
    if count.get("no_end"):
        judge("have no usable end; they last until their person's last record", count["no_end"], rows,
              "write their ends", stops=False)  # fmt: skip


def _judge_visits(counts: dict) -> None:
    tables = counts["tables"]
    visits: dict = next((tables[name] for name in ("visit_occurrence", "visit_detail") if name in tables), {})
    stays = sum(tables[name]["stays"] for name in ("visit_occurrence", "visit_detail") if name in tables)
    long = counts["long_visits"]
    number = sum(row["visits"] for row in long)
    if number > WARN_FRACTION * (number + stays):
        log.warning(
            "%d visits last longer than a day and are no hospital stays (%d are), so that a readmission may be missed: "
            "%s; if they are stays, name their concepts in ehr.omop_inpatient",
            number, stays, ", ".join(f"{row['concept']} ({row['name']}): {row['visits']}" for row in long[:6]),
        )  # fmt: skip
    if visits.get("no_discharge", 0) > WARN_FRACTION * stays:
        log.warning(
            "%d of %d admissions have no usable discharge (%d ends lie more than a year after the last record); "
            "a scan after one lies in no stay",
            visits["no_discharge"], visits["no_discharge"] + stays - visits["joined_stays"], visits["late_ends"],
        )  # fmt: skip
    if visits.get("long_stays"):
        log.warning(
            "%d hospital stays last longer than a year; what lies in one is no readmission", visits["long_stays"]
        )
