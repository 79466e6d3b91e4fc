"""One arm's encoder from `prepared/`: one process, or as many as torchrun, deepspeed or srun start.

    prepared/ -> train, tuning studies -> objective: biases, model, loss -> Trainer -> pretrain/<arm>/

Imports neither Ray nor polars: a training node has neither.
"""

from __future__ import annotations

import dataclasses
from contextlib import AbstractContextManager, ExitStack
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.config import RunConfig, read_run_config, without_input_paths
from jobs.provenance import now, provenance
from ttepretrain.config import dump_config
from ttepretrain.errors import BadDataError, ConfigError, exit_with
from ttepretrain.files import replacing, sha256_of, write_json
from ttepretrain.lock import folder_lock
from ttepretrain.models.config import ModelConfig
from ttepretrain.training.config import TrainConfig
from ttepretrain.training.signals import StopSignals

if TYPE_CHECKING:  # torch takes seconds to import, and a wrong key is answered before that
    from data.prepared.opened import PreparedStudies
    from ttepretrain.models.model import ScanModel
    from ttepretrain.training.distributed import Ranks
    from ttepretrain.training.trainer import Supply, Trainer

PACKAGES = ["ttepretrain", "numpy", "torch", "deepspeed", "monai", "pyarrow", "blosc2", "safetensors"]


def main(arguments: list[str]) -> None:
    config = read_run_config(arguments, "jobs.pretrain", "Pretrain an encoder on prepared studies; resumes by itself.")
    with StopSignals() as signals:
        # torch and what needs it: only now, so that a wrong key is answered at once
        from ttepretrain.training.distributed import connect

        ranks = connect()
        try:
            pretrain(config, ranks, signals)
        finally:
            ranks.close()


def pretrain(config: RunConfig, ranks: Ranks, signals: StopSignals) -> None:
    """Train to the end in the arm's folder; resumes where that holds a checkpoint. Collective."""
    from jobs.objectives import objective_of
    from ttepretrain.export.write import refuse_small_counts
    from ttepretrain.training.precision import choose_precision
    from ttepretrain.training.trainer import Trainer

    folder = config.pretrain_folder(config.train.arm)
    with ExitStack() as held:
        ranks.first(lambda: held.enter_context(_locked(folder)))
        train, tuning = open_studies(config)
        refuse_small_counts(train.tasks, config.ehr.min_patients)  # now, not after the first epoch
        objective = objective_of(config, train)
        model = objective.model.to(ranks.device)
        # One rank decides: another kind of CPU among them must not split the run.
        precision = ranks.first(
            lambda: choose_precision(config.train.precision, model, train.spec.shape_DHW, ranks.device)
        )
        settings = config.train.resolve(config.model.encoder, precision)
        supply = supply_of(config, settings, train, tuning, ranks)
        trainer = Trainer(folder, objective, settings, supply, ranks, signals)
        trainer.resume()
        if not trainer.finished:
            ranks.first(lambda: write_records(folder, config, train, tuning, trainer))
        trainer.run()


def open_studies(config: RunConfig) -> tuple[PreparedStudies, PreparedStudies]:
    """Train and tuning studies. Raises ConfigError when they were prepared on another grid, BadDataError for none."""
    from data.prepared.opened import PreparedStudies

    train, tuning = (PreparedStudies.open(config.prepared_folder, split) for split in ("train", "tuning"))
    if config.model.norm == "batch" and config.model.init == "random":
        raise ConfigError(
            "model.norm=batch needs the statistics of loaded weights (model.init=an export); use model.norm=group"
        )
    spec = config.volume.resolve()
    if train.spec != spec:
        differing = [f.name for f in dataclasses.fields(spec) if getattr(spec, f.name) != getattr(train.spec, f.name)]
        raise ConfigError(
            f"volume.{', volume.'.join(differing)}: {config.prepared_folder} was prepared with other values; "
            "run jobs.prepare with this configuration"
        )
    for studies in (train, tuning):
        if len(studies) == 0:
            raise BadDataError(f"{config.prepared_folder} has no {studies.split} study with labels and a volume")
    return train, tuning


def supply_of(
    config: RunConfig, settings: TrainConfig, train: PreparedStudies, tuning: PreparedStudies, ranks: Ranks
) -> Supply:
    """What the trainer consumes: this rank's batches, the way to write an export, and what the run is.

    settings: `config.train`, resolved.
    """
    from data.batches.loader import BatchLoader, EvaluationLoader
    from ttepretrain.export.write import write_export
    from ttepretrain.training.trainer import Supply

    def train_batches(epoch: int, position: int) -> BatchLoader:
        return BatchLoader(
            train, settings.batch_size, settings.seed, ranks.rank, ranks.world, epoch, position, device=ranks.device
        )

    def evaluation_batches(studies: PreparedStudies, most: int | None = None) -> EvaluationLoader:
        return EvaluationLoader(studies, settings.batch_size, ranks.rank, ranks.world, most=most, device=ranks.device)

    known = {
        "synthetic": config.synthetic,
        "arm": settings.arm,
        "seed": settings.seed,
        "train_studies": len(train),
        "train_subjects": len(set(train.subject_key)),
        "follow_up_days": train.labels.follow_up_days(
            train.subject_key, train.tasks.least_patients(config.ehr.min_patients)
        ),
        "fitted_on": train.tasks.fitted_on,
        "data_fingerprint": train.fingerprint,
        **provenance(PACKAGES),
    }

    def export(folder: Path, model: ScanModel, facts: dict) -> None:
        write_export(
            folder, model, config.model, train.spec, train.tasks, known | facts,
            min_patients=config.ehr.min_patients, descriptions=config.export.descriptions, arm=settings.arm,
        )  # fmt: skip

    return Supply(
        num_train=len(train),
        train_batches=train_batches,
        fit_batches=lambda: evaluation_batches(train, settings.head_fit_studies),
        tuning_batches=lambda: evaluation_batches(tuning),
        write_export=export,
        identity=identity_of(config, settings, train),
        identity_defaults=identity_defaults(),
    )


def identity_of(config: RunConfig, settings: TrainConfig, train: PreparedStudies) -> dict[str, object]:
    """What decides the weights, flat and JSON-like: compared with the checkpoint's, key by key.

    The sections `input`, `cohort`, `prepare` and `ehr` decide by way of prepared/: the tasks and the fingerprint.
    """
    from ttepretrain.export.initial_weights import initial_digest

    tasks = train.tasks
    values = {f"model.{key}": value for key, value in config.model.identity().items()}
    values["model.init_sha256"] = initial_digest(config.model)
    values |= {f"volume.{key}": value for key, value in train.spec.identity().items()}
    values |= {f"train.{key}": value for key, value in settings.identity().items()}
    values |= {
        "tasks.codes": f"{len(tasks.codes)} with sha256 {sha256('|'.join(tasks.codes).encode()).hexdigest()[:16]}",
        "tasks.bin_edges_days": list(tasks.bin_edges_days[:-1]),
        "tasks.blackout_days": tasks.blackout_days,
        "tasks.recurrence": tasks.recurrence,
        "data.fingerprint": train.fingerprint,
    }
    if config.train.arm == "mtl":
        from jobs.objectives import phenotype_starts

        values["data.phenotypes"] = sha256_of(train.folder / "phenotypes.parquet")
        values["data.phenotype_starts"] = phenotype_starts(config.ehr)
    return values


def identity_defaults() -> dict[str, object]:
    """What a key of the identity stands for in a checkpoint that lacks it (training/identity.py)."""
    values: dict[str, object] = {f"model.{key}": value for key, value in dataclasses.asdict(ModelConfig()).items()}
    values |= {f"train.{key}": value for key, value in dataclasses.asdict(TrainConfig()).items()}
    return values | {"data.phenotype_starts": {}}


def write_records(
    folder: Path, config: RunConfig, train: PreparedStudies, tuning: PreparedStudies, trainer: Trainer
) -> None:
    """config.yaml, provenance.json and subjects.parquet of this start; all on disk before its first step."""
    import pyarrow
    import pyarrow.parquet as parquet

    with replacing(folder / "config.yaml") as temporary:
        dump_config(without_input_paths(config), temporary)
    record = provenance(PACKAGES) | {
        "started": now(),
        "resumed_from_step": trainer.state.step or None,
        "processes": trainer.ranks.world,
        "device": trainer.ranks.device.type,
        "precision": trainer.config.precision,
        "model_init_sha256": trainer.supply.identity["model.init_sha256"],
        "zero_stage": config.train.zero_stage,
        "data_fingerprint": train.fingerprint,
        "synthetic": config.synthetic,
    }
    write_json(folder / "provenance.json", record)
    seen = sorted({(key, studies.split) for studies in (train, tuning) for key in studies.subject_key})
    columns = {
        name: pyarrow.array(values, pyarrow.string()) for name, values in zip(("subject_key", "split"), zip(*seen))
    }
    with replacing(folder / "subjects.parquet") as temporary:
        parquet.write_table(pyarrow.table(columns), temporary)


def _locked(folder: Path) -> AbstractContextManager[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return folder_lock(folder)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be used ({error.strerror}); change paths.root or name") from None


if __name__ == "__main__":
    exit_with(main, "pretrain")
