"""Pending, completed, retired; and renames that fail or lie."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zarr

from manifests.commits import (
    committed_units,
    pending,
    publish_chunk,
    read_commit,
    read_rows,
    retire,
)
from manifests.errors import StoreError
from manifests.integrity import gc, verify
from manifests.records import load_record
from manifests.store import StageStore
from manifests.units import roll_forward
from tests.stores import Stopped, chunks_of, open_store, result, stop_at


@pytest.fixture
def store(tmp_path: Path) -> StageStore:
    return open_store(tmp_path / "s")


def test_reason_is_new_or_retired(store: StageStore) -> None:
    chunks = chunks_of(store)
    for chunk in chunks[:2]:
        publish_chunk(store, chunk, result(chunk, 7))
    retire(store.root, chunks[1].unit)
    assert pending(store.root, [c.unit for c in chunks]) == {"000001": "retired", "000002": "new"}
    assert committed_units(store.root) == ("000000",)


def test_everything_is_new_where_nothing_is(tmp_path: Path) -> None:
    assert pending(tmp_path / "none", ["b", "a"]) == {"b": "new", "a": "new"}
    assert read_commit(tmp_path / "none", "a") is None
    assert retire(tmp_path / "none", "a") is False
    assert verify(tmp_path / "none") == []
    assert gc(tmp_path / "none", 0, dry_run=False) == []


def test_retired_unit_can_be_committed_and_retired_again(store: StageStore) -> None:
    chunk = chunks_of(store)[0]
    for value in (1, 2, 3):
        assert publish_chunk(store, chunk, result(chunk, value))
        assert retire(store.root, chunk.unit)
    assert retire(store.root, chunk.unit) is False
    assert len(list((store.root / "retired").iterdir())) == 3


def test_only_the_attempt_that_was_meant_is_retired(store: StageStore) -> None:
    chunk = chunks_of(store)[0]
    publish_chunk(store, chunk, result(chunk, 1))
    old = load_record(store.root, chunk.unit)
    assert old is not None
    assert retire(store.root, chunk.unit, old.attempt)
    publish_chunk(store, chunk, result(chunk, 2))
    assert retire(store.root, chunk.unit, old.attempt) is False
    assert read_rows(store, chunk)["score"].tolist() == [2] * 4


@pytest.mark.parametrize("step", ["renamed", "committed", "rolled", "settled", "emptied"])
@pytest.mark.parametrize("look", ["pending", "read_commit", "read_rows", "verify", "retire"])
def test_whoever_looks_first_completes_a_commit(
    store: StageStore, monkeypatch: pytest.MonkeyPatch, step: str, look: str
) -> None:
    chunk = chunks_of(store)[0]
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        with pytest.raises(Stopped):
            publish_chunk(store, chunk, result(chunk, 7))
    actions: dict[str, Callable[[], Any]] = {
        "pending": lambda: pending(store.root, [chunk.unit]),
        "read_commit": lambda: read_commit(store.root, chunk.unit),
        "read_rows": lambda: read_rows(store, chunk),
        "verify": lambda: verify(store.root),
        "retire": lambda: retire(store.root, chunk.unit),
    }
    assert actions[look]() in ({}, [], True) or look.startswith("read")
    assert not list((store.root).glob("*/*/*.zarr"))
    assert zarr.open_array(store.root / "data.zarr" / "score", mode="r")[:4].tolist() == [7] * 4


def test_status_is_moved_last(store: StageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    chunk = chunks_of(store)[0]
    moved: list[str] = []
    rename = Path.rename

    def spy(self: Path, target: Path) -> Path:
        moved.extend([target.parent.name] if target.name.startswith("c.") else [])
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", spy)
    publish_chunk(store, chunk, result(chunk, 7))
    assert sorted(moved) == ["mask", "masked_image", "score", "status"]
    assert moved[-1] == "status"


def test_sleeper_finds_nothing_to_move_after_a_newer_commit(store: StageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    chunk = chunks_of(store)[0]

    def replace_meanwhile() -> None:
        assert retire(store.root, chunk.unit)
        assert publish_chunk(store, chunk, result(chunk, 8))

    stop_at(monkeypatch, "committed", replace_meanwhile)
    assert publish_chunk(store, chunk, result(chunk, 7)) is True
    assert read_rows(store, chunk)["score"].tolist() == [8] * 4
    assert verify(store.root) == []


def test_retirement_that_overtakes_a_newer_commit_only_costs_time(
    store: StageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunk = chunks_of(store)[0]
    publish_chunk(store, chunk, result(chunk, 1))

    def replace_halfway() -> None:
        assert retire(store.root, chunk.unit)
        with monkeypatch.context() as patch:
            stop_at(patch, "rolled")
            with pytest.raises(Stopped):
                publish_chunk(store, chunk, result(chunk, 2))

    stop_at(monkeypatch, "retiring", replace_halfway)
    assert retire(store.root, chunk.unit) is True
    assert pending(store.root, [chunk.unit]) == {chunk.unit: "retired"}
    assert publish_chunk(store, chunk, result(chunk, 3))
    assert read_rows(store, chunk)["score"].tolist() == [3] * 4
    assert verify(store.root) == []


def test_failure_that_nfs_reports_for_a_rename_it_did_is_a_win(
    store: StageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunk = chunks_of(store)[0]
    rename = Path.rename

    def lie(self: Path, target: Path) -> Path:
        rename(self, target)
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(self))

    monkeypatch.setattr(Path, "rename", lie)
    assert publish_chunk(store, chunk, result(chunk, 7)) is True
    assert retire(store.root, chunk.unit) is True
    assert publish_chunk(store, chunk, result(chunk, 8)) is True
    assert read_rows(store, chunk)["score"].tolist() == [8] * 4


def test_rename_that_fails_for_another_reason_commits_nothing(
    store: StageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunk = chunks_of(store)[0]

    def fail(self: Path, target: Path) -> Path:
        raise OSError(errno.EIO, "Input/output error", str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fail)
        with pytest.raises(StoreError, match="Input/output error"):
            publish_chunk(store, chunk, result(chunk, 7))
    assert pending(store.root, [chunk.unit]) == {chunk.unit: "new"}
    assert not list((store.root / "staging").iterdir())


def test_arbiter_gives_up_on_a_name_that_is_taken_without_end(
    store: StageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def taken(self: Path, target: Path) -> Path:
        raise OSError(errno.ENOTEMPTY, "Directory not empty", str(self))

    monkeypatch.setattr(Path, "rename", taken)
    with pytest.raises(StoreError, match="without end"):
        publish_chunk(store, chunks_of(store)[0], result(chunks_of(store)[0], 7))


def test_missing_array_folder_is_told_when_a_commit_is_completed(
    store: StageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunk = chunks_of(store)[0]
    with monkeypatch.context() as patch:
        stop_at(patch, "committed")
        with pytest.raises(Stopped):
            publish_chunk(store, chunk, result(chunk, 7))
    (store.root / "data.zarr" / "score").rename(store.root / "elsewhere")
    with pytest.raises(StoreError, match=r"score/c\.0 has no folder"):
        roll_forward(store.root, chunk.unit)
    (store.root / "elsewhere").rename(store.root / "data.zarr" / "score")
    assert read_rows(store, chunk)["score"].tolist() == [7] * 4
