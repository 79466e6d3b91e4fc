"""One study: from the image the table names to a cached volume and a small record. Runs inside the workers."""

from __future__ import annotations

import errno
import json
import time
from dataclasses import dataclass
from pathlib import Path

from data.cache import VolumeRecord, content_key, hash_voxels, read_record, write_volume
from data.manifest import resolve_image
from data.quarantine import Quarantined
from data.trusted import trusted_hash
from ttepretrain.errors import BadStudy, DeclaredError, unexpected
from ttepretrain.files import sha256_of
from ttepretrain.volume.checks import Reason
from ttepretrain.volume.choice import Wanted
from ttepretrain.volume.source import is_nifti, source_hash, source_state
from ttepretrain.volume.spec import VolumeSpec

STAGE = "volumes"
PASSING = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN)  # a network file system's bad moment
WAIT_SECONDS = (0.2, 1.0, 5.0)


@dataclass(frozen=True)
class PreparedVolume:
    study_id: str
    content_key: str
    checksum: str  # sha256 of the cached file
    record: VolumeRecord
    reused: bool  # it was in the cache


def prepare_study(
    study: tuple[str | None, ...], root: Path, cache: Path, spec: VolumeSpec, trust_mtime: bool = False
) -> PreparedVolume | Quarantined:
    """Cached volume of a (study_id, image[, series_uid, patient_id]), the image below `root`, or why it is refused.

    An exception nobody foresaw refuses this study alone, as UNEXPECTED with its type and place (never its message,
    which may hold a name); a systematic one ends the run by the limit on bad studies. A full disk ends it at once.
    """
    study_id, image, *said = study
    try:
        return _prepare(study_id, resolve_image(root, image), Wanted(*said), cache, spec, trust_mtime)
    except BadStudy as refusal:
        return Quarantined(study_id, STAGE, str(refusal.code), refusal.detail)
    except DeclaredError:
        raise
    except OSError as error:
        return Quarantined(study_id, STAGE, Reason.UNREADABLE.value, error.strerror or type(error).__name__)
    except Exception as error:
        refusal = unexpected(error)
        return Quarantined(study_id, STAGE, refusal.code, refusal.detail)


def _prepare(
    study_id: str, path: Path, wanted: Wanted, cache: Path, spec: VolumeSpec, trust_mtime: bool
) -> PreparedVolume:
    state = _patiently(source_state, path)
    content = _patiently(trusted_hash, path, cache) if trust_mtime else _patiently(source_hash, path)
    key = content_key(content, _selected(path, wanted), spec)
    target = cache / f"{key}.b2nd"
    known = read_record(target)
    if known is not None:
        record, checksum = known
        return PreparedVolume(study_id, key, checksum, record, reused=True)

    from ttepretrain.volume.preprocess import preprocess_ct  # torch: only where something is to be done

    volume = _patiently(preprocess_ct, path, spec, wanted)
    doubtful = trust_mtime or _patiently(source_state, path) != state
    if doubtful and _patiently(source_hash, path) != content:
        raise BadStudy(Reason.UNREADABLE, "the files changed while they were read")
    record = VolumeRecord(
        shape=list(volume.hu_DHW.shape),
        spacing_mm=list(volume.spacing_mm),
        affine=[float(v) for v in volume.affine.ravel()],
        flags=[str(flag) for flag in volume.flags],
        acquisition=dict(volume.acquisition),
        source_spacing_mm=[float(v) for v in volume.source_spacing_mm],
        source_hash=content,
        voxel_hash=hash_voxels(volume.hu_DHW),
    )
    return PreparedVolume(study_id, key, write_volume(target, volume.hu_DHW, record), record, reused=False)


def _selected(path: Path, wanted: Wanted) -> str:
    """What counts beside the bytes: which DICOM file stands for its series, and the series and patient of the table."""
    if is_nifti(path):
        return ""
    file = sha256_of(path) if path.is_file() else ""
    return file if wanted == Wanted() else json.dumps([file, wanted.series_uid, wanted.patient_id])


def _patiently(function, *arguments):
    """function(*arguments), tried again after a failure of the file system that may pass."""
    for wait in WAIT_SECONDS:
        try:
            return function(*arguments)
        except OSError as error:
            if error.errno not in PASSING:
                raise
            time.sleep(wait)
    return function(*arguments)
