"""Labels of all studies from an EHR folder: a survey of the files, then two passes over shards of subjects.

survey   which subjects, codes and rows each file holds             -> code index, ontology, shards of subjects
count    prevalence and train events of every code                  -> task choice
label    label rows, covariates, phenotypes of every study          -> bins and rates from the train rows
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import polars as pl

from ehr.bins import bin_edges, risk_set, task_table
from ehr.codes import CodeIndex, index_codes
from ehr.config import EhrConfig
from ehr.followup import fixed_end_us
from ehr.labels import ShardCounts, ShardLabels, count_shard, label_shard
from ehr.ontology import read_ontology
from ehr.phenotypes import Phenotype, match_codes, phenotype_rows, read_phenotypes, rule_table
from ehr.schema import ADMISSION, BIRTH, COVARIATES, DAY_US, DEATH, DISCHARGE, LABELS, PHENOTYPES, SEX
from ehr.shard import Rules
from ehr.sources.meds import MedsSource
from ehr.survey import plan_shards, survey_file, surveyed
from ehr.tasks import choose_tasks, entropy_score, parent_prevalence
from ehr.timeline import with_index
from ttepretrain.errors import BadDataError
from ttepretrain.tasks import TaskSet

MapShards = Callable[[Callable, list], list]


@dataclass(frozen=True)
class LabelResult:
    tasks: TaskSet
    labels: pl.DataFrame  # schema.LABELS, in the order of the studies
    covariates: pl.DataFrame  # schema.COVARIATES, the same rows
    phenotypes: pl.DataFrame  # schema.PHENOTYPES
    counts: dict  # cohort flow and what was dropped, for summary.json


def build_labels(
    ehr_folder: Path,
    ontology_folder: Path | None,
    studies: pl.DataFrame,
    config: EhrConfig,
    map_shards: MapShards,
    fitted_on: dict,
) -> LabelResult:
    """Tasks fitted on the train studies and labels of every study that has follow-up.

    studies: study_id, subject_id, study_time (us), date_only (bool), split. map_shards(function, items) -> results in
    item order; functions and items are picklable. fitted_on goes into the TaskSet as it is.
    Raises ConfigError, IntegrityError or BadDataError (nothing left to label).
    """
    source = MedsSource(Path(ehr_folder), config.timezone, config.date_only)
    phenotypes = read_phenotypes(Path(config.phenotypes))
    studies = with_index(studies.with_row_index("study")).with_columns(train=pl.col("split") == "train")
    subjects = studies.select("subject_id", "train").unique()
    survey = surveyed(map_shards(partial(survey_file, source=source, subjects=subjects), source.shards()))
    if not len(survey.subjects):
        raise BadDataError("no study's subject is in the EHR; subject_id must mean the same in both tables")

    referred = [*(config.exclude or []), *(code for p in phenotypes.values() for code in p.codes if code[-1] != "*")]
    index = index_codes(survey.codes, read_ontology(Path(ehr_folder), ontology_folder), referred)
    matched = {name: match_codes(phenotype.codes, index) for name, phenotype in phenotypes.items()}
    codes_of = {name: codes for name, (codes, _) in matched.items()}
    rules = _rules(source, index, rule_table(phenotypes, codes_of), survey.latest_us, config)
    shards = plan_shards(survey.subjects, studies.select("study", "subject_id", "index", "index_last", "train"))
    counted = map_shards(partial(count_shard, rules=rules), shards)
    candidates = _candidates(index, counted, _train_subjects(studies, survey.subjects))
    excluded = index.above_and_below(_excluded(index, phenotypes, codes_of, config))
    chosen, task_counts = choose_tasks(candidates, excluded, rules.death, config)
    parts = map_shards(partial(label_shard, rules=rules, tasks=_descendants(chosen, index)), shards)

    labels, covariates, outcome = _assembled(parts, studies)
    if not len(labels):
        raise BadDataError("no study has follow-up after its blackout; check study_time against the EHR's times")
    if not len(chosen):
        raise BadDataError(f"no code can become a task ({task_counts}); lower ehr.min_events or ehr.min_patients")
    odd = {key: sum(part.odd[key] for part in counted) for key in counted[0].odd}

    return LabelResult(
        _task_set(chosen, labels, index, config, fitted_on),
        labels,
        covariates,
        phenotype_rows(outcome, phenotypes, config.death_before_horizon).select(
            pl.col(name).cast(dtype) for name, dtype in PHENOTYPES.items()
        ),
        {
            "studies": _flow(studies, survey.subjects, labels),
            "events": survey.counts | odd,
            "codes": {"all": len(index.names), "undescribed": index.undescribed, "cyclic": index.cyclic},
            "tasks": task_counts,
            "phenotypes_unmatched": {name: missing for name, (_, missing) in matched.items() if missing},
            "shards": len(shards),
        },
    )


def _rules(
    source: MedsSource, index: CodeIndex, phenotypes: pl.DataFrame, latest_us: int | None, config: EhrConfig
) -> Rules:
    return Rules(
        source=source,
        names=index.names,
        closure=index.closure,
        birth=index.number(BIRTH),
        death=index.number(DEATH),
        sexes=_sexes(index.names),
        admissions=index.starting_with(ADMISSION),
        discharges=index.starting_with(DISCHARGE),
        blackout_us=round(config.blackout_days * DAY_US),
        fixed_end_us=fixed_end_us(config, latest_us),
        incident=config.recurrence == "incident",
        phenotypes=phenotypes,
    )


def _sexes(names: pl.DataFrame) -> pl.DataFrame:
    sex = pl.col("name").str.extract(SEX).str.to_uppercase()
    return names.select("code", sex=sex).drop_nulls()


def _excluded(
    index: CodeIndex, phenotypes: dict[str, Phenotype], codes_of: dict[str, pl.Series], config: EhrConfig
) -> pl.Series:
    listed = index.names.filter(pl.col("name").is_in(config.exclude or []))["code"]
    hidden = [name for name, p in phenotypes.items() if config.exclude_phenotypes or p.kind == "diagnosis"]
    twins = (match_codes(phenotypes[name].twins, index)[0] for name in hidden)
    return pl.concat([listed, *(codes_of[name] for name in hidden), *twins])


def _train_subjects(studies: pl.DataFrame, found: pl.DataFrame) -> int:
    return studies.filter("train").join(found, on="subject_id", how="semi")["subject_id"].n_unique()


def _candidates(index: CodeIndex, counted: list[ShardCounts], train_subjects: int) -> pl.DataFrame:
    """code, prevalence, score, events, patients of every candidate. A subject is in one shard: counts add up."""
    subjects, events, patients = (sum(getattr(c, name) for c in counted) for name in ("subjects", "events", "patients"))
    prevalence = subjects / max(train_subjects, 1)
    above = (index.parents[name].to_numpy() for name in ("code", "parent"))
    score = entropy_score(prevalence, parent_prevalence(prevalence, *above))
    every = pl.DataFrame({"prevalence": prevalence, "score": score, "events": events, "patients": patients})
    return every.with_row_index("code").join(index.candidates, on="code", how="semi", maintain_order="left")


def _descendants(chosen: pl.DataFrame, index: CodeIndex) -> pl.DataFrame:
    """code, task: every code that means a task."""
    tasks = chosen.select(ancestor="code").with_row_index("task")
    return index.closure.join(tasks, on="ancestor").select("code", "task")


def _assembled(parts: list[ShardLabels], studies: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """The shards' rows in the order of the studies, under the ids and columns of the schemas."""

    def rows(frames: list[pl.DataFrame], keys: list[str]) -> pl.DataFrame:
        ids = studies.select("study", "study_id", "subject_id", "split", "study_time")
        return pl.concat(frames).sort(keys).join(ids, on="study", maintain_order="left")

    labels = rows([part.labels for part in parts], ["study"]).with_columns(index_time=pl.col("study_time"))
    covariates = rows([part.covariates for part in parts], ["study"])
    outcome = rows([part.outcomes for part in parts], ["study", "phenotype"])
    labels, covariates = (
        frame.select(pl.col(name).cast(dtype) for name, dtype in schema.items())
        for frame, schema in ((labels, LABELS), (covariates, COVARIATES))
    )
    return labels, covariates, outcome


def _task_set(
    chosen: pl.DataFrame, labels: pl.DataFrame, index: CodeIndex, config: EhrConfig, fitted_on: dict
) -> TaskSet:
    train = labels.filter(pl.col("split") == "train")
    events, left_out = risk_set(train, config.recurrence)
    named = chosen.join(index.names, on="code", how="left", maintain_order="left")
    named = named.join(index.candidates, on="code", how="left", maintain_order="left")
    named = named.with_columns(pl.col("description").fill_null(""))
    death = named["name"].index_of(DEATH)
    return TaskSet(
        tasks=task_table(named, train, events, left_out, config.blackout_days),
        bin_edges_days=bin_edges(events["days"].to_numpy(), config.num_bins),
        blackout_days=config.blackout_days,
        recurrence=config.recurrence,
        death_task=death,
        fitted_on=fitted_on,
    )


def _flow(studies: pl.DataFrame, found: pl.DataFrame, labels: pl.DataFrame) -> dict:
    """How many studies came in, left by which reason, and stay in which split."""
    known = studies.join(found, on="subject_id", how="semi")
    return {
        "given": len(studies),
        "NO_SUBJECT": len(studies) - len(known),
        "NO_FOLLOW_UP": len(known) - len(labels),
        "labelled": len(labels),
        "labelled_subjects": labels["subject_id"].n_unique(),
        **{f"labelled_{split}": count for split, count in sorted(labels["split"].value_counts().iter_rows())},
    }
