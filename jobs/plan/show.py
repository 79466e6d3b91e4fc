"""`jobs.prepare --plan`: reports what a run would make and cost, before anything is spent.

study table ------------------> rows, images that are missing
labels, made and discarded ---> studies, follow-up, tasks, events, answers    -> table, JSON; exit 5 without room
a few scans, prepared --------> hours and bytes of all of them
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from data.given.study_table import StudyTable
from data.labels.overview import label_plan
from data.labels.stage import make_labels
from data.prepared import schema
from data.prepared.table_file import write_table
from data.quarantine import Quarantine
from data.subjects.keys import fitted_on, key_table, open_salt
from data.workers import WorkerDied, map_bounded, map_shards, num_workers, ray_session
from jobs.config import RunConfig
from jobs.inputs import Inputs, check_inputs, read_inputs
from jobs.plan.plan_table import publishable, size_text, table
from jobs.plan.trial import absent_images, sample, try_study, volume_plan
from ttepretrain.errors import ConfigError, ResourceError
from ttepretrain.files import write_json
from ttepretrain.lock import folder_lock
from ttepretrain.splits import SPLITS
from ttepretrain.tasks import TaskSet


def show_plan(config: RunConfig, inputs: Inputs, scans: int, json_file: Path | None) -> None:
    """Print the table, write the JSON. Raises ResourceError when the disk is short."""
    studies, _ = read_inputs(config, inputs)
    with _passing(config.folder / ".plan") as work:
        document = measure(config, studies, inputs, work, scans)
        least = least_count(config.ehr.min_patients, work, config.prepared_folder)
    shown = publishable(document, least)
    # of what is shown: the exact bytes would give away the exact number of images
    disk = disk_plan(shown, config.prepared_folder)
    shown |= {"disk": disk}
    print("\n".join(table(shown, least)), flush=True)
    if json_file:
        write_json(json_file, shown)
    require_room(disk, config.prepared_folder)


def least_count(configured: int, *folders: Path) -> int:
    """The smallest count to show: the configured one, or that of the task sets in the folders where it is larger."""
    made = [TaskSet.load(path) for folder in folders if (path := folder / "tasks.json").is_file()]
    return max([configured, *(tasks.least_patients(configured) for tasks in made)])


@contextmanager
def _passing(folder: Path) -> Iterator[Path]:
    """An empty folder in `folder`, which only its owner may open. Both are removed after the block.

    It is on the file system of the outputs, which must have room for it.
    """
    made = [path for path in folder.parents if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be used ({error.strerror}); change paths.root or name") from None
    with folder_lock(folder):
        work = folder / "work"
        shutil.rmtree(work, ignore_errors=True)  # of a plan that was killed
        work.mkdir()
        try:
            yield work.absolute()
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):  # holds what a run made meanwhile
                for path in made:
                    path.rmdir()


def measure(config: RunConfig, studies: StudyTable, inputs: Inputs, work: Path, scans: int) -> dict:
    """The exact numbers. work: an empty folder that all workers see. scans: at most so many are tried."""
    frame, images, stages = studies.frame, studies.images, config.prepare.stages
    root = inputs.studies.parent
    document = {
        "rows": {"usable": frame.height, "repeated": studies.num_repeated} | _refused(studies) | studies.inspect,
        "splits": {split: frame.filter(split=split).height for split in SPLITS},
    }
    given = check_inputs(config, inputs, frame)
    with ray_session(config.prepare.num_cpus):
        if "labels" in stages:
            assert inputs.ehr is not None, "find_inputs asks for it"
            fit = _fit(config, studies, work)
            start = time.perf_counter()
            stage = make_labels(work, inputs.ehr, inputs.ontology, frame, config.ehr, fit, map_shards, given)
            document["labels"] = label_plan(stage) | {"seconds": time.perf_counter() - start}
        if "volumes" in stages and images:
            absent = absent_images(images, root)
            without = {"no image": frame.height - len(images)} | absent
            document["images"] = {"found": frame.height - sum(without.values())} | without
            (work / "volumes").mkdir()
            attempt = partial(try_study, root=root, cache=work / "volumes", spec=config.volume.resolve())
            trials = [trial for _, trial in map_bounded(attempt, sample(images, scans))]
            if any(isinstance(trial, WorkerDied) for trial in trials):
                raise ResourceError(
                    "the worker that read a scan of the sample died twice, probably for lack of memory; lower "
                    "prepare.num_cpus"
                )
            document["volumes"] = volume_plan(trials, len(images), num_workers())
    return document


def _refused(studies: StudyTable) -> dict[str, int]:
    quarantine = Quarantine(studies.num_studies, 1.0)
    quarantine.extend(studies.refused)
    return quarantine.counts()


def _fit(config: RunConfig, studies: StudyTable, work: Path) -> dict:
    """The subjects that the run's tasks would be fitted on. Leaves keys in `work`: frozen tasks are checked by them."""
    of_run = config.prepared_folder / "salt"
    given = config.prepare.salt_file or (of_run if of_run.is_file() else None)
    salt = open_salt(work, Path(given) if given else None)
    keys = key_table(salt, studies.frame)
    write_table(work, schema.KEYS, keys)
    return fitted_on(salt, keys.filter(split="train")["subject_id"])


def disk_plan(document: dict, prepared: Path) -> dict:
    """Peak disk use of the outputs, and the free bytes; what is in `prepared` is replaced and counts as free."""
    labels, volumes = document.get("labels"), document.get("volumes")
    scratch, cache = labels["scratch_bytes"] if labels else 0, volumes["bytes"] if volumes else 0
    there = sum(path.stat().st_size for path in prepared.rglob("*") if path.is_file())
    home = next(folder for folder in prepared.absolute().parents if folder.is_dir())
    return {
        # the scratch folder is gone before the first volume is written
        "needed_bytes": (labels["bytes"] if labels else 0) + max(scratch, cache),
        "free_bytes": shutil.disk_usage(home).free + there,
    }


def require_room(disk: dict, prepared: Path) -> None:
    needed, free = (size_text(disk[key]) for key in ("needed_bytes", "free_bytes"))
    if disk["needed_bytes"] > disk["free_bytes"]:
        raise ResourceError(f"{prepared}: {needed} are needed, {free} are free; free some space, or change paths.root")
