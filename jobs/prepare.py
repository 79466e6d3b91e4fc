"""Studies and EHR to `prepared/`: survival labels, the volume cache, keys, and what became of every study.

input.studies -> splits -> keys -+-> labels (one task per EHR shard) -+-> tables -> manifest
                                 +-> volumes (one task per study)   --+
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.progress import progress
from jobs.config import RunConfig, run_parser
from jobs.provenance import now, provenance
from ttepretrain.config import dump_config, load_config, require
from ttepretrain.errors import BadDataError, ConfigError, ResourceError, exit_with
from ttepretrain.files import TEMPORARY, replacing, sha256_of, write_json
from ttepretrain.lock import folder_lock

if TYPE_CHECKING:  # they import polars, which is not needed to answer a typo
    from data.given.study_table import StudyTable
    from data.labels.stage import LabelStage
    from data.quarantine import Quarantine
    from data.volumes.prepare_study import PreparedVolume

PACKAGES = ["ttepretrain", "numpy", "torch", "polars", "pyarrow", "blosc2", "nibabel", "pydicom", "ray"]


@dataclass(frozen=True)
class Inputs:
    studies: Path
    ehr: Path | None
    ontology: Path | None
    splits: Path | None


def main(arguments: list[str]) -> None:
    parser = run_parser("jobs.prepare", "Align studies with timelines: labels and the volume cache.")
    parser.add_argument("--plan", action="store_true", help="only tell what the run would make and cost")
    parser.add_argument("--json", type=Path, metavar="FILE", help="of --plan: write its numbers")
    parser.add_argument("--scans", type=int, default=8, metavar="N", help="of --plan: read so many scans (default 8)")
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

        show_plan(config, read_inputs(config, inputs)[0], inputs, parsed.scans, parsed.json, map_shards)
        return
    folder = open_folder(config.prepared_folder)
    with folder_lock(folder):
        prepare(config, inputs, folder)


def find_inputs(config: RunConfig) -> Inputs:
    """Input paths, those of the run's own cohort when none is configured; raises ConfigError for one that is absent."""
    given = config.input
    studies, ehr = given.studies, given.ehr
    if studies is None and ehr is None:
        cohort = config.cohort_folder
        studies, ehr = cohort / "studies.parquet", cohort / "ehr"
        if not studies.is_file():
            raise ConfigError(f"{cohort} holds no cohort; run jobs.cohort first, or set input.studies and input.ehr")
    if studies is None:
        raise ConfigError("input.studies is needed beside input.ehr; give the table of studies")
    # absolute: on a cluster the workers run in another folder
    paths = (Path(path).absolute() if path else None for path in (studies, ehr, given.ontology, given.splits))
    inputs = Inputs(*paths)
    if "labels" in config.prepare.stages and inputs.ehr is None:
        raise ConfigError("input.ehr is needed by the labels stage; give its folder, or prepare.stages=[volumes]")
    for key, path in (("studies", inputs.studies), ("splits", inputs.splits)):
        if path is not None and not path.is_file():
            raise ConfigError(f"input.{key}: {path} is not a file; give the path of a .parquet or .csv table")
    for key, path in (("ehr", inputs.ehr), ("ontology", inputs.ontology)):
        if path is not None and not path.is_dir():
            raise ConfigError(f"input.{key}: {path} is not a folder; give the path of the data set's folder")
    return inputs


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
    from data.labels.stage import make_labels
    from data.parquet_files import write_parquet
    from data.quarantine import Quarantine
    from data.subjects.keys import fitted_on, key_table, open_salt
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
    keys = key_table(salt, studies.frame)
    write_parquet(keys, folder / "keys.parquet", mode=0o600)
    quarantine = Quarantine(studies.num_studies, settings.max_bad_fraction)
    labels = volumes = None
    try:
        quarantine.extend(studies.refused)
        with ray_session(settings.num_cpus):
            if "labels" in settings.stages:
                fit = fitted_on(salt, keys.filter(split="train")["subject_id"])
                labels = make_labels(folder, inputs.ehr, inputs.ontology, studies.frame, config.ehr, fit, map_shards)
                say(f"labels of {labels.labels.height} studies" + (", as they were" if labels.reused else ""))
            if "volumes" in settings.stages:
                volumes = prepare_volumes(
                    config, studies, inputs.studies.parent, folder.absolute() / "volumes", quarantine
                )
    finally:
        write_parquet(quarantine.frame(), folder / "quarantine.parquet")
    summary = write_outputs(config, folder, studies, split_origins, keys, labels, volumes, quarantine)
    origin["inputs"] = {"table": sha256_of(inputs.studies)} | (labels.inputs if labels else {})
    write_json(folder / "provenance.json", origin | {"finished": now()})
    say("ready: " + ", ".join(f"{split} {count}" for split, count in summary["splits"]["ready"].items()))


def read_inputs(config: RunConfig, inputs: Inputs) -> tuple[StudyTable, dict[str, int]]:
    """Studies with their splits, and how many subjects' splits came from where."""
    from data.given.study_table import read_studies
    from data.subjects.splits import assign_splits, read_splits

    table = read_studies(inputs.studies, config.ehr.date_only, config.ehr.timezone, config.input.keep_rsna)
    own = inputs.ehr / "metadata" / "subject_splits.parquet" if inputs.ehr else None
    frame, origins = assign_splits(
        table.frame,
        read_splits(inputs.splits, "input.splits") if inputs.splits else None,
        read_splits(own, "input.ehr") if own and own.is_file() else None,
        config.prepare.split_seed,
    )
    return replace(table, frame=frame), origins


def map_shards(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """[function(item) for item in items] over the workers; raises ResourceError when one item keeps killing them."""
    from data.workers import WorkerDied, map_bounded

    results = [None] * len(items)
    with progress("labels", len(items)) as advance:
        for index, result in map_bounded(function, items):
            if isinstance(result, WorkerDied):
                raise ResourceError(
                    f"the worker of EHR shard {index} died twice, probably for lack of memory; lower prepare.num_cpus"
                )
            results[index] = result
            advance()
    return results


def prepare_volumes(
    config: RunConfig, studies: StudyTable, root: Path, cache: Path, quarantine: Quarantine
) -> list[PreparedVolume]:
    """Cached volume of every study with an image that is not refused; the refused go to `quarantine`."""
    from data.quarantine import Quarantined
    from data.volumes.prepare_study import STAGE, PreparedVolume, prepare_study
    from data.workers import WorkerDied, map_bounded

    images, volumes = studies.images, []
    work = partial(
        prepare_study, root=root, cache=cache, spec=config.volume.resolve(), trust_mtime=config.prepare.trust_mtime
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
    say(f"volumes of {len(volumes)} studies, {reused} from the cache; {len(quarantine.records)} bad studies")
    return volumes


def write_outputs(
    config: RunConfig,
    folder: Path,
    studies: StudyTable,
    split_origins: dict[str, int],
    keys: Any,
    labels: LabelStage | None,
    volumes: list[PreparedVolume] | None,
    quarantine: Quarantine,
) -> dict:
    """Tables, summary and manifest of what the stages made; returns the summary."""
    from data.parquet_files import write_parquet
    from data.prepared import write as prepared
    from data.volumes import acquisition_times

    names = ["config.yaml", "keys.parquet", "quarantine.parquet", "salt", "summary.json"]
    table = None
    if volumes is not None:
        table = prepared.volume_table(volumes, prepared.duplicates(volumes, keys))
        write_parquet(table, folder / "volumes.parquet")
        times = acquisition_times.acquisition_times(studies.frame, volumes)
        write_parquet(times, folder / "acquisition_times.parquet")
        names += ["volumes.parquet", "acquisition_times.parquet"]
    if labels is not None:
        covariates = prepared.covariate_table(labels.covariates, studies, volumes or [])
        write_parquet(covariates, folder / "covariates.parquet")
        names += ["covariates.parquet", *labels.files]
    summary = prepared.summarise(studies, split_origins, labels, table, quarantine)
    if volumes is not None:
        summary["acquisition_times"] = acquisition_times.time_audit(times, config.ehr.blackout_days)
        if doubt := acquisition_times.warning(summary["acquisition_times"]):
            say(f"warning: {doubt}")
    write_json(folder / "summary.json", summary)
    if not any(summary["splits"]["ready"].values()):
        raise BadDataError("no study is left with what the stages need; summary.json and quarantine.parquet say why")
    prepared.write_manifest(folder, names, table, config.volume.resolve())
    return summary


def say(message: str) -> None:
    print(message, flush=True)


if __name__ == "__main__":
    exit_with(main, "prepare")
