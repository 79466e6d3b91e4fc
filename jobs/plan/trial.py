"""What the volumes of a run would cost, from a few scans that are really prepared."""

from __future__ import annotations

import itertools
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.given.study import Study, resolve_image
from data.quarantine import Quarantined
from data.volumes.prepare_study import prepare_study
from ttepretrain.errors import BadStudy
from ttepretrain.volume.spec import VolumeSpec

SEED = 0  # of the sample of scans
_tried = itertools.count()  # by this worker


@dataclass(frozen=True)
class Trial:
    """One scan that was prepared."""

    seconds: float  # of one worker
    first: bool  # of its worker, which had to start
    num_bytes: int | None  # of the cached volume; None: refused
    code: str | None  # reason code of a refused one


def absent_images(studies: Sequence[Study], root: Path) -> dict[str, int]:
    """How many images are not where the table says, by reason code."""
    codes = {"OUTSIDE_ROOT": 0, "NOT_FOUND": 0}
    for study in studies:
        try:
            codes["NOT_FOUND"] += not resolve_image(root, study.image).exists()
        except BadStudy as refusal:
            codes[refusal.code] += 1
        except OSError:  # a name that no file can have
            codes["NOT_FOUND"] += 1
    return codes


def sample(studies: Sequence[Study], count: int) -> list[Study]:
    """`count` of the studies, or all where there are fewer; the same ones for the same table."""
    return random.Random(SEED).sample(studies, min(count, len(studies)))


def try_study(study: Study, root: Path, cache: Path, spec: VolumeSpec) -> Trial:
    """prepare_study, timed. Imports are left out: every worker pays for them once."""
    from ttepretrain.volume import nifti, preprocess  # noqa: F401
    from ttepretrain.volume.dicom import reader  # noqa: F401

    first, start = next(_tried) == 0, time.perf_counter()
    result = prepare_study(study, root, cache, spec)
    seconds = time.perf_counter() - start
    if isinstance(result, Quarantined):
        return Trial(seconds, first, None, result.code)
    return Trial(seconds, first, (cache / f"{result.content_key}.b2nd").stat().st_size, None)


def volume_plan(trials: Sequence[Trial], num_images: int, num_workers: int) -> dict:
    """Hours and bytes of all `num_images` scans, if they are like those tried."""
    seconds = [trial.seconds for trial in trials if not trial.first] or [trial.seconds for trial in trials]
    sizes = [trial.num_bytes for trial in trials if trial.num_bytes is not None]
    return {
        "images": num_images,
        "sampled": len(trials),
        "usable": len(sizes),
        "refused": sorted({trial.code for trial in trials if trial.code is not None}),
        "seconds_per_scan": _spread(seconds),
        "bytes_per_volume": _spread(sizes) if sizes else None,
        "workers": num_workers,
        "hours": statistics.mean(seconds) * num_images / num_workers / 3600,
        "bytes": round(sum(sizes) / len(trials) * num_images),
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"lowest": min(values), "mean": statistics.mean(values), "highest": max(values)}
