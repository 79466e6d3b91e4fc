"""The files that the label stage leaves in `prepared/`."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from data.labels.meds_labels import write_meds_labels
from data.labels.task_figure import draw_tasks
from data.prepared import schema
from data.prepared.table_file import write_table
from ttepretrain.files import replacing, write_atomic
from ttepretrain.tasks import TaskSet

if TYPE_CHECKING:  # it imports what only the pass over the records needs
    from ehr.build import LabelResult

COVARIATES = schema.EHR_HALF.name
ALWAYS = ("tasks.json", "tasks.csv", schema.LABELS.name, schema.PHENOTYPES.name, COVARIATES)
PICTURE = "tasks.png"  # where matplotlib is installed
CSV_COLUMNS = ("code", "description", "prevalence", "score", "events", "patients", "rate_per_day")


def write_label_files(folder: Path, result: LabelResult, phenotypes: pl.DataFrame, studies: pl.DataFrame) -> list[str]:
    """Write them all; returns their names.

    phenotypes: rows of phenotypes.parquet, label tables included. studies: study_id, subject_id, study_time of all.
    """
    (folder / COVARIATES).parent.mkdir(exist_ok=True)
    with ThreadPoolExecutor(2) as beside:  # pyarrow takes most of the time, and lets the other files be made meanwhile
        tables = [
            beside.submit(write_table, folder, kind, table.sort("study_id", maintain_order=True))
            for kind, table in ((schema.EHR_HALF, result.covariates), (schema.LABELS, result.labels))
        ]
        with replacing(folder / "tasks.json") as temporary:
            result.tasks.save(temporary)
        write_atomic(folder / "tasks.csv", task_csv(result.tasks))
        write_table(folder, schema.PHENOTYPES, phenotypes.sort("study_id", maintain_order=True))
        names = [*ALWAYS, *write_meds_labels(folder, phenotypes, studies)]
        picture = draw_tasks(result.tasks, result.event_times, frozen="frozen" in result.counts["tasks"])
        (folder / PICTURE).unlink(missing_ok=True)
        if picture is not None:
            write_atomic(folder / PICTURE, picture)
            names.append(PICTURE)
        for table in tables:
            table.result()
    return names


def task_csv(tasks: TaskSet) -> str:
    """One line per task in task order; the pinned death task has no score."""
    table = pl.DataFrame([vars(task) for task in tasks.tasks])
    return table.select(CSV_COLUMNS).fill_nan(None).write_csv()
