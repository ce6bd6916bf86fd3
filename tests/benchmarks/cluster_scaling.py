"""What a unit costs the driver, the scheduler, the workers and the disk, and what that means for ten million images.

`python -m tests.benchmarks.cluster_scaling [--json] [--units N] [--images M] [--empty N] [--rows N]`. Scaling is
simulated: `Masks.process` of the workers is replaced by one that sleeps 50 ms an image and gives arrays of fill values
on a canvas of 64 px. All else is real: Runner, Dask, store, commits, fsync. Sleeping workers hardly compete for cores.
What is counted begins when every worker has ended a unit, and ends when the queue is empty, so that neither the start
nor the end of processes counts. `others` are the cores that processes beside this benchmark used meanwhile.

Driver and scheduler are one process on one machine and with batch jobs; they are told apart on a cluster that stands,
with TLS as in docs/cluster.md. A `free` unit has one image, does not sleep and is stored. An `empty` one does nothing
and stores nothing: driver and scheduler alone are left, with as many units in flight as 64 GPUs have. `model` is the
share of their time that workers spend in the model; `efficiency` is against one worker, measured first and last.
All times are processor times but those called wall, and `units/s`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import dedent
from unittest.mock import patch

import psutil

from manifests.errors import ExitCode
from manifests.layout import DatasetPaths
from pipeline.config import load_config
from pipeline.execute import UnitReport, UnitTask
from pipeline.graph import Node
from pipeline.runner import Runner, RunOptions
from tests.benchmarks._unit_costs import CHUNK, make_units, planning, real_shapes
from tests.conftest import ROOT
from tests.integration.standing import Certificates, StandingCluster

SETTINGS = ("canvas_px=64", "masks.policy=none", "cluster.device=cpu")
LOCAL = "cluster.kind=local"
SLEEP_S = 0.05
"""What the model costs, an image."""
EMPTY = -1.0
"""In place of seconds an image: units that do nothing."""
WORKERS = (1, 2, 4, 8)
IMAGES, GPUS = 10_000_000, 64
"""What is extrapolated to: images, GPUs, images a chunk."""
FLEET = 2 * GPUS
"""Units in flight with so many GPUs."""
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
        return {"publish_s": statistics.median(self.publish), **self.last.since(self.first)}


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


def extrapolate(found: dict[str, dict[str, float]], stages: dict[str, dict[str, float]]) -> Iterator[tuple[str, str]]:
    """What the figures say of many images on many GPUs, if all grows as it has begun."""
    units, rate, rows = IMAGES / CHUNK, GPUS / (CHUNK * SLEEP_S), found["rows"]
    yield "one stage", f"{units:,.0f} units, {rate:.0f} a second, {IMAGES * SLEEP_S / GPUS / 3600:.1f} h"
    for stage, a in stages.items():
        size = units * (a["bytes"] + a["record_bytes"]) / 1e9
        files = f"{units * a['files'] / 1e6:.2f} million files, {units:,.0f} in each of {a['files']:.0f} folders"
        yield f"{stage}, store", f"{files}; {size:,.0f} GB; {rate * a['syncs']:.0f} fsync a second"
    yield "masks, store by the docs", f"{39 * 1024 * IMAGES / 1e9:,.0f} GB (docs/performance.md: 39 KiB an image)"
    yield "events.jsonl, a stage", f"{units * found['local 8']['events_bytes'] / 1e6:,.0f} MB"
    yield "inventory.csv", f"{IMAGES * rows['inventory_bytes'] / 1e9:.1f} GB"
    for name, docs in (("plan", " (docs/performance.md: 100 s)"), ("run", "")):
        cost = f"{IMAGES * rows[f'{name}_s']:,.0f} s{docs}, {IMAGES * rows[f'{name}_bytes'] / 1e9:.1f} GB"
        yield f"{name}, two stages committed", f"{cost}, beside what its start costs"
    held, peak = IMAGES * rows["held_bytes"] / 1e9, IMAGES * rows["peak_bytes"] / 1e9
    yield "inventory in each worker", f"{IMAGES * rows['load_s']:,.0f} s, {held:.0f} GB, {peak:.0f} GB at most"
    yield "driver's tasks, a stage", f"{units * rows['task_bytes'] / 1e6:,.0f} MB"
    busy, rest = found["standing 8"], found["at rest"]["scheduler_cores_a_worker"]
    scheduler = rate * (busy["scheduler_s"] - rest * busy["workers"] / busy["units_s"])
    idle = f"{rest * GPUS:.0%} at most for {GPUS} workers at rest"  # Dask lets many workers speak up less often
    yield "driver at that rate", f"{rate * busy['driver_s']:.0%} of a core"
    yield "scheduler at that rate", f"{scheduler:.0%} of a core for units, {idle}"
    one, two = found["empty, local"]["driver_s"], found["empty, standing"]
    for name, unit_s in (("one process", one), ("two", max(two["driver_s"], two["scheduler_s"]))):
        feeds = (
            f"{GPUS} GPUs at {1000 * unit_s * GPUS / CHUNK:.1f} ms an image, {CHUNK * SLEEP_S / unit_s:,.0f} at 50 ms"
        )
        yield f"driver and scheduler, {name}", f"{1 / unit_s:,.0f} units/s at most: {feeds}"


def measure(options: argparse.Namespace, folder: Path) -> dict[str, dict[str, float]]:
    """All runs, one after the other."""
    (prelude := folder / "prelude").mkdir()
    (prelude / "sitecustomize.py").write_text(dedent(PRELUDE))
    full = {n: Load(n, options.units * n // WORKERS[-1], options.images, SLEEP_S) for n in WORKERS}
    found = {f"local {n}": drive(load, prelude, LOCAL) for n, load in full.items()}
    found["local 1, again"] = drive(full[1], prelude, LOCAL)
    found["free, local"] = drive(Load(2, options.empty // 4, 1, 0.0), prelude, LOCAL)
    found["empty, local"] = drive(Load(2, options.empty, 1, EMPTY, FLEET // 2), prelude, LOCAL)
    loads = {"standing 8": full[8], "empty, standing": Load(8, options.empty, 1, EMPTY, FLEET // 8)}
    found |= on_standing(folder / "standing", prelude, loads)
    return {**found, "rows": planning(options.rows)}


def show(found: dict[str, dict[str, float]], stages: dict[str, dict[str, float]]) -> None:
    """Print what was measured, and what follows from it."""
    one = (found["local 1"]["units_s"] + found["local 1, again"]["units_s"]) / 2
    print("measured              units/s  efficiency  model    driver  scheduler    worker  publish, wall  others")
    for name, a in found.items():
        if "units_s" in a:
            each, sleeps = a["units_s"] / a["workers"], a["sleep_s"] > 0
            shares = f"{each / one:11.0%} {each * a['images'] * a['sleep_s']:6.0%}" if sleeps else " " * 18
            driver, scheduler, worker, publish = (
                f"{1000 * a[key]:.1f} ms" if a[key] else ""
                for key in ("driver_s", "scheduler_s", "worker_s", "publish_s")
            )
            times = f"{driver:>9} {scheduler:>10} {worker:>9} {publish:>14}"
            print(f"{name:20} {a['units_s']:8.1f} {shares} {times} {a['others']:7.2f}")
    a = found["local 8"]
    print(
        f"a unit on disk: {a['files']:.0f} files, {a['bytes']:,.0f} bytes; events.jsonl: {a['events_bytes']:.0f} bytes"
    )
    print(f"\n{CHUNK} images of 512 px  files  syncs      bytes    unpacked  commit.json     publish    wall")
    for stage, b in stages.items():
        sizes = f"{b['bytes']:10,.0f} {b['raw_bytes']:11,.0f} {b['record_bytes']:12,.0f}"
        times = f"{1000 * b['publish_s']:8.0f} ms {1000 * b['publish_wall_s']:4.0f} ms"
        print(f"{stage:20} {b['files']:6.0f} {b['syncs']:6.0f} {sizes} {times}")
    print("\na row, or a task, costs: " + ", ".join(f"{key} {value:.3g}" for key, value in found["rows"].items()))
    print(f"\nextrapolated, not measured: {IMAGES:,} images, {GPUS} GPUs, {CHUNK} images a unit")
    for what, value in extrapolate(found, stages):
        print(f"{what:31} {value}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--units", type=int, default=240, help="units for eight workers; fewer have fewer")
    parser.add_argument("--images", type=int, default=8, help="images a unit")
    parser.add_argument(
        "--empty", type=int, default=2000, help="units without work, and four times those without sleep"
    )
    parser.add_argument("--rows", type=int, default=20_000, help="rows of the data set that is planned")
    options, began, busy = parser.parse_args(), time.monotonic(), os.getloadavg()[0]
    with TemporaryDirectory(prefix="scaling-") as folder:
        found, stages = measure(options, Path(folder)), real_shapes()
    seconds, cores = time.monotonic() - began, len(os.sched_getaffinity(0))
    if options.json:
        print(json.dumps({"measured": found, "stages": stages, "extrapolated": dict(extrapolate(found, stages))}))
        return
    show(found, stages)
    print(f"\n{seconds:.0f} s on {cores} cores; load average {busy:.1f} before, {os.getloadavg()[0]:.1f} after")


if __name__ == "__main__":
    main()
