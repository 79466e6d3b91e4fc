"""Keyed hashes that stand for studies and subjects outside `prepared/`."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from pathlib import Path

import polars as pl

from ttepretrain.errors import ConfigError
from ttepretrain.files import write_atomic

SALT_BYTES = 32
KEY_CHARACTERS = 32  # 128 bits: no collision among any number of studies


def open_salt(prepared: Path, salt_file: Path | None) -> bytes:
    """The folder's salt, made (or copied from `salt_file`) on first use, mode 0600.

    Raises ConfigError when the folder already has another one than `salt_file`: its keys would change their meaning.
    """
    path = prepared / "salt"
    given = _read_given(salt_file) if salt_file is not None else None
    if path.exists():
        salt = path.read_bytes()
        if given not in (None, salt):
            raise ConfigError(
                f"prepare.salt_file: {prepared} was made with another salt; leave the key out, or start a new folder"
            )
    else:
        salt = given or secrets.token_bytes(SALT_BYTES)
        write_atomic(path, salt, mode=0o600)
    return salt


def _read_given(path: Path) -> bytes:
    try:
        salt = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"prepare.salt_file: {path}: {error.strerror}; give the `salt` of a related folder") from None
    if len(salt) < SALT_BYTES:
        raise ConfigError(f"prepare.salt_file: {path}: {len(salt)} bytes; a salt has at least {SALT_BYTES}")
    return salt


def keyed_hash(salt: bytes, kind: str, value: object) -> str:
    """HMAC-SHA256 of one identifier. `kind` keeps the study "7" apart from the subject 7."""
    return hmac.new(salt, f"{kind}:{value}".encode(), hashlib.sha256).hexdigest()[:KEY_CHARACTERS]


def fitted_on(salt: bytes, subject_ids: Iterable[int]) -> dict:
    """What an artefact records about the subjects it was fitted on: a keyed hash of the set, and its size."""
    subjects = sorted(set(subject_ids))
    return {"hash": keyed_hash(salt, "subjects", ",".join(map(str, subjects))), "count": len(subjects)}


def key_table(salt: bytes, studies: pl.DataFrame) -> pl.DataFrame:
    """Table `keys.parquet`: study_id, subject_id, split, study_key, subject_key; sorted by study_id."""
    table = studies.select("study_id", "subject_id", "split").sort("study_id")
    return table.with_columns(
        pl.Series("study_key", [keyed_hash(salt, "study", v) for v in table["study_id"]], pl.String),
        pl.Series("subject_key", [keyed_hash(salt, "subject", v) for v in table["subject_id"]], pl.String),
    )
