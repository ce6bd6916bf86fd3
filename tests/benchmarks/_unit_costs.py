"""What a row, a task and a chunk of real shapes cost, in processes of their own: for `cluster_scaling`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import dedent
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from manifests.commits import publish_chunk
from manifests.drops import Drop
from manifests.layout import DatasetPaths
from manifests.types import ArraySpec, ItemOutcome, Status, UnitResult
from pipeline.config import load_config
from pipeline.execute import UnitTask
from pipeline.graph import Node
from pipeline.plan import plan_map
from pipeline.workspace import Workspace
from tests.benchmarks import plan_speed
from tests.conftest import ROOT

CHUNK = 64
"""Images of a unit."""
FEW_ROWS = 640
"""Rows of the data set whose plan is all start and no plan."""
COMMAND = """
    import atexit, json, resource, sys
    from pathlib import Path

    def told():
        peak = Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]
        print(json.dumps([*resource.getrusage(resource.RUSAGE_SELF)[:2], 1024 * int(peak)]), file=sys.stderr)

    atexit.register(told)
    from pipeline.cli import main
    main()
"""
"""A command that says last what it used: processor seconds of user and system, and memory at most, in bytes."""


ROWS = """
    import json, sys, time, psutil
    from pathlib import Path
    from manifests.drops import load_drops, load_rows
    from manifests.layout import DatasetPaths

    paths = DatasetPaths(Path(sys.argv[1]))
    (drop,), before, began = load_drops(paths), psutil.Process().memory_info().rss, time.process_time()
    rows = load_rows(paths, drop)
    peak = 1024 * int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
    found = time.process_time() - began, psutil.Process().memory_info().rss - before, peak - before
    print(json.dumps([value / len(rows) for value in found]))
"""
"""Processor seconds, bytes held and bytes at most that a row of the inventory costs each worker process."""


def plausible(spec: ArraySpec, rng: np.random.Generator) -> NDArray[Any]:
    """An array of a chunk in its real shape: discs as masks, noise in a disc as picture, normal numbers."""
    shape = (CHUNK, *spec.item_shape)
    if spec.dtype == "float32":
        return rng.standard_normal(shape).astype(np.float32)
    if len(spec.item_shape) < 2:
        return np.ones(shape, spec.dtype)
    packed, side = spec.dtype == "uint8" and spec.item_dims[0] != "y", spec.item_shape[1]
    n_discs, steps = CHUNK * (spec.item_shape[0] if packed else 1), np.arange(side)
    centres, radii = rng.integers(side // 5, 4 * side // 5, (n_discs, 2)), rng.integers(side // 20, side // 5, n_discs)
    squares = (steps - centres[..., None]) ** 2
    discs = squares[:, 0, :, None] + squares[:, 1, None, :] < radii[:, None, None] ** 2
    if packed:
        return np.packbits(discs, axis=-1).reshape(shape)
    if spec.item_shape[-1] != 3:
        return np.asarray(discs)
    grey = rng.integers(96, 160, (CHUNK, side, side, 1), np.uint8)
    return np.repeat(discs[..., None] * grey, 3, axis=-1)


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
            with patch("os.fsync", wraps=os.fsync) as sync:
                publish_chunk(store, chunk, result)
            cost = {"publish_s": time.process_time() - began, "publish_wall_s": time.perf_counter() - began_wall}
            commit = workspace.commit(node, chunk.unit, drop.drop_id)
            if commit is None:
                raise RuntimeError(f"{node.key} was not committed")
            record = store.root / "commits" / chunk.unit / "commit.json"
            raw = sum(array.nbytes for array in result.arrays.values())
            cost |= {"raw_bytes": raw, "bytes": sum(commit.sizes.values()), "record_bytes": record.stat().st_size}
            found[node.stage] = {"files": len(commit.sizes) + 1, "syncs": sync.call_count, **cost}
    return found


def ask(code: str, *arguments: str) -> list[float]:
    """Numbers that a process prints in its last line, median of three."""
    command = [sys.executable, "-c", dedent(code), *arguments]
    said = [subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT) for _ in range(3)]
    return [
        float(value) for value in np.median([json.loads((s.stdout + s.stderr).splitlines()[-1]) for s in said], axis=0)
    ]


def task_bytes(workspace: Workspace, node: Node) -> float:
    """Memory that a unit costs the driver as long as a stage runs."""
    tracemalloc.start()
    planned, fixed = plan_map(workspace, node), ("", "", "")
    tasks = [UnitTask(str(workspace.paths.root), *fixed[:2], u, fixed[2], "cpu", (), "") for u in planned]
    held = tracemalloc.get_traced_memory()[0] / len(tasks)
    tracemalloc.stop()
    return held


def planning(n_rows: int) -> dict[str, float]:
    """What a row costs `plan`, `run` with nothing to do, the inventory and each worker that reads it."""
    settings = [word for setting in plan_speed.SETTINGS for word in ("--set", setting)]
    used: dict[tuple[str, int], list[float]] = {}
    found: dict[str, float] = {}
    with TemporaryDirectory(prefix="scaling-") as folder:
        for n in (FEW_ROWS, n_rows):
            paths = DatasetPaths(Path(folder, str(n), "set"))
            plan_speed.make_drop(paths, n)
            workspace = Workspace(paths, load_config(overrides=plan_speed.SETTINGS))
            nodes = [node for node in workspace.nodes.values() if node.is_map]
            found["task_bytes"] = task_bytes(workspace, nodes[0])
            with patch("os.fsync"):
                for node in nodes:
                    plan_speed.commit_all(workspace, node)
            for name in ("plan", "run"):
                words = (name, "--stage", "embeddings", "--workdir", str(paths.root.parent), *settings)
                used[name, n] = ask(COMMAND, *words)
        inventory = paths.drop(workspace.drops[0].drop_id) / "inventory.csv"
        found["inventory_bytes"] = inventory.stat().st_size / n_rows
        found["load_s"], found["held_bytes"], found["peak_bytes"] = ask(ROWS, str(paths.root))
    for name in ("plan", "run"):
        more = np.subtract(used[name, n_rows], used[name, FEW_ROWS]) / (n_rows - FEW_ROWS)
        found |= {f"{name}_s": float(more[0] + more[1]), f"{name}_bytes": float(more[2])}
    return found


def make_units(paths: DatasetPaths, units: int, images: int) -> None:
    """A drop of images that are nowhere, in chunks of so many."""
    with patch.object(plan_speed, "Drop", lambda **fields: Drop(**{**fields, "chunk_items": images})):
        plan_speed.make_drop(paths, units * images)
