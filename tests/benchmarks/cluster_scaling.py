"""What a unit costs the driver, the scheduler, the workers and the disk, and what that means for ten million images.

`python -m tests.benchmarks.cluster_scaling [--json] [--units N] [--images M] [--empty N] [--rows N]`. Scaling is
simulated: `Masks.process` of the workers is replaced by one that sleeps 50 ms an image and gives arrays of fill values
on a canvas of 64 px. All the rest is real: Runner, Dask, store, commits, fsync. Sleeping workers hardly compete for this
machine's cores. What is counted begins when every worker has ended a unit and ends when the queue is empty, so that
neither the start nor the end of processes counts. `others` are the cores that processes beside this benchmark used
meanwhile. Driver and scheduler are one process on one machine and with batch jobs; they are told apart on a cluster that
stands (TLS, as in docs/cluster.md). An empty unit returns at once and stores nothing: what is left is driver and
scheduler, with as many units in flight as 64 GPUs have. All times but `units/s` are processor times.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import dedent
from typing import Any
from unittest.mock import patch

import numpy as np
import psutil
from numpy.typing import NDArray

from manifests.commits import publish_chunk
from manifests.drops import Drop
from manifests.errors import ExitCode
from manifests.layout import DatasetPaths
from manifests.types import ArraySpec, ItemOutcome, Status, UnitResult
from pipeline.config import load_config
from pipeline.execute import UnitReport, UnitTask
from pipeline.graph import Node
from pipeline.plan import plan_map
from pipeline.runner import Runner, RunOptions
from pipeline.workspace import Workspace
from tests.benchmarks import plan_speed
from tests.conftest import ROOT
from tests.integration.standing import Certificates, StandingCluster

SETTINGS = ("canvas_px=64", "masks.policy=none", "cluster.device=cpu")
LOCAL = "cluster.kind=local"
SLEEP_S = 0.05
"""What the model costs, an image."""
EMPTY = -1.0
"""In place of seconds an image: units that do nothing."""
WORKERS = (1, 2, 4, 8)
IMAGES, GPUS, CHUNK = 10_000_000, 64, 64
"""What is extrapolated to: images, GPUs, images a chunk."""
FLEET = 2 * GPUS
"""Units in flight with so many GPUs."""
FEW_ROWS = 640
"""Rows of the data set whose plan is all start and no plan."""
AT_REST_S = 8.0

PRELUDE = """
    import os, sys, time
    from pathlib import Path

    def sleep_s():
        return float(Path(__file__).with_name("sleep_s").read_text())

    def process(self, rows, *_):
        time.sleep(sleep_s() * len(rows))
        items = tuple(ItemOutcome(row.row, row.image_id, Status.OK) for row in rows)
        return UnitResult({**empty_arrays(self.outputs(), len(rows)), "status": status_array(items)}, items, {})

    def run_unit(task):
        return compute(task) if sleep_s() >= 0 else execute.UnitReport(won=True, pid=os.getpid())

    if "resource_tracker" not in " ".join(sys.orig_argv):
        import torch
        from manifests.types import ItemOutcome, Status, UnitResult
        from pipeline import execute
        from stages.base import empty_arrays, status_array
        from stages.masks.stage import Masks

        compute = execute.run_unit
        Masks.process, execute.run_unit = process, run_unit
"""
"""First thing that a worker process runs; torch is imported here, so that no unit has to wait for it."""

ROWS = """
    import json, resource, sys, time, psutil
    from pathlib import Path
    from manifests.drops import load_drops, load_rows
    from manifests.layout import DatasetPaths

    paths = DatasetPaths(Path(sys.argv[1]))
    (drop,), before, began = load_drops(paths), psutil.Process().memory_info().rss, time.process_time()
    rows, peak = load_rows(paths, drop), 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = time.process_time() - began, psutil.Process().memory_info().rss - before, peak - before
    print(json.dumps([value / len(rows) for value in found]))
"""
"""Processor seconds, bytes held and bytes at most that a row of the inventory costs each worker process."""


@dataclass(frozen=True, slots=True)
class Load:
    """What one run has to do."""

    workers: int
    units: int
    images: int
    """Images a unit."""
    sleep_s: float
    """Seconds an image, or `EMPTY`."""
    ahead: int = 2
    """Units in flight for each worker."""


@dataclass(frozen=True, slots=True)
class Moment:
    """Wall clock, and processor seconds used so far."""

    wall: float
    driver: float
    scheduler: float
    workers: float
    machine: float
    done: int

    def since(self, first: Moment) -> dict[str, float]:
        """What each unit cost since then."""
        n, seconds = self.done - first.done, self.wall - first.wall
        own = self.driver - first.driver + self.scheduler - first.scheduler + self.workers - first.workers
        return {
            "units_s": n / seconds,
            "driver_s": (self.driver - first.driver) / n,
            "scheduler_s": (self.scheduler - first.scheduler) / n,
            "worker_s": (self.workers - first.workers) / n,
            "others": max(0.0, (self.machine - first.machine - own) / seconds),
        }


def spent(*processes: psutil.Process) -> float:
    """Processor seconds that processes have used."""
    return sum(sum(process.cpu_times()[:2]) for process in processes)


class Watched(Runner):
    """Looks at the clocks once every worker has ended a unit, and once no unit waits for a worker.

    Parameters
    ----------
    paths : DatasetPaths
        The data set.
    overrides : Sequence[str]
        Its configuration.
    load : Load
        What the run has to do.
    scheduler : psutil.Process, optional
        The scheduler, if it is a process of its own.
    """

    def __init__(
        self, paths: DatasetPaths, overrides: Sequence[str], load: Load, scheduler: psutil.Process | None
    ) -> None:
        options = RunOptions(stage="masks", source=paths.root)
        super().__init__(paths, load_config(overrides=(*SETTINGS, *overrides)), options)
        self.load = load
        self.scheduler = [scheduler] if scheduler else []
        self.workers: dict[int, psutil.Process] = {}
        self.publish: list[float] = []
        self.done = 0
        self.first: Moment | None = None
        self.last: Moment | None = None

    def _record(self, node: Node, task: UnitTask, result: UnitReport | Exception) -> None:
        super()._record(node, task, result)
        if isinstance(result, Exception):
            raise result
        self.done += 1
        self.publish.append(result.timings.get("publish", 0.0))
        if result.pid not in self.workers:
            self.workers[result.pid] = psutil.Process(result.pid)
        if self.first is None and len(self.workers) == self.load.workers:
            self.first = self._now()
        if self.done == self.load.units - self.load.ahead * self.load.workers:
            self.last = self._now()

    def _now(self) -> Moment:
        times = psutil.cpu_times()
        machine = times.user + times.nice + times.system
        at = time.monotonic(), time.process_time(), spent(*self.scheduler), spent(*self.workers.values())
        return Moment(*at, machine, self.done)

    def costs(self) -> dict[str, float]:
        """What each unit cost in the time between."""
        if self.first is None or self.last is None or self.last.done <= self.first.done:
            raise RuntimeError(f"{self.load}: a worker had no unit before the queue was empty; give more --units")
        return {"publish_wall_s": statistics.median(self.publish), **self.last.since(self.first)}


def make_units(paths: DatasetPaths, units: int, images: int) -> None:
    """A drop of images that are nowhere, in chunks of so many."""
    with patch.object(plan_speed, "Drop", lambda **fields: Drop(**{**fields, "chunk_items": images})):
        plan_speed.make_drop(paths, units * images)


def drive(load: Load, prelude: Path, *overrides: str, scheduler: psutil.Process | None = None) -> dict[str, float]:
    """One run; what a unit cost, and what it left on the disk."""
    (prelude / "sleep_s").write_text(str(load.sleep_s))
    with TemporaryDirectory(prefix="scaling-") as folder:
        paths = DatasetPaths(Path(folder, "set"))
        make_units(paths, load.units, load.images)
        runner = Watched(paths, (*overrides, f"cluster.workers={load.workers}"), load, scheduler)
        with (
            patch.dict(os.environ, PYTHONPATH=f"{prelude}{os.pathsep}{ROOT}"),
            patch("pipeline.dask_cluster.UNITS_IN_FLIGHT", load.ahead),
        ):
            outcome = runner.run()
        if outcome.exit_code is not ExitCode.DONE:
            raise RuntimeError(f"{load} ended with {outcome.exit_code.name}")
        events = (paths.run(runner.run_id) / "events.jsonl").stat().st_size
        files = [path for path in (paths.root / "stages").rglob("*") if path.is_file() and "json" not in path.suffix]
        files += (paths.root / "stages").rglob("commit.json")
        stored = {"files": len(files), "bytes": sum(path.stat().st_size for path in files), "events_bytes": events}
        return {**asdict(load), **runner.costs(), **{k: v / load.units for k, v in stored.items()}}


@contextmanager
def standing(folder: Path, prelude: Path, workers: int) -> Iterator[tuple[tuple[str, ...], psutil.Process]]:
    """A scheduler and workers, each a process; what a run has to be told to use them, and the scheduler."""
    folder.mkdir()
    tls, env = Certificates.make(folder / "tls"), {"PYTHONPATH": f"{prelude}{os.pathsep}{ROOT}"}
    with StandingCluster(folder / "cluster", tls).start_scheduler() as cluster:
        for number in range(workers):
            cluster.start_worker(f"w{number}", "--no-nanny", env=env)
        cluster.wait_until(lambda: all("Registered to" in cluster.said(f"w{n}") for n in range(workers)))
        files = (f"cluster.tls.{name}={getattr(tls, name)}" for name in ("ca", "cert", "key"))
        yield (f"cluster.scheduler_file={cluster.file}", *files), psutil.Process(cluster.processes["scheduler"].pid)


def on_standing(folder: Path, prelude: Path, loads: dict[str, Load]) -> dict[str, dict[str, float]]:
    """Runs on one standing cluster, and what its scheduler uses while there is nothing to do."""
    workers = max(load.workers for load in loads.values())
    with standing(folder, prelude, workers) as (overrides, scheduler):
        before = spent(scheduler)
        time.sleep(AT_REST_S)
        rest = (spent(scheduler) - before) / AT_REST_S / workers
        found = {name: drive(load, prelude, *overrides, scheduler=scheduler) for name, load in loads.items()}
    return {**found, "at rest": {"scheduler_cores_a_worker": rest}}


def plausible(spec: ArraySpec, rng: np.random.Generator) -> NDArray[Any]:
    """An array of a chunk in its real shape: discs as masks, noise in a disc as picture, normal numbers."""
    shape = (CHUNK, *spec.item_shape)
    if spec.dtype == "float32":
        return rng.standard_normal(shape).astype(np.float32)
    if len(spec.item_shape) < 2:
        return np.ones(shape, spec.dtype)
    side = spec.item_shape[1] if spec.item_dims[0] != "y" else spec.item_shape[0]
    packed, colour = spec.item_shape[-1] == side // 8, spec.item_shape[-1] == 3
    y, x = np.ogrid[:side, :side]
    n_discs = CHUNK * (spec.item_shape[0] if packed else 1)
    centres, radii = rng.uniform(0.2 * side, 0.8 * side, (n_discs, 2)), rng.uniform(0.05 * side, 0.2 * side, n_discs)
    discs = [np.hypot(y - at[0], x - at[1]) < radius for at, radius in zip(centres, radii, strict=True)]
    if packed:
        return np.stack([np.packbits(disc, axis=-1) for disc in discs]).reshape(shape)
    if colour:
        return np.stack([disc[..., None] * rng.integers(96, 160, (side, side, 1), np.uint8) for disc in discs]) * (
            np.ones(3, np.uint8)
        )
    return np.stack(discs)


def real_shapes() -> dict[str, dict[str, float]]:
    """Commit one chunk of every stage in its real shape (512 px): files, bytes, and processor seconds."""
    found = {}
    with TemporaryDirectory(prefix="scaling-") as folder:
        paths = DatasetPaths(Path(folder, "set"))
        make_units(paths, 1, CHUNK)
        workspace = Workspace(paths, load_config())
        (drop,) = workspace.drops
        (chunk,), rng = drop.chunks(), np.random.default_rng(0)
        for node in [node for node in workspace.nodes.values() if node.is_map]:
            stage, store = workspace.map_stage(node), workspace.store(node, drop.drop_id)
            items = tuple(ItemOutcome(row.row, row.image_id, Status.OK) for row in workspace.chunk_rows(chunk))
            result = UnitResult({spec.name: plausible(spec, rng) for spec in stage.outputs()}, items)
            began, began_wall = time.process_time(), time.perf_counter()
            publish_chunk(store, chunk, result)
            cost = {"publish_s": time.process_time() - began, "publish_wall_s": time.perf_counter() - began_wall}
            commit = workspace.commit(node, chunk.unit, drop.drop_id)
            if commit is None:
                raise RuntimeError(f"{node.key} was not committed")
            record = store.root / "commits" / chunk.unit / "commit.json"
            raw = sum(array.nbytes for array in result.arrays.values())
            cost |= {"raw_bytes": raw, "bytes": sum(commit.sizes.values()), "record_bytes": record.stat().st_size}
            found[node.stage] = {"files": len(commit.sizes) + 1, **cost}
    return found
