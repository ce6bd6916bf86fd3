"""A short trial of a file system: processes that publish the same units, and are killed while they do."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from manifests.commits import committed_units, publish_chunk, read_rows
from manifests.integrity import verify
from manifests.store import StageStore
from manifests.types import ArraySpec, Chunk, ItemOutcome, Status, UnitResult

WRITERS: Final = 3
UNITS: Final = 160
ROWS: Final = 4
KILLS: Final = 6
KILL_EVERY: Final = 20
"""Units after which the next writer is killed."""
PATIENCE_S: Final = 60
SPECS: Final = (ArraySpec("value", (64, 64), "uint16", ("y", "x"), per_item=True), ArraySpec("status", (), "uint8"))


def try_file_system(folder: Path) -> int:
    """Let writers contend for units in a folder and kill some of them; return the units that were committed.

    Parameters
    ----------
    folder : Path
        Empty folder on the file system; the caller removes it.

    Raises
    ------
    OSError
        If a unit is lost, torn, or committed twice.
    """
    store = _store(folder)
    writers = [_writer(folder, seed) for seed in range(WRITERS)]
    try:
        for number in range(KILLS):
            _wait_for(store.root, (number + 1) * KILL_EVERY)
            victim = number % WRITERS
            writers[victim].send_signal(signal.SIGKILL)
            writers[victim].wait()
            writers[victim] = _writer(folder, WRITERS + number)
        for writer in writers:
            if writer.wait(PATIENCE_S):
                raise OSError(f"a writer ended with {writer.returncode}")
    except subprocess.TimeoutExpired:
        raise OSError(f"writers are not done within {PATIENCE_S} s") from None
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
    problems = [f"{damage.path}: {damage.problem}" for damage in verify(store.root)]
    for chunk in _chunks():
        values = np.unique(read_rows(store, chunk)["value"]).tolist()
        if len(values) != 1:
            problems.append(f"{chunk.unit} holds what {len(values)} writers wrote")
    if problems:
        raise OSError(f"{len(problems)} units are not whole after kills ({problems[0]}): no store can live here")
    return len(_chunks())


def _wait_for(root: Path, units: int) -> None:
    """Wait until so many units are committed."""
    deadline = time.monotonic() + PATIENCE_S
    while len(committed_units(root)) < units:
        if time.monotonic() > deadline:
            raise OSError(f"{units} units of {ROWS} small rows take longer than {PATIENCE_S} s")
        time.sleep(0.002)


def _writer(folder: Path, seed: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "pipeline.contend", str(folder), str(seed)])


def _store(folder: Path) -> StageStore:
    return StageStore.open(folder, SPECS, UNITS * ROWS, ROWS, {"drop": "trial", "fingerprint": "0" * 64})


def _chunks() -> list[Chunk]:
    return [Chunk("trial", i, i * ROWS, (i + 1) * ROWS) for i in range(UNITS)]


def _write(folder: Path, seed: int) -> None:
    """Publish every unit, in an order of one's own, with a value of one's own."""
    store, chunks = _store(folder), _chunks()
    for position in np.random.default_rng(seed).permutation(len(chunks)).tolist():
        chunk = chunks[position]
        items = tuple(ItemOutcome(row, f"{row:016x}", Status.OK) for row in range(chunk.start, chunk.stop))
        arrays: dict[str, NDArray[Any]] = {
            "value": np.full((ROWS, 64, 64), seed, np.uint16),
            "status": np.full(ROWS, Status.OK, np.uint8),
        }
        publish_chunk(store, chunk, UnitResult(arrays, items))


if __name__ == "__main__":
    _write(Path(sys.argv[1]), int(sys.argv[2]))
