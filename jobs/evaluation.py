"""`python -m jobs.evaluation CONFIG`: embed all splits, fit probes on train, choose on tuning, report held_out.

Writes `eval/`: embeddings.parquet, predictions.parquet, metrics.csv, metrics.json, probes.json, report.html.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jobs.config import RunConfig, read_run_config
from ttepretrain.errors import ConfigError, exit_with

if TYPE_CHECKING:  # a wrong key is answered before these have been imported
    from data.prepared.outcomes import OutcomeTable
    from ttepretrain.evaluation.table import Metric, Ranking


def main(arguments: list[str]) -> None:
    config = read_run_config(arguments, "jobs.evaluation", "Score frozen encoders with probes and write the report.")
    needed = {config.prepared_folder / "manifest.json": "prepare"}
    needed |= {folder / "export": f"pretrain ARM={folder.name}" for folder in config.trained_folders}
    for path, target in needed.items():
        if not path.exists():
            raise ConfigError(f"{path} is not there; run `make {target}` with the same configuration first")

    from data.subjects.leakage import check_leakage, refuse_overlap
    from jobs.embedding import runs_before
    from jobs.report.console import print_table
    from jobs.report.page import write_report
    from ttepretrain.lock import folder_lock

    for folder in config.trained_folders:
        check_leakage(config.prepared_folder, folder)
        for earlier in runs_before(folder):
            refuse_overlap(config.prepared_folder, earlier)
    config.eval_folder.mkdir(parents=True, exist_ok=True)
    with folder_lock(config.eval_folder):
        rows = evaluate(config)
        report = write_report(config)
    print_table(rows)
    print(f"report: {report}")


def evaluate(config: RunConfig) -> list[Metric]:
    """Metric rows of all splits; writes everything of `eval/` but the report."""
    import torch

    from data.prepared.opened import PreparedStudies
    from data.prepared.outcomes import read_outcome_table
    from jobs.embedding import embed_arms
    from ttepretrain.evaluation.bootstrap import patient_weights
    from ttepretrain.evaluation.table import score_split
    from ttepretrain.splits import SPLITS

    splits = [PreparedStudies.open(config.prepared_folder, split) for split in SPLITS]
    features = embed_arms(config, splits, "cuda" if torch.cuda.is_available() else "cpu")
    study_key_N = np.concatenate([studies.study_key for studies in splits])
    oracle_file = config.cohort_folder / "truth" / "oracle.parquet" if config.synthetic else None
    table = read_outcome_table(config.prepared_folder, study_key_N, config.eval.horizons_days, oracle_file)

    risks, missing, probes = predict(table, {"demographics": table.demographics_NF, **features})
    _write_predictions(config.eval_folder / "predictions.parquet", table, risks)
    weights_BN = patient_weights(table.subject_key_N, config.eval.bootstraps, config.eval.seed)
    rows = []
    for split in SPLITS:
        rows += score_split(split, table.split_N == split, table.outcomes, risks, missing, weights_BN)
    _write_metrics(config.eval_folder, rows, probes)
    return rows


def predict(
    table: OutcomeTable, features: Mapping[str, np.ndarray]
) -> tuple[dict[Ranking, np.ndarray], dict[Ranking, str], dict[str, dict]]:
    """Risks of all N studies per (arm, outcome index), why some are missing, and how the probes were chosen."""
    from data.progress import progress
    from ttepretrain.probe.selection import fit_probes

    risks: dict[Ranking, np.ndarray] = {}
    missing: dict[Ranking, str] = {}
    probes: dict[str, dict] = {}
    with progress("probes", len(features)) as advance:
        for arm, features_NF in features.items():
            fitted = fit_probes(features_NF, table.split_N, table.outcomes)
            risks |= {(arm, index): risk_N for index, risk_N in fitted.risks.items()}
            missing |= {(arm, index): reason for index, reason in fitted.missing.items()}
            probes[arm] = {"chosen": fitted.chosen, "dropped": fitted.dropped}
            advance()
    for index, outcome in enumerate(table.outcomes):
        if table.oracle is not None and outcome.phenotype in table.oracle:
            risks["oracle", index] = table.oracle[outcome.phenotype]
        elif table.oracle is not None:
            missing["oracle", index] = "the cohort states no true hazard for it"
    return risks, missing, probes


def _write_predictions(path: Path, table: OutcomeTable, risks: Mapping[Ranking, np.ndarray]) -> None:
    """One row per study, arm and outcome; horizon_days null = ranking score."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    from ttepretrain.evaluation.table import ORACLE
    from ttepretrain.files import replacing

    num = len(table.study_key_N)
    keys = {
        "study_key": pa.array(table.study_key_N, pa.string()),
        "subject_key": pa.array(table.subject_key_N, pa.string()),
        "split": pa.array(table.split_N, pa.string()),
    }
    order = ["study_key", "subject_key", "split", "arm", "probe", "phenotype", "horizon_days", "risk"]
    tables = []
    for (arm, index), risk_N in risks.items():
        outcome = table.outcomes[index]
        constant = {
            "arm": pa.array([arm] * num, pa.string()),
            "probe": pa.array(["none" if arm == ORACLE else outcome.probe] * num, pa.string()),
            "phenotype": pa.array([outcome.phenotype] * num, pa.string()),
            "horizon_days": pa.array([outcome.horizon_days] * num, pa.float64()),
        }
        tables.append(pa.table({**keys, **constant, "risk": pa.array(risk_N, pa.float64())}).select(order))
    if not tables:
        raise ConfigError("no outcome has enough train studies with the event for any probe; the cohort is too small")
    with replacing(path) as temporary:
        parquet.write_table(pa.concat_tables(tables), temporary, compression="zstd")


def _write_metrics(folder: Path, rows: Sequence[Metric], probes: dict[str, dict]) -> None:
    import pandas as pd

    from ttepretrain.evaluation.table import Metric
    from ttepretrain.files import write_atomic, write_json

    columns = [field.name for field in fields(Metric)]
    records = [{key: None if value != value else value for key, value in asdict(row).items()} for row in rows]
    frame = pd.DataFrame(records, columns=columns)
    write_atomic(folder / "metrics.csv", frame.to_csv(index=False).encode())
    write_json(folder / "metrics.json", records)
    write_json(folder / "probes.json", probes)


if __name__ == "__main__":
    exit_with(main, "evaluation")
