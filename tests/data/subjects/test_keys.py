"""Keys outside `prepared/` are HMACs with the folder's salt."""

import hashlib
import hmac
import stat

import polars as pl
import pytest

from data.subjects.keys import fitted_on, key_table, open_salt
from ttepretrain.errors import ConfigError

STUDIES = pl.DataFrame({"study_id": ["b", "7"], "subject_id": [7, 12], "split": ["train", "tuning"]})


def test_a_salt_is_made_once_and_only_its_owner_reads_it(tmp_path):
    salt = open_salt(tmp_path, None)
    assert len(salt) == 32
    assert stat.S_IMODE((tmp_path / "salt").stat().st_mode) == 0o600
    assert open_salt(tmp_path, None) == salt


def test_related_folders_share_the_salt_of_a_file(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    salt = open_salt(tmp_path / "a", None)
    assert open_salt(tmp_path / "b", tmp_path / "a" / "salt") == salt
    assert open_salt(tmp_path / "b", tmp_path / "a" / "salt") == salt


def test_a_folder_never_changes_its_salt(tmp_path):
    open_salt(tmp_path, None)
    (tmp_path / "other").write_bytes(bytes(32))
    with pytest.raises(ConfigError, match=r"prepare\.salt_file.*another salt"):
        open_salt(tmp_path, tmp_path / "other")


@pytest.mark.parametrize(("content", "message"), [(b"short", "5 bytes"), (None, "No such file")])
def test_an_unusable_salt_file_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "given").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        open_salt(tmp_path, tmp_path / "given")


def test_keys_are_hmacs_of_kind_and_id_sorted_by_study():
    salt = bytes(range(32))
    table = key_table(salt, STUDIES)
    assert table["study_id"].to_list() == ["7", "b"]
    assert table["study_key"][0] == hmac.new(salt, b"study:7", hashlib.sha256).hexdigest()[:32]
    assert table["subject_key"][1] == hmac.new(salt, b"subject:7", hashlib.sha256).hexdigest()[:32]
    assert table["study_key"][0] != table["subject_key"][1]


def test_another_salt_gives_other_keys():
    first, second = (key_table(bytes([n]) * 32, STUDIES) for n in (1, 2))
    assert not set(first["subject_key"]) & set(second["subject_key"])


def test_the_hash_of_the_fitted_subjects_is_that_of_their_set():
    salt = bytes(32)
    assert fitted_on(salt, [3, 1, 3]) == fitted_on(salt, [1, 3])
    assert fitted_on(salt, [1, 3])["count"] == 2
    assert fitted_on(salt, [1, 3])["hash"] != fitted_on(salt, [13])["hash"]
