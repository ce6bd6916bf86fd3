"""Publishing and reading chunks inside one process."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from manifests.commits import (
    committed_units,
    content_digest,
    pending,
    publish_chunk,
    read_commit,
    read_rows,
    retire,
)
from manifests.errors import StoreError
from manifests.store import StageStore
from manifests.types import ItemOutcome, Status, UnitResult
from tests.stores import chunks_of, open_store, result, stop_at


@pytest.fixture
def store(tmp_path: Path) -> StageStore:
    return open_store(tmp_path / "s")


def test_published_rows_are_read_back(store: StageStore) -> None:
    chunk = chunks_of(store)[1]
    sent = result(chunk, 7)
    assert publish_chunk(store, chunk, sent) is True
    got = read_rows(store, chunk)
    assert list(got) == ["mask", "masked_image", "score", "status"]
    for name, array in got.items():
        np.testing.assert_array_equal(array, sent.arrays[name])
        assert array.dtype == sent.arrays[name].dtype


def test_short_last_chunk_is_read_back(store: StageStore) -> None:
    chunk = chunks_of(store)[2]
    publish_chunk(store, chunk, result(chunk, 9))
    assert {len(a) for a in read_rows(store, chunk).values()} == {2}


def test_published_rows_are_plain_zarr(store: StageStore) -> None:
    for chunk in chunks_of(store):
        publish_chunk(store, chunk, result(chunk, chunk.index + 1))
    group = zarr.open_group(store.root / "data.zarr", mode="r")
    assert group["score"][:].tolist() == [1] * 4 + [2] * 4 + [3] * 2


def test_named_arrays_alone_are_read(store: StageStore) -> None:
    chunk = chunks_of(store)[0]
    publish_chunk(store, chunk, result(chunk, 7))
    (store.root / store.shard_path("mask", chunk)).unlink()
    assert list(read_rows(store, chunk, ["status", "score"])) == ["status", "score"]


def test_record_tells_what_was_written(store: StageStore) -> None:
    chunk = chunks_of(store)[0]
    publish_chunk(store, chunk, result(chunk, 7), {"inputs": {"proposals": "ab"}})
    commit = read_commit(store.root, chunk.unit)
    assert commit is not None
    assert sorted(commit.digests) == sorted(store.shard_path(s.name, chunk).as_posix() for s in store.specs)
    assert commit.outcomes() == result(chunk, 7).items
    assert (commit.record, commit.timings) == ({"inputs": {"proposals": "ab"}}, {"encode": 0.5})
    assert all((store.root / path).stat().st_size == size for path, size in commit.sizes.items())


def test_nothing_is_left_beside_the_record(store: StageStore) -> None:
    chunk = chunks_of(store)[0]
    publish_chunk(store, chunk, result(chunk, 7))
    assert [p.name for p in (store.root / "commits" / chunk.unit).iterdir()] == ["commit.json"]
    assert not list((store.root / "staging").iterdir())


def test_second_attempt_loses_and_changes_nothing(store: StageStore) -> None:
    chunk = chunks_of(store)[0]
    publish_chunk(store, chunk, result(chunk, 7))
    assert publish_chunk(store, chunk, result(chunk, 8)) is False
    assert read_rows(store, chunk)["score"].tolist() == [7] * 4


def test_attempt_that_is_overtaken_at_the_last_step_loses(store: StageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    chunk = chunks_of(store)[0]
    won: list[bool] = []
    stop_at(monkeypatch, "staged", lambda: won.append(publish_chunk(store, chunk, result(chunk, 8))))
    assert publish_chunk(store, chunk, result(chunk, 7)) is False
    assert won == [True]
    assert read_rows(store, chunk)["score"].tolist() == [8] * 4
    assert not list((store.root / "staging").iterdir())


def test_failed_rows_keep_their_reason(store: StageStore) -> None:
    chunk = chunks_of(store)[0]
    sent = result(chunk, 7)
    sent.arrays["status"][2] = Status.FAILED
    items = list(sent.items)
    items[2] = ItemOutcome(2, "c" * 16, Status.FAILED, "decode.truncated", "at 50 %")
    publish_chunk(store, chunk, replace(sent, items=tuple(items)))
    commit = read_commit(store.root, chunk.unit)
    assert commit is not None
    assert commit.outcomes()[2] == items[2]
    assert isinstance(commit.outcomes()[2].status, Status)


def change(sent: UnitResult, **arrays: Any) -> UnitResult:
    return replace(sent, arrays={**sent.arrays, **arrays})


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda r: change(r, mask=r.arrays["mask"][:3]), r"mask: expected \(4, 16, 16\) bool, got \(3, 16, 16\)"),
        (lambda r: change(r, score=r.arrays["score"].astype("float64")), r"score: .*float32, got \(4,\) float64"),
        (lambda r: replace(r, arrays={"mask": r.arrays["mask"]}), "expected the arrays"),
        (lambda r: change(r, depth=r.arrays["score"]), "expected the arrays"),
        (lambda r: replace(r, items=r.items[:3]), "outcomes of rows 0:4"),
        (lambda r: replace(r, items=r.items[::-1]), r"got \[3, 2, 1, 0\]"),
        (lambda r: change(r, status=np.array([1, 1, 2, 1], np.uint8)), r"differ at rows \[2\]"),
    ],
)
def test_result_that_does_not_fit_is_refused(
    store: StageStore, spoil: Callable[[UnitResult], UnitResult], problem: str
) -> None:
    chunk = chunks_of(store)[0]
    with pytest.raises(ValueError, match=problem):
        publish_chunk(store, chunk, spoil(result(chunk, 7)))
    assert committed_units(store.root) == ()
    assert not list((store.root / "staging").iterdir())


def test_timing_that_is_no_number_commits_nothing(store: StageStore) -> None:
    chunk = chunks_of(store)[0]
    with pytest.raises(ValueError, match="no JSON form"):
        publish_chunk(store, chunk, replace(result(chunk, 7), timings={"encode": float("nan")}))
    assert pending(store.root, [chunk.unit]) == {chunk.unit: "new"}


def test_reading_what_is_not_committed_is_refused(store: StageStore) -> None:
    with pytest.raises(StoreError, match="000001 is not committed"):
        read_rows(store, chunks_of(store)[1])


def test_empty_mask_that_replaces_a_full_one_is_empty(store: StageStore) -> None:
    chunk = chunks_of(store)[0]
    publish_chunk(store, chunk, result(chunk, 7))
    assert retire(store.root, chunk.unit)
    publish_chunk(store, chunk, result(chunk, 7, empty=True))
    assert not read_rows(store, chunk)["mask"].any()
    assert not zarr.open_array(store.root / "data.zarr" / "mask", mode="r")[:4].any()


def test_reader_that_is_overtaken_reads_the_newer_commit(store: StageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    chunk = chunks_of(store)[0]
    publish_chunk(store, chunk, result(chunk, 1))
    read_bytes = Path.read_bytes
    overtaken: list[int] = []

    def overtake(self: Path) -> bytes:
        if self.name.startswith("c.") and not overtaken:
            overtaken.append(1)
            retire(store.root, chunk.unit)
            publish_chunk(store, chunk, result(chunk, 2))
        return read_bytes(self)

    monkeypatch.setattr(Path, "read_bytes", overtake)
    got = read_rows(store, chunk)
    assert all((got[name] == array).all() for name, array in result(chunk, 2).arrays.items())


def test_content_digest_ignores_attempts_and_times(tmp_path: Path) -> None:
    digests = set()
    for name in ("a", "b"):
        store = open_store(tmp_path / name)
        for chunk in chunks_of(store):
            publish_chunk(store, chunk, replace(result(chunk, 7), timings={"encode": time.time()}))
        digests.add(content_digest(store.root, ["000002", "000000", "000001"][:: 1 if name == "a" else -1]))
    assert len(digests) == 1


def test_content_digest_changes_with_content_and_with_what_is_committed(store: StageStore) -> None:
    chunk = chunks_of(store)[0]
    digests = [content_digest(store.root, [chunk.unit])]
    for value in (1, 2):
        publish_chunk(store, chunk, result(chunk, value))
        digests.append(content_digest(store.root, [chunk.unit]))
        retire(store.root, chunk.unit)
    digests.append(content_digest(store.root, [chunk.unit]))
    assert len(set(digests)) == 3
    assert digests[0] == digests[-1]


def test_umask_is_honoured(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        store = open_store(tmp_path / "s")
        publish_chunk(store, chunks_of(store)[0], result(chunks_of(store)[0], 7))
    finally:
        os.umask(old)
    assert {p.stat().st_mode & 0o077 for p in (tmp_path / "s").rglob("*")} == {0}
