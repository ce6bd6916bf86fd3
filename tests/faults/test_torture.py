"""Kills, races and sleepers in real processes: what is committed is right, whatever happened before."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

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
from manifests.integrity import gc, verify
from manifests.runs import finish_run, load_run, start_run
from manifests.store import StageStore
from tests.benchmarks.torture import torture
from tests.stores import chunks_of, open_store, result

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["zarr", "manifests.integrity", "tests.stores"])
CHUNK_STEPS = [
    *[("shard", n) for n in (1, 2, 3, 4)],
    *[(name, 1) for name in ("staged", "renamed", "committed")],
    *[("rolled", n) for n in (1, 2, 3, 4)],
    ("settled", 1),
    *[("emptied", n) for n in (1, 4, 5)],
]


def die_at(step: str, nth: int) -> None:
    """Let this process be killed the nth time that it passes a step."""
    passed = []

    def checkpoint(name: str) -> None:
        passed.append(name)
        if name == step and passed.count(step) == nth:
            os.kill(os.getpid(), signal.SIGKILL)

    disk.checkpoint = checkpoint


def publish_rest(root: Path) -> list[bool]:
    """Publish what is pending, each chunk with a value of its own."""
    store = open_store(root)
    todo = pending(root, [c.unit for c in chunks_of(store)])
    return [publish_chunk(store, c, result(c, c.index + 1)) for c in chunks_of(store) if c.unit in todo]


def fit(out: Path) -> dict[str, Any]:
    """Write two artifacts."""
    (out / "weights").write_text("w" * 1000)
    disk.checkpoint("artifact")
    (out / "scores").write_text("s")
    return {"accuracy": 0.5}


def publish_and_die(root: Path, step: str, nth: int) -> None:
    die_at(step, nth)
    publish_rest(root)


def fit_and_die(root: Path, step: str, nth: int) -> None:
    die_at(step, nth)
    publish_cell(root, "masked-5-0", fit)


def retire_and_die(root: Path, step: str) -> None:
    die_at(step, 1)
    retire(root, "000001")


def collect_and_die(root: Path) -> None:
    die_at("doomed", 1)
    gc(root, -1, dry_run=False)


def finish_and_die(folder: Path) -> None:
    die_at("partial", 1)
    finish_run(folder, load_run(folder), "done", 0, {})


def start(target: Callable[..., None], *args: Any) -> BaseProcess:
    process = CONTEXT.Process(target=target, args=args)
    process.start()
    return process


def killed(target: Callable[..., None], *args: Any) -> None:
    """Run a process that must end by SIGKILL."""
    process = start(target, *args)
    process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.fixture
def undisturbed(tmp_path: Path) -> str:
    """Content digest of a store that nothing happened to."""
    publish_rest(tmp_path / "undisturbed")
    return content_digest(tmp_path / "undisturbed", ["000000", "000001", "000002"])


def check_whole(root: Path, digest: str) -> None:
    store = StageStore.load(root)
    assert content_digest(root, [c.unit for c in chunks_of(store)]) == digest
    for chunk in chunks_of(store):
        rows = read_rows(store, chunk)
        assert all(np.array_equal(rows[n], a) for n, a in result(chunk, chunk.index + 1).arrays.items())
    assert verify(root) == []


@pytest.mark.parametrize(("step", "nth"), CHUNK_STEPS)
def test_resume_after_a_kill_equals_an_undisturbed_run(tmp_path: Path, undisturbed: str, step: str, nth: int) -> None:
    root = tmp_path / "s"
    publish_chunk(open_store(root), chunks_of(open_store(root))[0], result(chunks_of(open_store(root))[0], 1))
    killed(publish_and_die, root, step, nth)
    committed = step in ("renamed", "committed", "rolled", "settled", "emptied")
    assert committed_units(root) == (("000000", "000001") if committed else ("000000",))
    assert publish_rest(root) == [True] * (1 if committed else 2)
    check_whole(root, undisturbed)


def test_kill_while_the_store_is_made_leaves_no_store(tmp_path: Path, undisturbed: str) -> None:
    killed(publish_and_die, tmp_path / "s", "created aside", 1)
    assert not (tmp_path / "s" / "data.zarr").exists()
    publish_rest(tmp_path / "s")
    check_whole(tmp_path / "s", undisturbed)


@pytest.mark.parametrize("step", ["artifact", "filled", "staged", "renamed", "committed"])
def test_cell_after_a_kill_is_whole_or_absent(tmp_path: Path, step: str) -> None:
    killed(fit_and_die, tmp_path / "s", step, 1)
    assert publish_cell(tmp_path / "s", "masked-5-0", fit) is (step in ("artifact", "filled", "staged"))
    publish_cell(tmp_path / "other", "masked-5-0", fit)
    assert len({content_digest(tmp_path / name, ["masked-5-0"]) for name in ("s", "other")}) == 1
    assert verify(tmp_path / "s") == []


@pytest.mark.parametrize("step", ["retiring", "retired"])
def test_kill_while_retiring_leaves_the_unit_committed_or_pending(tmp_path: Path, undisturbed: str, step: str) -> None:
    publish_rest(tmp_path / "s")
    killed(retire_and_die, tmp_path / "s", step)
    assert pending(tmp_path / "s", ["000001"]) == ({"000001": "retired"} if step == "retired" else {})
    publish_rest(tmp_path / "s")
    check_whole(tmp_path / "s", undisturbed)


def test_kill_while_collecting_garbage_leaves_garbage_only(tmp_path: Path, undisturbed: str) -> None:
    killed(publish_and_die, tmp_path / "s", "staged", 3)
    killed(collect_and_die, tmp_path / "s")
    assert len(gc(tmp_path / "s", -1, dry_run=False)) == 1
    publish_rest(tmp_path / "s")
    check_whole(tmp_path / "s", undisturbed)


def test_kill_while_a_run_ends_leaves_its_first_record(tmp_path: Path) -> None:
    record = start_run(tmp_path, "r", [], {})
    killed(finish_and_die, tmp_path)
    assert load_run(tmp_path) == record


def test_leftover_staging_of_the_same_unit_is_ignored(tmp_path: Path, undisturbed: str) -> None:
    killed(publish_and_die, tmp_path / "s", "shard", 2)
    (left,) = (tmp_path / "s" / "staging").iterdir()
    publish_rest(tmp_path / "s")
    check_whole(tmp_path / "s", undisturbed)
    assert gc(tmp_path / "s", 3600, dry_run=False) == []
    assert gc(tmp_path / "s", -1, dry_run=False) == [left]


def test_full_mask_is_replaced_by_an_empty_one_across_processes(tmp_path: Path) -> None:
    publish_rest(tmp_path / "s")
    store = open_store(tmp_path / "s")
    chunk = chunks_of(store)[1]
    retire(store.root, chunk.unit)
    process = start(publish_empty, store.root)
    process.join()
    rows = read_rows(store, chunk)
    assert not rows["mask"].any()
    assert not rows["masked_image"].any()


def publish_empty(root: Path) -> None:
    store = open_store(root)
    publish_chunk(store, chunks_of(store)[1], result(chunks_of(store)[1], 2, empty=True))


def race(root: Path, value: int, gate: Any, wins: Any) -> None:
    """Publish every chunk, waiting for the other racer before each rename."""
    disk.checkpoint = lambda step: step == "staged" and gate.wait()
    store = open_store(root)
    wins.put([publish_chunk(store, chunk, result(chunk, value)) for chunk in chunks_of(store)])


def test_of_two_processes_exactly_one_wins_each_unit(tmp_path: Path) -> None:
    gate, wins = CONTEXT.Barrier(2, timeout=60), CONTEXT.Queue()
    racers = [start(race, tmp_path / "s", value, gate, wins) for value in (1, 2)]
    results = [wins.get(timeout=60) for _ in racers]
    for racer in racers:
        racer.join()
    wins.close()
    wins.join_thread()
    assert [sum(pair) for pair in zip(*results, strict=True)] == [1, 1, 1]
    assert verify(tmp_path / "s") == []
    assert len(committed_units(tmp_path / "s")) == 3


def sleep_at(root: Path, step: str, asleep: Any, wake: Any, outcome: Any) -> None:
    """Publish unit 1, sleeping at a step until woken."""

    def checkpoint(name: str) -> None:
        if name == step and not asleep.is_set():
            asleep.set()
            wake.wait(60)

    disk.checkpoint = checkpoint
    store = open_store(root)
    outcome.value = int(publish_chunk(store, chunks_of(store)[1], result(chunks_of(store)[1], 99)))


@pytest.mark.parametrize(
    ("step", "won"),
    [("shard", 0), ("staged", 0), ("renamed", 1), ("committed", 1), ("rolled", 1), ("settled", 1), ("emptied", 1)],
)
def test_sleeper_never_damages_a_newer_commit(tmp_path: Path, undisturbed: str, step: str, won: int) -> None:
    root = tmp_path / "s"
    open_store(root)
    asleep, wake, outcome = CONTEXT.Event(), CONTEXT.Event(), CONTEXT.Value("i", -1)
    sleeper = start(sleep_at, root, step, asleep, wake, outcome)
    assert asleep.wait(60)
    assert retire(root, "000001") is bool(won)
    assert publish_rest(root) == [True, True, True]
    newer = read_commit(root, "000001")
    wake.set()
    sleeper.join()
    assert (sleeper.exitcode, outcome.value) == (0, won)
    assert read_commit(root, "000001") == newer
    check_whole(root, undisturbed)


@pytest.mark.slow
def test_torture_finds_nothing_wrong(tmp_path: Path) -> None:
    tally = torture(tmp_path, seconds=8.0, seed=int.from_bytes(os.urandom(2)))
    assert tally.problems == []
    assert tally.wrong == 0
    assert tally.kills > 10
    assert tally.reads > 20
