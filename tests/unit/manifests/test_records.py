"""Commit records: versions, unknown fields and damage."""

from __future__ import annotations

from pathlib import Path

import pytest

from manifests.commits import (
    publish_chunk,
    read_commit,
    read_rows,
    retire,
)
from manifests.errors import StoreError
from manifests.integrity import verify
from manifests.layout import UnitPaths
from manifests.store import StageStore
from tests.stores import chunks_of, edit_record, open_store, result


@pytest.fixture
def store(tmp_path: Path) -> StageStore:
    return open_store(tmp_path / "s")


def test_record_of_another_version_is_refused_by_both_versions(store: StageStore) -> None:
    chunk = chunks_of(store)[0]
    publish_chunk(store, chunk, result(chunk, 7))
    edit_record(store.root, chunk.unit, schema_version=9)
    with pytest.raises(StoreError, match="of version 9, this version of MedFocus reads 1"):
        read_commit(store.root, chunk.unit)


def test_record_with_an_unknown_field_is_refused(store: StageStore) -> None:
    chunk = chunks_of(store)[0]
    publish_chunk(store, chunk, result(chunk, 7))
    edit_record(store.root, chunk.unit, colour="red")
    with pytest.raises(StoreError, match="Extra inputs"):
        read_commit(store.root, chunk.unit)


@pytest.mark.parametrize("damage", ["", "{", "[]", "null", '{"sha256": "0", "schema_version": 1}'])
def test_damaged_record_is_refused_found_and_can_be_retired(store: StageStore, damage: str) -> None:
    chunk = chunks_of(store)[0]
    publish_chunk(store, chunk, result(chunk, 7))
    UnitPaths(store.root).record(chunk.unit).write_text(damage)
    with pytest.raises(StoreError, match=r"commit\.json is damaged.*pipeline verify"):
        read_rows(store, chunk)
    assert [(d.unit, d.path) for d in verify(store.root)] == [("000000", "commits/000000/commit.json")]
    assert retire(store.root, chunk.unit)
    assert publish_chunk(store, chunk, result(chunk, 8))


def test_changed_word_in_a_record_is_found(store: StageStore) -> None:
    chunk = chunks_of(store)[0]
    publish_chunk(store, chunk, result(chunk, 7))
    file = UnitPaths(store.root).record(chunk.unit)
    file.write_text(file.read_text().replace('"status": 1', '"status": 2', 1))
    assert "does not match its digest" in verify(store.root)[0].problem


def test_commit_without_record_is_refused_and_found(store: StageStore) -> None:
    chunk = chunks_of(store)[0]
    publish_chunk(store, chunk, result(chunk, 7))
    file = UnitPaths(store.root).record(chunk.unit)
    file.rename(file.with_name("other.json"))
    with pytest.raises(StoreError, match=r"000000 has no commit\.json"):
        publish_chunk(store, chunk, result(chunk, 7))
    assert verify(store.root)[0].unit == chunk.unit
    assert retire(store.root, chunk.unit)
