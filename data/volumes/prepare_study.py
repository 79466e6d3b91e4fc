"""One study: from the image the table names to a cached volume and a small record. Runs inside the workers."""

from __future__ import annotations

import errno
import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path

from data.given.study_table import resolve_image
from data.quarantine import Quarantined
from data.volumes.cache import VolumeRecord, content_key, hash_voxels, read_record, write_volume
from data.volumes.trusted import remembered_hash, trusted_hash
from ttepretrain.errors import BadStudy, DeclaredError, unexpected
from ttepretrain.files import sha256_of
from ttepretrain.volume.checks import Reason
from ttepretrain.volume.dicom.choice import Wanted
from ttepretrain.volume.source import declared_os_errors, is_nifti, source_files, source_hash, source_state
from ttepretrain.volume.spec import VolumeSpec

STAGE = "volumes"
PASSING = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN)  # a network file system's bad moment
WAIT_SECONDS = (0.2, 1.0, 5.0)


@dataclass(frozen=True)
class Study:
    """A row of the study table, as far as its image goes."""

    study_id: str
    image: str  # relative to the table's folder
    series_uid: str | None = None
    patient_id: str | None = None  # as the image names the patient
    image_sha256: str | None = None

    @property
    def wanted(self) -> Wanted:
        return Wanted(self.series_uid, self.patient_id)


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
    """Cached volume of the `study` (a Study's fields) whose image lies below `root`, or why it is refused.

    An exception nobody foresaw refuses this study alone, as UNEXPECTED with its type and place (never its message,
    which may hold a name); a systematic one ends the run by the limit on bad studies. A full disk ends it at once.
    """
    study_id, image, *_ = study
    try:
        return _prepare(Study(*study), resolve_image(root, image), cache, spec, trust_mtime)
    except BadStudy as refusal:
        return Quarantined(study_id, STAGE, str(refusal.code), refusal.detail)
    except DeclaredError:
        raise
    except OSError as error:
        return Quarantined(study_id, STAGE, Reason.UNREADABLE.value, error.strerror or type(error).__name__)
    except Exception as error:
        refusal = unexpected(error)
        return Quarantined(study_id, STAGE, refusal.code, refusal.detail)


def _prepare(study: Study, path: Path, cache: Path, spec: VolumeSpec, trust_mtime: bool) -> PreparedVolume:
    state = _patiently(source_state, path)
    content = _patiently(trusted_hash, path, cache) if trust_mtime else _patiently(source_hash, path)
    target = cache / f"{content_key(content, _selected(path, study), spec)}.b2nd"
    known = read_record(target, spec.shape_DHW)
    if known is not None:
        record, checksum = known
        return PreparedVolume(study.study_id, target.stem, checksum, record, reused=True)
    if study.image_sha256 is not None and _patiently(_sha256, path) != study.image_sha256.lower():
        raise BadStudy("HASH_MISMATCH", "the files are not those whose image_sha256 the table gives")

    from ttepretrain.volume.preprocess import preprocess_ct  # torch: only where something is to be done

    volume = _patiently(preprocess_ct, path, spec, study.wanted)
    read = _content_read(path, state, content, cache, trust_mtime)
    if read != content:  # the stamp was stale
        target = cache / f"{content_key(read, _selected(path, study), spec)}.b2nd"
    record = VolumeRecord(
        shape=list(volume.hu_DHW.shape),
        spacing_mm=list(volume.spacing_mm),
        affine=[float(v) for v in volume.affine.ravel()],
        flags=[str(flag) for flag in volume.flags],
        acquisition=dict(volume.acquisition),
        source_spacing_mm=[float(v) for v in volume.source_spacing_mm],
        source_hash=read,
        voxel_hash=hash_voxels(volume.hu_DHW),
        acquired=volume.acquired and volume.acquired.isoformat(),
    )
    return PreparedVolume(
        study.study_id, target.stem, write_volume(target, volume.hu_DHW, record), record, reused=False
    )


def _content_read(path: Path, state: list[tuple], content: str, cache: Path, trust_mtime: bool) -> str:
    """Hash of the bytes read since the source was in `state`; BadStudy when they changed meanwhile.

    It differs from `content` where that came from a stamp that was stale; the stamp is right afterwards.
    """
    if not trust_mtime and _patiently(source_state, path) == state:
        return content
    found = _patiently(remembered_hash, path, cache) if trust_mtime else _patiently(source_hash, path)
    if found == content or (trust_mtime and _patiently(source_state, path) == state):
        return found
    raise BadStudy(Reason.UNREADABLE, "the files changed while they were read")


def _selected(path: Path, study: Study) -> str:
    """What counts beside the bytes: which DICOM file stands for its series, and what the table says of the image."""
    if is_nifti(path):
        return study.image_sha256 or ""
    file = sha256_of(path) if path.is_file() else ""
    said = [study.series_uid, study.patient_id, *filter(None, [study.image_sha256])]
    return json.dumps([file, *said]) if any(said) else file


def _sha256(path: Path) -> str:
    """As `sha256sum` gives it; of a folder that of its files' sums, a line each, sorted."""
    with declared_os_errors():
        if path.is_file():
            return sha256_of(path)
        sums = sorted(f"{sha256_of(file)}\n" for file in source_files(path))
        return hashlib.sha256("".join(sums).encode()).hexdigest()


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
