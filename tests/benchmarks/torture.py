"""Torture of the commit protocol: workers killed at every step, retirements, garbage collection and a live reader.

`python -m tests.benchmarks.torture [--json] [--full]`. A wrong read, a unit that does not come right at the end, or a
worker that fails on its own counts as wrong; anything but 0 is a bug.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import count
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from manifests import disk
from manifests.commits import pending, publish_cell, publish_chunk, read_commit, read_rows, retire
from manifests.errors import StoreError
from manifests.integrity import gc, verify
from manifests.records import load_record
from manifests.store import StageStore
from manifests.types import Chunk
from tests.stores import chunks_of, open_store, result

N_ITEMS, CHUNK_ITEMS = 45, 8
CELLS = tuple(f"masked-{percent}-0" for percent in (5, 10, 20, 50, 100))
WORKERS = 4
KILL, PAUSE = 0.04, 0.1
"""Chance of a kill, and of a pause, at every checkpoint."""
PAUSE_S = 0.1
GC_AGE_S = 3.0


@dataclass
class Tally:
    """What happened; `problems` says what was wrong."""

    kills: int = 0
    wrong: int = 0
    reads: int = 0
    retired: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    def add_problem(self, problem: str) -> None:
        """Count one wrong thing."""
        self.wrong += 1
        self.problems.append(problem)


def endanger(rng: np.random.Generator) -> None:
    """Make every checkpoint of this process a place to die or to sleep."""

    def checkpoint(_: str) -> None:
        draw = rng.random()
        if draw < KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        elif draw > 1 - PAUSE:
            time.sleep(rng.random() * PAUSE_S)

    disk.checkpoint = checkpoint


def work(root: Path, seed: int) -> None:
    """Compute every pending unit once, with values that differ from attempt to attempt."""
    rng = np.random.default_rng(seed)
    endanger(rng)
    store = open_store(root / "chunks", N_ITEMS, CHUNK_ITEMS)
    chunks = chunks_of(store)
    for index in rng.permutation(len(chunks)):
        chunk = chunks[index]
        if pending(store.root, [chunk.unit]):
            value, empty = int(rng.integers(1, 255)), bool(rng.random() < 0.25)
            record = {"value": value, "empty": empty}
            _unless_collected(
                lambda c=chunk, r=record: publish_chunk(store, c, result(c, r["value"], empty=r["empty"]), r)
            )
    for unit in rng.permutation(CELLS):
        _unless_collected(lambda u=str(unit): publish_cell(root / "cells", u, lambda out: _fit(out, rng)))


def _unless_collected(publish: Callable[[], bool]) -> None:
    """Publish; that gc took a staging folder of an attempt that slept too long is the one allowed failure."""
    try:
        publish()
    except StoreError as error:
        if "is gone" not in error.what:
            raise


def _fit(out: Path, rng: np.random.Generator) -> dict[str, Any]:
    value = int(rng.integers(1, 1 << 30))
    for name in ("weights", "scores"):
        (out / name).write_text(str(value) * 100)
        disk.checkpoint("artifact")
    return {"value": value}


def disturb(root: Path, seed: int, seconds: float) -> None:
    """Retire units and collect garbage until the time is over."""
    rng = np.random.default_rng(seed)
    endanger(rng)
    store = open_store(root / "chunks", N_ITEMS, CHUNK_ITEMS)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        retire(store.root, str(rng.choice([c.unit for c in chunks_of(store)])))
        retire(root / "cells", str(rng.choice(CELLS)))
        gc(store.root, GC_AGE_S, dry_run=False)
        time.sleep(0.02)


def torture(root: Path, seconds: float, seed: int) -> Tally:
    """Run one round in a new folder.

    Parameters
    ----------
    root : Path
        Empty folder.
    seconds : float
        How long units are retired; afterwards everything has to come right.
    seed : int
        Seed of the order, the values and the deaths.

    Returns
    -------
    Tally
        Counts of this round.
    """
    rng = np.random.default_rng(seed)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["zarr", "manifests.integrity", "tests.stores"])
    tally, started = Tally(), time.monotonic()
    disturbers: list[BaseProcess] = []
    workers: list[BaseProcess] = []

    def start(target: Callable[..., None], *args: Any) -> BaseProcess:
        process = context.Process(target=target, args=(root, int(rng.integers(1 << 30)), *args))
        process.start()
        return process

    while time.monotonic() < started + seconds or not _all_committed(root):
        if tally.wrong > 20 or time.monotonic() > started + 10 * seconds + 60:
            tally.add_problem("given up: too much is wrong, or units are pending long after the last retirement")
            break
        workers = _alive(workers, tally)
        disturbers = _alive(disturbers, tally)
        left = started + seconds - time.monotonic()
        if left > 0 and not disturbers:
            disturbers.append(start(disturb, left))
        workers += [start(work) for _ in range(WORKERS - len(workers))]
        _read_something(root, rng, tally)
    for process in (*workers, *disturbers):
        process.join()
    _alive([*workers, *disturbers], tally)
    _check_end(root, tally)
    tally.seconds = time.monotonic() - started
    return tally


def _alive(processes: list[BaseProcess], tally: Tally) -> list[BaseProcess]:
    """Leave out what has ended, counting kills and failures."""
    codes = [process.exitcode for process in processes]
    for code in codes:
        if code == -signal.SIGKILL:
            tally.kills += 1
        elif code:
            tally.add_problem(f"a process ended with {code}")
    return [process for process, code in zip(processes, codes, strict=True) if code is None]


def _all_committed(root: Path) -> bool:
    if not (root / "chunks" / "data.zarr").exists():
        return False
    store = StageStore.load(root / "chunks")
    return not pending(store.root, [c.unit for c in chunks_of(store)]) and not pending(root / "cells", CELLS)


def _read_something(root: Path, rng: np.random.Generator, tally: Tally) -> None:
    """Read a few chunks and a cell while others write them."""
    if (root / "chunks" / "data.zarr").exists():
        store = StageStore.load(root / "chunks")
        for chunk in rng.permutation(np.array(chunks_of(store), object))[:3]:
            _read_chunk(store, chunk, tally)
    _read_cell(root / "cells", str(rng.choice(CELLS)), tally)


def _read_chunk(store: StageStore, chunk: Chunk, tally: Tally) -> bool:
    """Whether a chunk is committed; its rows must be those of one attempt, and of the one that stands."""
    try:
        before = load_record(store.root, chunk.unit)
        rows = read_rows(store, chunk)
        after = load_record(store.root, chunk.unit)
    except StoreError as error:
        if "not committed" not in error.what:
            tally.add_problem(error.what)
        return False
    tally.reads += 1
    value = int(rows["score"][0])
    sources = [{"value": value, "empty": empty} for empty in (False, True)]
    if before and after and before.attempt == after.attempt:
        sources = [after.record]
    wanted = [result(chunk, source["value"], empty=source["empty"]).arrays for source in sources]
    if not any(all(np.array_equal(rows[name], array) for name, array in arrays.items()) for arrays in wanted):
        tally.add_problem(f"chunk {chunk.unit} mixes attempts")
    return True


def _read_cell(root: Path, unit: str, tally: Tally) -> bool:
    """Whether a cell is committed; its artifacts must be those of one attempt."""
    try:
        commit = read_commit(root, unit)
        texts = [(root / "commits" / unit / name).read_text() for name in ("weights", "scores")]
        after = read_commit(root, unit)
    except FileNotFoundError:
        return False
    if commit is None or after is None or commit.attempt != after.attempt:
        return False
    tally.reads += 1
    if texts != [str(commit.metrics["value"]) * 100] * 2:
        tally.add_problem(f"cell {unit} mixes attempts")
    return True


def _check_end(root: Path, tally: Tally) -> None:
    """Every unit is right, through this program and through plain Zarr, and nothing but old staging is left."""
    store = open_store(root / "chunks", N_ITEMS, CHUNK_ITEMS)
    scores = zarr.open_array(store.root / "data.zarr" / "score", mode="r")
    for chunk in chunks_of(store):
        if not _read_chunk(store, chunk, tally):
            tally.add_problem(f"chunk {chunk.unit} is not committed at the end")
        elif not (scores[chunk.start : chunk.stop] == read_rows(store, chunk, ["score"])["score"]).all():
            tally.add_problem(f"chunk {chunk.unit} reads otherwise through plain Zarr")
    for unit in CELLS:
        if not _read_cell(root / "cells", unit, tally):
            tally.add_problem(f"cell {unit} is not committed at the end")
    for folder in (store.root, root / "cells"):
        for damage in verify(folder):
            tally.add_problem(str(damage))
        gc(folder, -1, dry_run=False)
        tally.retired += len(list(folder.glob("retired/*")))
        for left in (*folder.glob("staging/*"), *folder.glob("commits/*/*.zarr")):
            tally.add_problem(f"left behind: {left.name}")


def run(rounds: int, seconds: float, *, quiet: bool, kills: int = 0) -> Tally:
    """Run so many rounds, and more until there were so many kills; add them up."""
    total = Tally()
    if not quiet:
        print("round  kills  retired  reads  wrong  seconds")
    for seed in count():
        if seed >= rounds and total.kills >= kills:
            break
        with tempfile.TemporaryDirectory(prefix="torture-") as folder:
            tally = torture(Path(folder), seconds, seed)
        if not quiet:
            print(f"{seed:5} {tally.kills:6} {tally.retired:8} {tally.reads:6} {tally.wrong:6} {tally.seconds:8.1f}")
        for name, value in asdict(tally).items():
            setattr(total, name, getattr(total, name) + value)
    return total


def main() -> int:
    """Run the benchmark from the command line; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description="Torture of the commit protocol.")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument(
        "--full", action="store_true", help="ten rounds of 20 s, and more until there were 500 kills; else three of 8 s"
    )
    options = parser.parse_args()
    rounds, seconds = (10, 20.0) if options.full else (3, 8.0)
    total = run(rounds, seconds, quiet=False, kills=500 if options.full else 0)
    print(f"total: {total.kills} kills, {total.retired} retired, {total.reads} reads, {total.wrong} wrong")
    for problem in total.problems:
        print(f"  {problem}")
    if options.json:
        print(json.dumps({k: v for k, v in asdict(total).items() if k != "problems"}))
    return 1 if total.wrong else 0


if __name__ == "__main__":
    # The processes that it starts unpickle their functions from the module's real name.
    from tests.benchmarks.torture import main as entry

    raise SystemExit(entry())
