"""What a power cut can undo: nothing counts before the disk has it, and folders without fsync are lived with."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from manifests.commits import committed_units, publish_cell, publish_chunk
from manifests.errors import StoreError
from manifests.integrity import verify
from manifests.store import StageStore
from tests.stores import chunks_of, open_store, result


@pytest.fixture
def trace(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Every fsync, rename and rmdir in order, with the path as it was then."""
    calls: list[tuple[str, str]] = []
    fsync, rename, rmdir = os.fsync, Path.rename, Path.rmdir

    def traced_fsync(descriptor: int) -> None:
        fsync(descriptor)
        calls.append(("sync", str(Path(f"/proc/self/fd/{descriptor}").readlink())))

    def traced_rename(self: Path, target: Path) -> Path:
        calls.append(("rename", str(target)))
        return rename(self, target)

    def traced_rmdir(self: Path) -> None:
        calls.append(("rmdir", str(self)))
        rmdir(self)

    monkeypatch.setattr(os, "fsync", traced_fsync)
    monkeypatch.setattr(Path, "rename", traced_rename)
    monkeypatch.setattr(Path, "rmdir", traced_rmdir)
    return calls


@pytest.fixture
def store(tmp_path: Path) -> StageStore:
    return open_store(tmp_path / "s")


def test_every_byte_and_name_is_on_disk_before_a_commit_counts(store: StageStore, trace: list[tuple[str, str]]) -> None:
    chunk = chunks_of(store)[0]
    publish_chunk(store, chunk, result(chunk, 7))
    moment = trace.index(("rename", str(store.root / "commits" / chunk.unit)))
    synced = {path.partition(".zarr/")[2] or Path(path).name for kind, path in trace[:moment] if kind == "sync"}
    shards = {f"{s.name}/{store.shard_path(s.name, chunk).name}" for s in store.specs}
    assert shards | {s.name for s in store.specs} | {"commit.json"} <= synced
    assert trace[moment - 1][1].startswith(str(store.root / "staging" / chunk.unit))


def test_commit_is_on_disk_before_its_shards_move(store: StageStore, trace: list[tuple[str, str]]) -> None:
    chunk = chunks_of(store)[0]
    publish_chunk(store, chunk, result(chunk, 7))
    moves = [i for i, (kind, path) in enumerate(trace) if kind == "rename" and "data.zarr" in path]
    assert len(moves) == 4
    assert trace.index(("sync", str(store.root / "commits"))) < moves[0]


def test_moved_shards_are_on_disk_before_their_commit_is_emptied(
    store: StageStore, trace: list[tuple[str, str]]
) -> None:
    chunk = chunks_of(store)[0]
    publish_chunk(store, chunk, result(chunk, 7))
    last_move = max(i for i, (kind, path) in enumerate(trace) if kind == "rename" and "data.zarr" in path)
    emptied = min(i for i, (kind, _) in enumerate(trace) if kind == "rmdir")
    synced = {path for kind, path in trace[last_move:emptied] if kind == "sync"}
    assert synced == {str(store.root / "data.zarr" / spec.name) for spec in store.specs}


def test_artifacts_and_their_folders_are_on_disk_before_a_cell_counts(
    tmp_path: Path, trace: list[tuple[str, str]]
) -> None:
    def fit(out: Path) -> dict[str, float]:
        (out / "a" / "b").mkdir(parents=True)
        (out / "a" / "b" / "weights").write_text("w")
        return {}

    publish_cell(tmp_path, "masked-5-0", fit)
    moment = trace.index(("rename", str(tmp_path / "commits" / "masked-5-0")))
    assert {"a", "b", "weights", "commit.json"} <= {Path(p).name for kind, p in trace[:moment] if kind == "sync"}


def test_file_system_that_cannot_sync_folders_is_lived_with(store: StageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def files_only(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", files_only)
    assert publish_chunk(store, chunks_of(store)[0], result(chunks_of(store)[0], 7))
    assert verify(store.root) == []


@pytest.mark.parametrize("code", [errno.EIO, errno.EDQUOT, errno.ENOSPC])
def test_write_that_fails_only_when_synced_commits_nothing(
    store: StageStore, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreError, match=os.strerror(code)):
        publish_chunk(store, chunks_of(store)[0], result(chunks_of(store)[0], 7))
    assert committed_units(store.root) == ()
    assert not list((store.root / "staging").iterdir())


def test_disk_that_fails_after_the_commit_leaves_it_to_the_next_look(
    store: StageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunk = chunks_of(store)[0]

    def fail(self: Path) -> None:
        raise OSError(errno.EIO, "Input/output error", str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rmdir", fail)
        with pytest.raises(StoreError, match=r"Input/output error.*pipeline verify"):
            publish_chunk(store, chunk, result(chunk, 7))
    assert committed_units(store.root) == (chunk.unit,)
    assert verify(store.root) == []
    assert not list(store.root.glob("commits/*/*.zarr"))
