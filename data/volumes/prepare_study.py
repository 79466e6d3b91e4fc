"""One study: from its image to a cached volume and a small record. Runs in the workers.

The image's files are listed twice: before they are read, and after, so that a folder that is still being filled is
refused. They are read twice: for the hash, which is all that a cached study needs, and for the voxels. The second time
they come from the system's cache of pages: a chest on a disk took 0 bytes from it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from data.given.study import Study, resolve_image
from data.quarantine import Quarantined
from data.volumes.cache import VolumeRecord, content_key, declared_cache, hash_voxels, read_record, write_volume
from data.volumes.trusted import remembered_hash, trusted_hash
from ttepretrain.errors import BadStudy
from ttepretrain.files import sha256_of
from ttepretrain.volume.checks import Reason
from ttepretrain.volume.dicom.choice import Wanted
from ttepretrain.volume.refusal import read_or_refuse, reads_files
from ttepretrain.volume.source import State, is_nifti, source_hash, source_state, source_sums
from ttepretrain.volume.spec import VolumeSpec

STAGE = "volumes"


@dataclass(frozen=True)
class PreparedVolume:
    study_id: str
    content_key: str
    checksum: str  # sha256 of the cached file
    record: VolumeRecord
    reused: bool  # it was in the cache


def prepare_study(
    study: Study, root: Path, cache: Path, spec: VolumeSpec, trust_mtime: bool = False
) -> PreparedVolume | Quarantined:
    """Cached volume of the study whose image lies below `root`, or why it is refused.

    A systematic failure refuses every study and so ends the run by the limit on bad studies; a full disk, or a cache
    that cannot be used, ends it at once.
    """
    result = read_or_refuse(_prepare, study, root, cache, spec, trust_mtime)
    if isinstance(result, BadStudy):
        return Quarantined(study.study_id, STAGE, str(result.code), result.detail)
    return result


def _prepare(study: Study, root: Path, cache: Path, spec: VolumeSpec, trust_mtime: bool) -> PreparedVolume:
    path = resolve_image(root, study.image)
    state = source_state(path)
    files, sums = [file for file, *_ in state], None
    if trust_mtime:
        content = trusted_hash(path, cache, state)
    elif study.image_sha256 is None:
        content = source_hash(path, files)
    else:
        content, sums = source_sums(files)
    target = cache / f"{content_key(content, _selected(path, study), spec)}.b2nd"
    with declared_cache(cache):
        known = read_record(target, spec.shape_DHW)
    if known is not None:
        record, checksum = known
        return PreparedVolume(study.study_id, target.stem, checksum, record, reused=True)
    if study.image_sha256 is not None and _sha256(path, sums or source_sums(files)[1]) != study.image_sha256.lower():
        raise BadStudy("HASH_MISMATCH", "the files are not those whose image_sha256 the table gives")

    from ttepretrain.volume.preprocess import preprocess_ct  # torch: only where something is to be done

    volume = preprocess_ct(path, spec, Wanted(study.series_uid, study.patient_id), files)
    read = _content_read(path, state, content, cache, trust_mtime)
    if read != content:  # the remembered hash was stale
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
        acquired=None if volume.acquired is None else volume.acquired.isoformat(),
    )
    with declared_cache(cache):
        checksum = write_volume(target, volume.hu_DHW, record)
    return PreparedVolume(study.study_id, target.stem, checksum, record, reused=False)


def _content_read(path: Path, state: State, content: str, cache: Path, trust_mtime: bool) -> str:
    """Hash of the bytes that were read since the source was in `state`; BadStudy if they changed meanwhile.

    It differs from `content` if that was a stale remembered hash, which is then corrected.
    """
    now = source_state(path)
    if not trust_mtime and now == state:
        return content
    files = [file for file, *_ in now]
    found = remembered_hash(path, cache, now) if trust_mtime else source_hash(path, files)
    if found == content or (trust_mtime and now == state and source_state(path, files) == state):
        return found
    raise BadStudy(Reason.UNREADABLE, "the files changed while they were read")


@reads_files
def _selected(path: Path, study: Study) -> str:
    """What else decides the voxels: which DICOM file stands for its series, and what the table says about the image."""
    if is_nifti(path):
        return study.image_sha256 or ""
    file = sha256_of(path) if path.is_file() else ""
    said = [study.series_uid, study.patient_id, *filter(None, [study.image_sha256])]
    return json.dumps([file, *said]) if any(said) else file


def _sha256(path: Path, sums: dict[Path, str]) -> str:
    """As `sha256sum` prints it; for a folder, the sum of its files' sums, one per line, sorted."""
    if path in sums:
        return sums[path]
    return hashlib.sha256("".join(sorted(f"{found}\n" for found in sums.values())).encode()).hexdigest()
