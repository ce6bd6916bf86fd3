"""The commit protocol inside one process: publish, read, pending, retire, verify, gc."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from manifests import disk
from manifests.commits import (
    committed_units,
    content_digest,
    pending,
    publish_cell,
    publish_chunk,
    read_commit,
    read_rows,
    retire,
)
from manifests.errors import StoreError
from manifests.fingerprint import digest_json
from manifests.integrity import Damage, gc, verify
from manifests.layout import UnitPaths
from manifests.records import load_record
from manifests.store import StageStore
from manifests.types import ItemOutcome, Status, UnitResult
from manifests.units import roll_forward
from tests.stores import chunks_of, open_store, result


class Stopped(BaseException):
    """Stands for a kill that leaves no time to clean up."""


def stop_at(monkeypatch: pytest.MonkeyPatch, name: str, act: Callable[[], None] | None = None) -> None:
    """Run `act`, or stop, the first time that the protocol passes a checkpoint."""
    passed: list[str] = []

    def checkpoint(step: str) -> None:
        if step == name and name not in passed:
            passed.append(step)
            if act is None:
                raise Stopped(step)
            act()

    monkeypatch.setattr(disk, "checkpoint", checkpoint)


@pytest.fixture
def store(tmp_path: Path) -> StageStore:
    return open_store(tmp_path / "s")


def write_scores(out: Path) -> dict[str, Any]:
    (out / "history").mkdir()
    (out / "history" / "loss.csv").write_text("1,0.5\n")
    (out / "scores.json").write_text("{}")
    return {"accuracy": 0.5, "auroc": None}


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


def test_cell_commits_its_artifacts_with_digests(tmp_path: Path) -> None:
    assert publish_cell(tmp_path, "masked-5-0", write_scores, {"n_train": 3}) is True
    commit = read_commit(tmp_path, "masked-5-0")
    assert commit is not None
    assert sorted(commit.digests) == ["history/loss.csv", "scores.json"]
    assert (commit.metrics, commit.record) == ({"accuracy": 0.5, "auroc": None}, {"n_train": 3})
    assert (tmp_path / "commits" / "masked-5-0" / "history" / "loss.csv").read_text() == "1,0.5\n"
    assert verify(tmp_path) == []


def test_committed_cell_is_not_fitted_again(tmp_path: Path) -> None:
    publish_cell(tmp_path, "masked-5-0", write_scores)

    def refit(_: Path) -> dict[str, Any]:
        pytest.fail("fitted again")

    assert publish_cell(tmp_path, "masked-5-0", refit) is False


def test_cell_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail(out: Path) -> dict[str, Any]:
        write_scores(out)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        publish_cell(tmp_path, "masked-5-0", fail)
    assert pending(tmp_path, ["masked-5-0"]) == {"masked-5-0": "new"}
    assert not list((tmp_path / "staging").iterdir())


def test_error_about_a_file_elsewhere_is_not_blamed_on_the_work_folder(tmp_path: Path) -> None:
    def fail(out: Path) -> dict[str, Any]:
        raise PermissionError(errno.EACCES, "Permission denied", "/weights/model.pt")

    with pytest.raises(PermissionError):
        publish_cell(tmp_path / "s", "masked-5-0", fail)


@pytest.mark.parametrize("write", ["nothing", "link", "commit.json"])
def test_cell_without_proper_artifacts_is_refused(tmp_path: Path, write: str) -> None:
    def fill(out: Path) -> dict[str, Any]:
        if write == "link":
            (out / "a").symlink_to("/etc/hostname")
        elif write == "commit.json":
            (out / "commit.json").write_text("{}")
        return {}

    with pytest.raises(ValueError, match="artifact"):
        publish_cell(tmp_path, "masked-5-0", fill)
    assert committed_units(tmp_path) == ()


def test_metric_that_is_no_number_commits_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"metrics\.auroc: nan"):
        publish_cell(tmp_path, "masked-5-0", lambda out: {**write_scores(out), "auroc": float("nan")})
    assert committed_units(tmp_path) == ()


@pytest.mark.parametrize("unit", ["", "../x", "a/b", ".hidden", "a b"])
def test_unit_that_is_no_safe_name_is_refused(tmp_path: Path, unit: str) -> None:
    with pytest.raises(ValueError, match="name of a unit"):
        publish_cell(tmp_path / "s", unit, write_scores)


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


def edit_record(root: Path, unit: str, **fields: Any) -> None:
    """Change fields of a record and give it a digest that fits."""
    file = UnitPaths(root).record(unit)
    stored = {**json.loads(file.read_text()), **fields}
    stored.pop("sha256")
    file.write_text(json.dumps({**stored, "sha256": digest_json(stored)}))


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


def test_whole_data_folder_that_is_gone_is_found(store: StageStore) -> None:
    chunk = chunks_of(store)[0]
    publish_chunk(store, chunk, result(chunk, 7))
    (store.root / "data.zarr").rename(store.root.parent / "elsewhere")
    found = verify(store.root)
    assert found[0] == Damage("", "data.zarr/zarr.json", "missing")
    assert {(d.unit, d.problem) for d in found[1:]} == {("000000", "missing")}


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


def test_umask_is_honoured(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        store = open_store(tmp_path / "s")
        publish_chunk(store, chunks_of(store)[0], result(chunks_of(store)[0], 7))
    finally:
        os.umask(old)
    assert {p.stat().st_mode & 0o077 for p in (tmp_path / "s").rglob("*")} == {0}
