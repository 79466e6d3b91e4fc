"""What the label files lack, judged from the counts of their run: warned about, or too much. A run that uses them again
says it too.
"""

from __future__ import annotations

from ehr.config import EhrConfig
from ehr.losses import judge_loss
from ehr.odd_records import warn_of_files_and_clocks, warn_of_odd_records
from ttepretrain.log import log

# Of what, out of which count, by cause: what became of them, what to do.
LOSSES = {
    ("events", "rows"): {
        "null_codes": ("rows of the events have no code", "fill their codes"),
        "placeholder_dates": (
            "rows of the events lie on a placeholder date such as 1900-01-01",
            "write their dates, or leave the time of what has none empty",
        ),
    },
    ("studies", "given"): {
        "NO_SUBJECT": ("studies have no subject in the EHR", "check that subject_id means the same in both"),
        "OUTSIDE_OBSERVATION": (
            "studies lie outside all observation periods of their subject",
            "check study_time against the periods, or use ehr.followup=last_event",
        ),
        "NO_FOLLOW_UP": (
            "studies have no follow-up after their blackout",
            "check study_time against the EHR's times (the same calendar, the same shift of dates) and ehr.followup",
        ),
    },
}


def judge_labels(counts: dict, config: EhrConfig) -> None:
    """Warn of what the label files lack, or refuse them (BadDataError). counts: of the stage, made or reused."""
    _warn_of_absent_codes(counts)
    for (of, total), causes in LOSSES.items():
        for cause, (what, remedy) in causes.items():
            judge_loss(what, counts[of][cause], counts[of][total], remedy, config.max_lost_fraction)
    studies = counts["studies"]
    if 2 * studies["without_past"] > studies["labelled"]:
        log.warning(
            f"{studies['without_past']} of {studies['labelled']} labelled studies have no record before the scan; "
            "check study_time against the EHR's times: dates shifted in one of the two alone give wrong labels"
        )
    _judge_vocabularies(counts, config.max_lost_fraction)
    if unanswered := counts.get("label_tables", {}).get("without_answer"):
        log.warning(
            f"ehr.label_tables: {', '.join(unanswered)}: no study with labels has an answer, the filled rows are about "
            "other studies"
        )
    warn_of_odd_records(counts)
    warn_of_files_and_clocks(counts, config.date_only)


def _judge_vocabularies(counts: dict, max_lost_fraction: float) -> None:
    """Of the tables that name codes as the data do, or in another spelling."""
    ontology, own = counts.get("ontology"), counts["codes"]["in_tables"]
    for place, found in (("input.ontology", ontology), ("metadata/codes.parquet", own)):
        if found is None or not found["codes_of_the_data"]:
            continue
        if found["spelled_otherwise"]:
            ours, theirs = found["such_as"]
            judge_loss(
                f"codes that the data share with {place} are spelled otherwise there, such as {ours} in the data and "
                f"{theirs} there: they have no parents and no descriptions",
                found["spelled_otherwise"], found["known"] + found["spelled_otherwise"],
                "write the codes of both alike", max_lost_fraction,
            )  # fmt: skip
        elif not found["known"] and place == "input.ontology":
            log.warning(
                f"{place}: none of the {found['codes_of_the_data']} codes in the data is in its tables; it has no "
                "effect. Codes must be vocabulary_id/concept_code, as in SNOMED/59282003"
            )


def _warn_of_absent_codes(counts: dict) -> None:
    """Warn of codes that the configuration names and the data lack: a typo, or codes of another vocabulary."""
    if counts["phenotypes_without_rows"]:
        log.warning(
            f"ehr.phenotypes: no code of {', '.join(counts['phenotypes_without_rows'])} is in the data; they get "
            "no labels. Name the codes as the data write them, or give labels through ehr.label_tables"
        )
    if counts["exclude_unmatched"]:
        log.warning(f"ehr.exclude: {', '.join(counts['exclude_unmatched'])} match no code in the data")
    if counts["spelled_otherwise"]:
        pairs = ", ".join(f"{pattern} ({code}?)" for pattern, code in list(counts["spelled_otherwise"].items())[:5])
        log.warning(
            f"{len(counts['spelled_otherwise'])} codes of ehr.phenotypes and ehr.exclude match nothing, but the data "
            f"have what they seem to mean: {pairs}; write them as the data do"
        )
