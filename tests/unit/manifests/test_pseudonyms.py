"""Patients are known by salted hashes only."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from manifests.errors import InventoryError
from manifests.fingerprint import digest_bytes
from manifests.ingest import IngestOptions, ingest
from manifests.inventory import Scan, scan
from manifests.layout import DatasetPaths
from manifests.pseudonyms import read_salt
from pipeline.commands import do_ingest
from tests.unit.manifests.pictures import put


def with_csv(source: Path, text: str, columns: dict[str, str] | None = None) -> Scan:
    return scan(source, columns, put(source.parent, "labels.csv", text.encode()))


def test_salt_is_made_once_private_and_not_the_group_itself(source, salt):
    put(source, "a.png", 1)
    text = "file,group\na.png,DOE^JANE\n"
    first, second = with_csv(source, text), with_csv(source, text)
    assert first == second
    assert len(first.salt_id) == 8
    assert stat.S_IMODE(salt.stat().st_mode) == 0o600
    assert "DOE" not in repr(first)
    assert len(list(salt.parent.iterdir())) == 1


def test_another_salt_gives_another_pseudonym(source, salt, monkeypatch):
    put(source, "a.png", 1)
    first = with_csv(source, "file,group\na.png,7\n")
    monkeypatch.setenv("MEDFOCUS_SALT_FILE", str(salt.with_name("other")))
    second = with_csv(source, "file,group\na.png,7\n")
    assert first.items[0].group_id != second.items[0].group_id
    assert first.salt_id != second.salt_id


def test_no_group_needs_no_salt(source, salt):
    put(source, "a/1.png", 1)
    assert scan(source).salt_id == ""
    assert not salt.exists()


def test_default_salt_lies_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("MEDFOCUS_SALT_FILE")
    monkeypatch.setenv("HOME", str(tmp_path))
    value = read_salt()
    assert (tmp_path / ".config/medfocus/salt").read_text().strip() == value


def test_salt_of_a_process_that_was_first_stays(salt, monkeypatch):
    put(salt.parent, "salt", b"first\n").chmod(0o600)
    monkeypatch.setattr(Path, "exists", lambda self: False)
    assert read_salt() == "first"
    assert len(list(salt.parent.iterdir())) == 1


@pytest.mark.parametrize("content", [b"", b"\xff"])
def test_unusable_salt_is_refused(salt, content):
    put(salt.parent, "salt", content).chmod(0o600)
    with pytest.raises(InventoryError, match=r"salt .*(empty|neither read)"):
        read_salt()


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620])
def test_salt_that_others_can_open_is_refused_with_the_way_out(salt, mode):
    put(salt.parent, "salt", b"first\n").chmod(mode)
    with pytest.raises(InventoryError, match=r"Others can read the salt.*chmod 600 .*salt"):
        read_salt()
    salt.chmod(0o600)
    assert read_salt() == "first"


def test_salt_in_the_folder_of_the_data_set_is_refused_before_it_is_made(source, tmp_path, monkeypatch):
    put(source, "a/1.png", 1)
    (tmp_path / "link").symlink_to(tmp_path / "work")
    monkeypatch.setenv("MEDFOCUS_SALT_FILE", str(tmp_path / "link" / "d" / "salt"))
    with pytest.raises(InventoryError, match=r"in the work folder.*MEDFOCUS_SALT_FILE=FILE"):
        ingest(DatasetPaths(tmp_path / "work" / "d"), source, IngestOptions(dataset="d"))
    assert not (tmp_path / "work").exists()


def test_user_without_a_home_needs_no_salt_where_no_group_is_named(source, tmp_path, monkeypatch):
    put(source, "a/1.png", 1)
    monkeypatch.delenv("MEDFOCUS_SALT_FILE")
    monkeypatch.setattr(Path, "expanduser", lambda self: (_ for _ in ()).throw(RuntimeError("no home")))
    assert ingest(DatasetPaths(tmp_path / "work"), source, IngestOptions(dataset="d")).new == 1


def test_salt_beside_the_data_sets_is_refused(source, tmp_path, monkeypatch):
    put(source, "a/1.png", 1)
    monkeypatch.setenv("MEDFOCUS_SALT_FILE", str(tmp_path / "work" / "salt"))
    with pytest.raises(InventoryError, match="in the work folder"):
        do_ingest(tmp_path / "work", source, IngestOptions(dataset="d"), as_json=False)


def test_id_of_a_file_that_cannot_be_read_is_a_salted_hash_of_its_path(source, salt, monkeypatch):
    (source / "a").mkdir()
    (source / "a" / "DOE^JANE.png").symlink_to("nowhere.png")
    put(source, "a/1.png", 1)
    first, again = (next(item for item in scan(source).items if not item.sha256) for _ in range(2))
    assert first.image_id == again.image_id == first.group_id
    assert first.image_id not in digest_bytes(b"unreadable:a/DOE^JANE.png")
    monkeypatch.setenv("MEDFOCUS_SALT_FILE", str(salt.with_name("other")))
    assert next(item for item in scan(source).items if not item.sha256).image_id != first.image_id
