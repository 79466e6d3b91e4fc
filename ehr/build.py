"""Labels of all studies from an EHR folder: a survey of the files, then a pass over shards of subjects.

survey   which subjects, codes and rows each file holds; its events as integers -> code index, ontology, shards
count    prevalence and train events of every code; covariates, phenotypes      -> task choice
rows     label rows of every study, from what `count` left of it                -> bins and rates from the train rows
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl

from ehr.choice.bins import EventTimes, bin_edges, train_event_times
from ehr.choice.choice import all_patient_bits, excluded_codes, train_candidates
from ehr.choice.frozen import frozen_choice, frozen_tasks
from ehr.choice.referred import referred_codes, spelled_otherwise
from ehr.choice.tasks import choose_tasks
from ehr.codes.codes import CodeIndex, index_codes
from ehr.codes.ontology import Ontology, read_ontology
from ehr.codes.spelling import spelling_counts
from ehr.config import EhrConfig
from ehr.followup import extract_end_us, fixed_end_us, outside, quiet_days, read_periods, with_period_end
from ehr.labels import with_lists
from ehr.passes.cells import Closure
from ehr.passes.count import ShardCounts, count_shard
from ehr.passes.scratch import scratch_bytes
from ehr.passes.shard import Rules
from ehr.passes.survey import Survey, file_groups, plan_shards, survey_files, surveyed
from ehr.phenotype_file import Phenotype, read_phenotypes, under
from ehr.phenotypes import match_codes, phenotype_rows, rule_table
from ehr.schema import ADMISSION, BIRTH, COVARIATES, DAY_US, DEATH, DISCHARGE, LABELS, PHENOTYPES, SEX
from ehr.sources.id_forms import look
from ehr.sources.meds import MedsSource
from ehr.timeline import with_index
from ttepretrain.errors import BadDataError
from ttepretrain.tasks import Task, TaskSet

MapShards = Callable[[Callable, list], list]


@dataclass(frozen=True)
class LabelResult:
    tasks: TaskSet
    labels: pl.DataFrame  # schema.LABELS, in the order of the studies
    covariates: pl.DataFrame  # schema.COVARIATES, the same rows
    phenotypes: pl.DataFrame  # schema.PHENOTYPES
    event_times: EventTimes
    counts: dict  # cohort flow and what was dropped, for summary.json


def build_labels(
    ehr_folder: Path,
    ontology_folder: Path | None,
    studies: pl.DataFrame,
    config: EhrConfig,
    map_shards: MapShards,
    fitted_on: dict,
    scratch: Path | None = None,
) -> LabelResult:
    """Tasks, fitted on the train studies or frozen (`ehr.tasks`), and labels of every study that has follow-up.

    studies: study_id, subject_id, study_time (us), date_only (bool), split. map_shards(function, items) -> results in
    item order; functions and items are picklable. fitted_on is copied into the TaskSet. scratch: an empty folder
    that all workers see, for 6 bytes per event and more (None: a temporary one of this machine).
    Raises ConfigError, IntegrityError or BadDataError (nothing left to label).
    """
    source = MedsSource(Path(ehr_folder), config.timezone, config.date_only)
    frozen = frozen_tasks(config)
    phenotypes = under(config, read_phenotypes(Path(config.phenotypes)))
    studies = with_index(studies.with_row_index("study")).with_columns(train=pl.col("split") == "train")
    studies = with_period_end(studies, read_periods(Path(ehr_folder), config))
    with TemporaryDirectory() if scratch is None else nullcontext(scratch) as folder:
        survey = _survey(source, studies, Path(folder), map_shards)
        ontology, index = _codes(Path(ehr_folder), ontology_folder, survey, referred_codes(phenotypes, config))
        codes_of, matched, unmatched = _phenotype_codes(phenotypes, index)
        extract_end = extract_end_us(survey.last_times, studies)
        rules = _rules(Path(folder), index, rule_table(matched, codes_of), survey, extract_end, config)
        placed = studies.select("study", "subject_id", "index", "index_last", "period_end", "train")
        shards = plan_shards(survey.subjects, placed)
        counted = map_shards(partial(count_shard, rules=rules), shards)
        excluded = excluded_codes(index, phenotypes, codes_of, config)
        if frozen is None:
            candidates = train_candidates(index, counted, studies, survey.subjects)
            bits = partial(all_patient_bits, rules=rules, shards=shards, map_shards=map_shards)
            chosen, task_counts = choose_tasks(candidates, excluded, rules.death, config, bits)
        else:
            chosen, task_counts = frozen_choice(frozen, index, excluded)
        most_scratch = scratch_bytes(Path(folder))
        people, outcome = _assembled(counted, studies)
        rows = with_lists(people, Path(folder), shards, index.names["name"], chosen["code"].to_numpy())
    labels, covariates = _tables(rows)
    _refuse_nothing(labels, chosen, task_counts)
    event_times = train_event_times(labels, config.recurrence)
    return LabelResult(
        frozen if frozen is not None else _task_set(chosen, event_times, index, config, fitted_on),
        labels,
        covariates,
        phenotype_rows(outcome, matched).select(pl.col(name).cast(dtype) for name, dtype in PHENOTYPES.items()),
        event_times,
        {
            "studies": _flow(studies, survey, labels) | _odd(counted, "studies"),
            "subjects": _odd(counted, "subjects") | {"after_extract": survey.subjects_after(rules.extract_end_us)},
            "events": survey.counts
            | source.file_counts()
            | _odd(counted, "events")
            | {"placeholder_codes": _commonest(survey.placeholders)},
            # of the one rule by which a late record of anybody moves the end of all
            "quiet_days": quiet_days(survey.last_times, extract_end) if config.followup == "death" else 0,
            "cutoff_days_after_extract": (rules.extract_end_us - extract_end) // DAY_US,
            "codes": _code_counts(index, ontology),
            "tasks": task_counts,
            "exclude_unmatched": match_codes(config.exclude or [], index)[1],
            "phenotypes_without_rows": sorted(set(phenotypes) - set(matched)),
            "phenotypes_unmatched": unmatched,
            "spelled_otherwise": spelled_otherwise(phenotypes, config, index),
            "shards": len(shards),
            "scratch_bytes": most_scratch,
        },
    )


def _survey(source: MedsSource, studies: pl.DataFrame, scratch: Path, map_shards: MapShards) -> Survey:
    if not len(studies):
        raise BadDataError("no study to label; the study table has no usable row")
    subjects = studies.group_by("subject_id").agg(pl.col("train").any()).sort("subject_id")
    look_at = partial(survey_files, source=source, subjects=subjects, scratch=scratch)
    survey = surveyed(map_shards(look_at, file_groups(source)))
    if not len(survey.subjects):
        ours, theirs = look(studies["subject_id"]), look(survey.last_times["subject_id"])
        raise BadDataError(
            "no study's subject is in the EHR; subject_id must mean the same in both: the ids of the studies are "
            f"{ours}, those of the EHR {theirs}"
        )
    if not survey.last_times["last"].count():
        raise BadDataError("no event of the EHR has a time; labels need to know when each event happened")
    return survey


def _codes(
    ehr_folder: Path, ontology_folder: Path | None, survey: Survey, referred: list[str]
) -> tuple[Ontology, CodeIndex]:
    starts = pl.concat([survey.codes["code"], pl.Series(referred, dtype=pl.String)])
    ontology = read_ontology(ehr_folder, ontology_folder, starts)
    return ontology, index_codes(survey.codes, ontology, referred)


def _phenotype_codes(
    phenotypes: dict[str, Phenotype], index: CodeIndex
) -> tuple[dict[str, pl.Series], dict[str, Phenotype], dict[str, list[str]]]:
    """Code numbers of every phenotype, the phenotypes with a code in the data, and the patterns without one."""
    found = {name: match_codes(phenotype.codes, index) for name, phenotype in phenotypes.items()}
    codes_of = {name: codes for name, (codes, _) in found.items()}
    # "no event" would be no answer where the data never use the code
    matched = {name: p for name, p in phenotypes.items() if codes_of[name].is_in(index.seen.implode()).any()}
    return codes_of, matched, {name: missing for name, (_, missing) in found.items() if missing}


def _refuse_nothing(labels: pl.DataFrame, chosen: pl.DataFrame, task_counts: dict) -> None:
    if not len(labels):
        raise BadDataError("no study has follow-up after its blackout; check study_time against the EHR's times")
    if not len(chosen):
        raise BadDataError(f"no code can become a task ({task_counts}); lower ehr.min_events or ehr.min_patients")


def _odd(counted: list[ShardCounts], of: str) -> dict[str, int]:
    return {key: sum(part.odd[of][key] for part in counted) for key in counted[0].odd[of]}


def _code_counts(index: CodeIndex, ontology: Ontology) -> dict:
    known = {"all": len(index.names), "undescribed": index.undescribed, "cyclic": index.cyclic}
    held = index.names.filter(pl.col("code").is_in(index.seen.implode()))["name"]
    known |= {"icd_parents": ontology.icd, "icd_without_parent": ontology.icd_without_parent}
    return known | {"in_tables": spelling_counts(held, ontology.named)}


def _rules(
    scratch: Path, index: CodeIndex, phenotypes: pl.DataFrame, survey: Survey, extract_end: int, config: EhrConfig
) -> Rules:
    fixed_end = fixed_end_us(config, survey.latest_us)
    return Rules(
        scratch=scratch,
        date_only=config.date_only,
        names=index.names["name"],
        closure=Closure.of(index.closure, len(index.names)),
        birth=index.number(BIRTH),
        death=index.number(DEATH),
        sexes=_sexes(index.names),
        admissions=index.starting_with(ADMISSION),
        discharges=index.starting_with(DISCHARGE),
        blackout_us=round(config.blackout_days * DAY_US),
        fixed_end_us=fixed_end,
        # who gives a day says that the extract reaches it
        extract_end_us=max(extract_end, fixed_end or 0) if config.followup == "cutoff" else extract_end,
        until_last=config.followup == "observation_period" and config.period_end == "last_event",
        incident=config.recurrence == "incident",
        phenotypes=phenotypes,
    )


def _sexes(names: pl.DataFrame) -> pl.DataFrame:
    sex = pl.col("name").str.extract(SEX).str.to_uppercase()
    return names.select("code", sex=sex).drop_nulls()


def _commonest(codes: pl.DataFrame) -> dict[str, int]:
    """Rows of the twenty codes with the most, in that order. codes: code, rows."""
    return dict(codes.sort("rows", "code", descending=[True, False]).head(20).iter_rows())


def _assembled(counted: list[ShardCounts], studies: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """People and outcomes of all shards in the order of the studies, under their ids."""
    ids = studies.select("study", "study_id", "subject_id", "split", "study_time", index_time="study_time")
    return tuple(
        pl.concat([getattr(part, name) for part in counted]).sort(keys).join(ids, on="study", maintain_order="left")
        for name, keys in (("people", ["study"]), ("outcomes", ["study", "phenotype"]))
    )


def _tables(rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """schema.LABELS and schema.COVARIATES of the same rows."""
    if rows["study_id"].is_sorted():
        rows = rows.with_columns(pl.col("study_id").set_sorted())  # who sorts again gets no copy of the lists
    return rows.select(pl.col(name).cast(dtype) for name, dtype in LABELS.items()), rows.select(list(COVARIATES))


def _task_set(
    chosen: pl.DataFrame, event_times: EventTimes, index: CodeIndex, config: EhrConfig, fitted_on: dict
) -> TaskSet:
    named = chosen.join(index.names, on="code", how="left", maintain_order="left")
    named = named.join(index.candidates, on="code", how="left", maintain_order="left")
    death = named["name"].index_of(DEATH)
    table = named.select(
        pl.col("description").fill_null(""), "prevalence", "score", "events", "patients",
        code="name", rate_per_day=pl.col("events") / pl.col("days_at_risk"),
    )  # fmt: skip
    return TaskSet(
        tasks=tuple(Task(**row) for row in table.iter_rows(named=True)),
        bin_edges_days=bin_edges(event_times, config.num_bins),
        blackout_days=config.blackout_days,
        recurrence=config.recurrence,
        death_task=death,
        min_patients=config.min_patients,
        fitted_on=fitted_on,
    )


def _flow(studies: pl.DataFrame, survey: Survey, labels: pl.DataFrame) -> dict:
    """How many studies came in, left by which reason, and stay in which split."""
    known = studies.join(survey.subjects, on="subject_id", how="semi")
    unobserved = known.filter(outside()).height
    return {
        "given": len(studies),
        "date_only": int(studies["date_only"].sum()),
        "NO_SUBJECT": len(studies) - len(known),
        "OUTSIDE_OBSERVATION": unobserved,
        "NO_FOLLOW_UP": len(known) - unobserved - len(labels),
        "labelled": len(labels),
        "labelled_subjects": labels["subject_id"].n_unique(),
        **{f"labelled_{split}": count for split, count in sorted(labels["split"].value_counts().iter_rows())},
        "subjects_without_study": len(survey.last_times) - survey.subjects["subject_id"].n_unique(),
    }
