"""Verify finds what is damaged, and gc deletes garbage only."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zarr

from manifests import disk
from manifests.commits import (
    committed_units,
    publish_cell,
    publish_chunk,
    read_rows,
    retire,
)
from manifests.errors import StoreError
from manifests.integrity import Damage, gc, verify
from manifests.layout import UnitPaths
from manifests.store import StageStore
from tests.stores import chunks_of, edit_record, open_store, result, stop_at, write_scores


@pytest.fixture
def store(tmp_path: Path) -> StageStore:
    return open_store(tmp_path / "s")


def test_whole_data_folder_that_is_gone_is_found(store: StageStore) -> None:
    chunk = chunks_of(store)[0]
    publish_chunk(store, chunk, result(chunk, 7))
    (store.root / "data.zarr").rename(store.root.parent / "elsewhere")
    found = verify(store.root)
    assert found[0] == Damage("", "data.zarr/zarr.json", "missing")
    assert {(d.unit, d.problem) for d in found[1:]} == {("000000", "missing")}


def test_gone_data_folder_is_found_though_the_first_record_is_damaged(store: StageStore) -> None:
    for chunk in chunks_of(store)[:2]:
        publish_chunk(store, chunk, result(chunk, 7))
    (store.root / "data.zarr").rename(store.root.parent / "elsewhere")
    UnitPaths(store.root).record("000000").write_text("{")
    found = verify(store.root)
    assert [d.path for d in found[:2]] == ["data.zarr/zarr.json", "commits/000000/commit.json"]
    assert len(found) == 6


def test_file_in_the_place_of_a_commit_is_damage_and_gives_way(store: StageStore) -> None:
    chunk = chunks_of(store)[0]
    publish_chunk(store, chunk, result(chunk, 7))
    shutil.rmtree(UnitPaths(store.root).commit("000000"))
    UnitPaths(store.root).commit("000000").write_text("what?")
    (damage,) = verify(store.root)
    assert (damage.unit, damage.path) == ("000000", "commits/000000/commit.json")
    assert "is a file and no folder" in damage.problem
    retire(store.root, "000000")
    assert publish_chunk(store, chunk, result(chunk, 7))
    assert verify(store.root) == []


def test_store_of_zarr_2_is_one_damage(tmp_path: Path) -> None:
    zarr.create_group(tmp_path / "s" / "data.zarr", zarr_format=2)
    assert verify(tmp_path / "s") == [Damage("", "data.zarr/zarr.json", "of Zarr v2, which this version does not read")]


def test_array_that_a_commit_lacks_is_found(store: StageStore) -> None:
    chunk = chunks_of(store)[0]
    publish_chunk(store, chunk, result(chunk, 7))
    digests = json.loads(UnitPaths(store.root).record(chunk.unit).read_text())["digests"]
    del digests["data.zarr/mask/c.0.0.0"]
    edit_record(store.root, chunk.unit, digests=digests)
    assert verify(store.root) == [Damage("000000", "data.zarr/mask", "not in the commit")]
    with pytest.raises(StoreError, match="not what was committed"):
        read_rows(store, chunk)


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda f: f.unlink(), "missing"),
        (lambda f: f.write_text("1,0.6\n"), "not what was committed"),
        (lambda f: f.write_text("1"), "of 1 bytes instead of 6"),
        (lambda f: (f.unlink(), f.mkdir()), "missing"),
        (lambda f: (f.unlink(), f.parent.rmdir(), f.parent.write_text("")), "missing"),
    ],
)
def test_damaged_artifact_is_named(tmp_path: Path, spoil: Callable[[Path], Any], problem: str) -> None:
    publish_cell(tmp_path, "masked-5-0", write_scores)
    publish_cell(tmp_path, "masked-5-1", write_scores)
    spoil(tmp_path / "commits" / "masked-5-1" / "history" / "loss.csv")
    assert verify(tmp_path) == [Damage("masked-5-1", "commits/masked-5-1/history/loss.csv", problem)]


def test_unit_that_is_replaced_during_verify_is_not_damaged(store: StageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    chunk = chunks_of(store)[0]
    publish_chunk(store, chunk, result(chunk, 1))
    replaced: list[int] = []

    def replace_first(path: Path) -> str:
        if not replaced:
            replaced.append(1)
            retire(store.root, chunk.unit)
            publish_chunk(store, chunk, result(chunk, 2))
        return original(path)

    from manifests import integrity

    original = integrity.digest_file
    monkeypatch.setattr(integrity, "digest_file", replace_first)
    assert verify(store.root) == []
    assert replaced


def age(folder: Path, seconds: float) -> None:
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (time.time() - seconds, time.time() - seconds))


def test_gc_deletes_old_staging_and_nothing_else(store: StageStore) -> None:
    chunk = chunks_of(store)[0]
    publish_chunk(store, chunk, result(chunk, 7))
    for name in ("old", "young", "old-with-a-young-file"):
        (store.root / "staging" / name / "a").mkdir(parents=True)
    for name in ("old", "old-with-a-young-file"):
        age(store.root / "staging" / name, 1000)
    (store.root / "staging" / "old-with-a-young-file" / "a" / "b").write_text("")
    age(store.root / "commits", 1000)
    old = store.root / "staging" / "old"
    assert gc(store.root, 500, dry_run=True) == [old]
    assert old.exists()
    assert gc(store.root, 500, dry_run=False) == [old]
    assert sorted(p.name for p in (store.root / "staging").iterdir()) == ["old-with-a-young-file", "young"]
    assert read_rows(store, chunk)["score"].tolist() == [7] * 4


def test_staging_that_vanishes_while_gc_looks_is_left_alone(store: StageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    (store.root / "staging" / "busy").mkdir()
    age(store.root / "staging" / "busy", 1000)

    def vanish(self: Path) -> os.stat_result:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(self))

    monkeypatch.setattr(Path, "lstat", vanish)
    assert gc(store.root, 500, dry_run=False) == []


def test_attempt_that_gc_overtakes_commits_nothing(store: StageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    chunk = chunks_of(store)[0]
    stop_at(monkeypatch, "staged", lambda: gc(store.root, -1, dry_run=False) and None)
    with pytest.raises(StoreError, match=r"staging folder .* is gone.*gc"):
        publish_chunk(store, chunk, result(chunk, 7))
    assert committed_units(store.root) == ()


def test_attempt_that_wakes_while_gc_deletes_commits_nothing(
    store: StageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = store.root / "staging" / f"000000-{'a' * 32}"
    folder.mkdir()
    (folder / "commit.json").write_text("{}")
    woken: list[str] = []

    def wake(step: str) -> None:
        with pytest.raises(FileNotFoundError):
            folder.rename(store.root / "commits" / "000000")
        woken.append(step)

    monkeypatch.setattr(disk, "checkpoint", wake)
    gc(store.root, -1, dry_run=False)
    assert woken == ["doomed"]


def test_two_gcs_at_once_do_no_harm(store: StageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (store.root / "staging" / name).mkdir()
    (store.root / "staging" / "stray-file").write_text("")
    stop_at(monkeypatch, "doomed", lambda: gc(store.root, -1, dry_run=False) and None)
    assert len(gc(store.root, -1, dry_run=False)) == 3
    assert not list((store.root / "staging").iterdir())
