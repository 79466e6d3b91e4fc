"""One arm's encoder from `prepared/`: one process, or as many as torchrun, deepspeed or srun start.

    prepared/ -> train, tuning studies -> objective: biases, model, loss -> Trainer -> pretrain/<arm>/

Imports neither Ray nor polars: a training node has neither.
"""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path

from jobs.config import RunConfig, read_run_config, without_input_paths
from jobs.provenance import now, provenance
from ttepretrain.config import dump_config
from ttepretrain.errors import BadDataError, ConfigError, exit_with
from ttepretrain.files import replacing, sha256_of, write_json
from ttepretrain.lock import folder_lock
from ttepretrain.training.signals import StopSignals

PACKAGES = ["ttepretrain", "numpy", "torch", "deepspeed", "monai", "pyarrow", "blosc2", "safetensors"]
# These decide what the weights become; every other key may change between two starts of a run.
DECISIVE = (
    "epochs", "batch_size", "lr", "head_lr", "warmup_fraction", "weight_decay", "grad_clip", "augment", "seed",
    "head_fit_studies", "head_fit_deviation",
)  # fmt: skip
LATER = ("augment_flip", "augment_blur")  # likewise; checkpoints from before they were there are of runs without


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


def pretrain(config: RunConfig, ranks, signals: StopSignals) -> None:
    """Train to the end in the arm's folder, or go on there. Collective."""
    from jobs.objectives import objective_of
    from ttepretrain.export.write import refuse_small_counts
    from ttepretrain.training.precision import choose_precision
    from ttepretrain.training.trainer import Trainer

    folder = config.pretrain_folder(config.train.arm)
    with ExitStack() as held:
        ranks.first(lambda: held.enter_context(_locked(folder)))
        train, tuning = open_studies(config)
        refuse_small_counts(train.tasks, config.ehr.min_patients)  # now, not when the first epoch has been paid for
        objective = objective_of(config, train)
        model = objective.model.to(ranks.device)
        # One rank decides: another kind of CPU among them must not split the run.
        precision = ranks.first(
            lambda: choose_precision(config.train.precision, model, train.spec.shape_DHW, ranks.device)
        )
        supply = supply_of(config, train, tuning, ranks, precision)
        trainer = Trainer(folder, objective, config.train, supply, ranks, precision, signals)
        trainer.resume()
        if not trainer.finished:
            ranks.first(lambda: write_records(folder, config, train, tuning, trainer))
        trainer.run()


def open_studies(config: RunConfig):
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


def supply_of(config: RunConfig, train, tuning, ranks, precision: str):
    """What the trainer consumes: this rank's batches, the way to write an export, and what the run is."""
    from data.batches.loader import BatchLoader, EvaluationLoader
    from ttepretrain.export.write import write_export
    from ttepretrain.training.trainer import Supply

    settings = config.train
    share = {"rank": ranks.rank, "world": ranks.world, "device": ranks.device}
    said = {
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

    def export(folder: Path, model, facts: dict) -> None:
        write_export(
            folder, model, config.model, train.spec, train.tasks, said | facts,
            min_patients=config.ehr.min_patients, descriptions=config.export.descriptions, arm=settings.arm,
        )  # fmt: skip

    return Supply(
        num_train=len(train),
        train_batches=lambda epoch, position: BatchLoader(
            train, settings.batch_size, settings.seed, epoch=epoch, start_position=position, **share
        ),
        fit_batches=lambda: EvaluationLoader(train, settings.batch_size, most=settings.head_fit_studies, **share),
        tuning_batches=lambda: EvaluationLoader(tuning, settings.batch_size, **share),
        write_export=export,
        identity=identity_of(config, train, precision),
    )


def identity_of(config: RunConfig, train, precision: str) -> dict[str, object]:
    """Flat and JSON-like: compared with the checkpoint's, key by key."""
    from ttepretrain.export.initial_weights import initial_digest

    tasks = train.tasks
    values = {f"model.{key}": value for key, value in config.model.identity().items()}
    values["model.init_sha256"] = initial_digest(config.model)
    values |= {f"volume.{key}": value for key, value in train.spec.to_json().items()}
    values |= {f"train.{key}": getattr(config.train, key) for key in DECISIVE}
    values |= {f"train.{key}": getattr(config.train, key) or None for key in LATER}
    values |= {
        "train.precision": precision,
        "tasks.codes": f"{len(tasks.codes)} with sha256 {sha256('|'.join(tasks.codes).encode()).hexdigest()[:16]}",
        "tasks.bin_edges_days": list(tasks.bin_edges_days[:-1]),
        "tasks.blackout_days": tasks.blackout_days,
        "tasks.recurrence": tasks.recurrence,
        "data.fingerprint": train.fingerprint,
    }
    if config.train.arm == "mtl":
        from jobs.objectives import phenotype_starts

        values["data.phenotypes"] = sha256_of(train.folder / "phenotypes.parquet")
        values["data.phenotype_starts"] = phenotype_starts(config.ehr) or None
    return values


def write_records(folder: Path, config: RunConfig, train, tuning, trainer) -> None:
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
        "precision": trainer.precision,
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


def _locked(folder: Path):
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return folder_lock(folder)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be used ({error.strerror}); change paths.root or name") from None


if __name__ == "__main__":
    exit_with(main, "pretrain")
