"""Studies and EHR to `prepared/`: survival labels, the volume cache, keys, and what became of every study.

input.studies -> splits -> keys -+-> labels (one task per EHR shard) -+-> tables -> summary -> manifest
                                 +-> volumes (one task per study)   --+
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from data.progress import progress
from jobs.config import RunConfig, run_parser
from jobs.inputs import Inputs, check_inputs, find_inputs, read_inputs
from jobs.provenance import now, provenance
from ttepretrain.config import dump_config, load_config, require
from ttepretrain.errors import ConfigError, exit_with
from ttepretrain.files import TEMPORARY, replacing, sha256_of, write_json
from ttepretrain.lock import folder_lock
from ttepretrain.log import log

if TYPE_CHECKING:  # they import polars, which is not needed to answer a typo
    import polars as pl

    from data.given.study_table import StudyTable
    from data.labels.stage import LabelStage
    from data.prepared.schema import Table
    from data.quarantine import Quarantine
    from data.volumes.prepare_study import PreparedVolume

PACKAGES = ["ttepretrain", "numpy", "torch", "polars", "pyarrow", "blosc2", "nibabel", "pydicom", "ray"]
ALWAYS = ("config.yaml", "keys.parquet", "quarantine.parquet", "salt")  # of the files that are written first


def main(arguments: list[str]) -> None:
    parser = run_parser("jobs.prepare", "Make survival labels and cached volumes from studies and health records.")
    parser.add_argument("--plan", action="store_true", help="report what the run would make and cost, then stop")
    parser.add_argument("--json", type=Path, metavar="FILE", help="with --plan: write its numbers to this file")
    parser.add_argument("--scans", type=int, default=8, metavar="N", help="with --plan: scans to try (default: 8)")
    parsed = parser.parse_intermixed_args(arguments)
    if parsed.json and not parsed.plan:
        parser.error("--json belongs to --plan")
    config = load_config(RunConfig, parsed.config, parsed.overrides)
    inputs = find_inputs(config)
    if parsed.plan:
        require(parsed.scans >= 1, "--scans", parsed.scans, "must be at least 1")
        if parsed.json and not parsed.json.absolute().parent.is_dir():
            raise ConfigError(f"--json: the folder {parsed.json.absolute().parent} does not exist")
        from jobs.plan.show import show_plan

        show_plan(config, inputs, parsed.scans, parsed.json)
        return
    folder = open_folder(config.prepared_folder)
    with folder_lock(folder):
        prepare(config, inputs, folder)


def open_folder(folder: Path) -> Path:
    """The protected output folder, made or taken over; raises ConfigError when it is something else."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        (folder / "volumes").mkdir(exist_ok=True)
        strangers = [path.name for path in folder.iterdir() if path.name != "volumes" and path.name[0] != "."]
    except OSError as error:
        raise ConfigError(f"{folder} cannot be used ({error.strerror}); change paths.root or name") from None
    if strangers and "salt" not in strangers:
        raise ConfigError(f"{folder} holds files of something else; change paths.root or name, or empty it")
    return folder


def prepare(config: RunConfig, inputs: Inputs, folder: Path) -> None:
    """Fill the folder. Every file is written whole and manifest.json last: killed anywhere, it can be run again."""
    # polars, and what needs it: only now, so that a wrong key or path is answered at once
    from data.prepared import schema
    from data.prepared.table_file import write_table
    from data.prepared.write import quarantine_table, write_prepared
    from data.quarantine import Quarantine
    from data.subjects.keys import key_table, open_salt
    from data.workers import ray_session

    settings = config.prepare
    for leftover in list(folder.rglob(TEMPORARY)):
        leftover.unlink()
    salt = open_salt(folder, Path(settings.salt_file) if settings.salt_file else None)
    with replacing(folder / "config.yaml") as temporary:
        dump_config(config, temporary)
    origin = provenance(PACKAGES) | {"started": now(), "finished": None, "inputs": {}}
    write_json(folder / "provenance.json", origin)

    studies, split_origins = read_inputs(config, inputs)
    given = check_inputs(config, inputs, studies.frame)
    keys = key_table(salt, studies.frame)
    write_table(folder, schema.KEYS, keys)
    quarantine = Quarantine(studies.num_studies, settings.max_bad_fraction)
    labels = volumes = None
    try:
        quarantine.extend(studies.refused)
        with ray_session(settings.num_cpus):
            if "labels" in settings.stages:
                labels = prepare_labels(config, inputs, folder, studies, salt, given)
            if "volumes" in settings.stages:
                volumes = prepare_volumes(config, inputs, folder, studies, quarantine)
    finally:
        write_table(folder, schema.QUARANTINE, quarantine_table(quarantine.records))

    tables = output_tables(studies, keys, labels, volumes)
    summary = summarise(config, studies, split_origins, quarantine, labels, tables)
    files = [*ALWAYS, *(labels.files if labels else ())]
    write_prepared(folder, tables, files, config.volume.resolve(), summary)
    origin["inputs"] = {"table": sha256_of(inputs.studies)} | (labels.inputs if labels else {})
    write_json(folder / "provenance.json", origin | {"finished": now()})
    print("ready: " + ", ".join(f"{split} {count}" for split, count in summary["splits"]["ready"].items()))


def prepare_labels(
    config: RunConfig, inputs: Inputs, folder: Path, studies: StudyTable, salt: bytes, given: pl.DataFrame | None
) -> LabelStage:
    """The label files of the folder, made or reused. given: rows of the label tables."""
    from data.labels.stage import make_labels
    from data.subjects.keys import fitted_on
    from data.workers import map_shards

    assert inputs.ehr is not None, "find_inputs asks for it"
    fit = fitted_on(salt, studies.frame.filter(split="train")["subject_id"])
    labels = make_labels(folder, inputs.ehr, inputs.ontology, studies.frame, config.ehr, fit, map_shards, given)
    log.info("labels of %d studies%s", labels.labels.height, ", reused" if labels.reused else "")
    return labels


def prepare_volumes(
    config: RunConfig, inputs: Inputs, folder: Path, studies: StudyTable, quarantine: Quarantine
) -> list[PreparedVolume]:
    """Cached volume of every study with an image that is not refused; the refused go to `quarantine`."""
    from data.quarantine import Quarantined
    from data.volumes.prepare_study import STAGE, PreparedVolume, prepare_study
    from data.workers import WorkerDied, map_bounded

    images, volumes = studies.images, []
    work = partial(
        prepare_study,
        root=inputs.studies.parent,
        cache=folder.absolute() / "volumes",
        spec=config.volume.resolve(),
        trust_mtime=config.prepare.trust_mtime,
    )
    with progress("volumes", len(images)) as advance:
        for index, result in map_bounded(work, images):
            if isinstance(result, WorkerDied):
                detail = "its worker died twice: out of memory, or a crash of a decoder"
                result = Quarantined(images[index].study_id, STAGE, "WORKER_DIED", detail)
            if isinstance(result, PreparedVolume):
                volumes.append(result)
            else:
                quarantine.extend([result])
            advance()
    reused = sum(volume.reused for volume in volumes)
    bad = len(quarantine.records)
    log.info("volumes of %d studies, %d from the cache; %d bad studies", len(volumes), reused, bad)
    return volumes


def output_tables(
    studies: StudyTable, keys: pl.DataFrame, labels: LabelStage | None, volumes: list[PreparedVolume] | None
) -> dict[Table, pl.DataFrame]:
    """The tables that join what the stages made; raises LeakageError for one scan in two splits."""
    from data.prepared import schema
    from data.prepared.write import covariate_table, duplicates, volume_table
    from data.volumes.acquisition_times import acquisition_times

    tables = {}
    if volumes is not None:
        tables[schema.VOLUMES] = volume_table(volumes, duplicates(volumes, keys))
        tables[schema.ACQUISITION_TIMES] = acquisition_times(studies.frame, volumes)
    if labels is not None:
        tables[schema.COVARIATES] = covariate_table(labels.covariates, studies, volumes or [])
    return tables


def summarise(
    config: RunConfig,
    studies: StudyTable,
    split_origins: dict[str, int],
    quarantine: Quarantine,
    labels: LabelStage | None,
    tables: dict[Table, pl.DataFrame],
) -> dict:
    """Content of summary.json. Warns where the images' times contradict the study table's."""
    from data.prepared import schema
    from data.prepared.write import study_counts, volume_counts
    from data.volumes.acquisition_times import time_audit, warning

    volumes = tables.get(schema.VOLUMES)
    made = [table for table in (labels.labels if labels else None, volumes) if table is not None]
    summary = study_counts(studies, split_origins, quarantine.counts(), made)
    if labels is not None:
        summary["labels"] = labels.counts
    if volumes is not None:
        summary["volumes"] = volume_counts(volumes)
        summary["acquisition_times"] = time_audit(tables[schema.ACQUISITION_TIMES], config.ehr.blackout_days)
        if doubt := warning(summary["acquisition_times"]):
            log.warning("%s", doubt)
    return summary


if __name__ == "__main__":
    exit_with(main, "prepare")
